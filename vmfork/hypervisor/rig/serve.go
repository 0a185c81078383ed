package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// environment is what every command finds.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "TMPDIR=/tmp", "LANG=C.UTF-8",
}

// lingerLimit is how long what a command left may hold its output open.
const lingerLimit = 5 * time.Second

// serve does what the host says.
func serve(port io.ReadWriter) error {
	if err := writeFrame(port, frameReady, nil); err != nil {
		return fmt.Errorf("speak to the host: %w", err)
	}
	for orders := json.NewDecoder(port); ; {
		var c Command
		if err := orders.Decode(&c); err != nil {
			return fmt.Errorf("hear the host: %w", err)
		}
		if err := obey(port, c); err != nil {
			return fmt.Errorf("speak to the host: %w", err)
		}
	}
}

// obey runs one command. Its error is the port's.
func obey(port io.Writer, c Command) error {
	var mu sync.Mutex
	res := run(c, framer{&mu, port, frameStdout}, framer{&mu, port, frameStderr})
	if len(c.Bring) > 0 {
		if err := pack(framer{&mu, port, frameFiles}, c.Bring); err != nil && res.Error == "" {
			res.Error = fmt.Sprintf("bring its files: %v", err)
		}
	}
	status, err := json.Marshal(res)
	if err != nil {
		return err
	}
	return writeFrame(port, frameStatus, status)
}

func run(c Command, stdout, stderr io.Writer) (res Result) {
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env, cmd.Dir = append(environment, c.Env...), c.Dir
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = lingerLimit
	begin := time.Now()
	err := cmd.Run()
	res.Took = time.Since(begin)
	var ended *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &ended):
		res.Status = ended.ExitCode()
		if ws, ok := ended.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			res.Status = 128 + int(ws.Signal())
		}
	default:
		res.Error = err.Error()
	}
	return res
}

// setEnvironment makes exec.LookPath find what commands name.
func setEnvironment() {
	os.Clearenv()
	os.Setenv("PATH", environment[0][len("PATH="):])
}
