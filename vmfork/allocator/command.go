package allocator

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CloseLimit is how long a process has to end by itself after its input has
// ended.
const CloseLimit = 10 * time.Second

// command is a Process that is a command of this machine.
type command struct {
	host    string
	cmd     *exec.Cmd
	limit   time.Duration
	in, out *os.File
	tail    *Tail
	ended   chan struct{}
	err     error // of Wait, once ended

	closing sync.Once
}

// Command starts cmd as the Process of a host: a resource manager's own command
// that runs a program there and passes its input, output, errors and end on, as
// srun does. Standard input, output and error of cmd are set here. It gets a
// process group of its own, so that a Ctrl-C at the terminal is not its, and
// what is killed is the group, by Close, limit after its input has ended:
// [CloseLimit], or more where the far end does that by itself, and there is
// harm in killing cmd. notice, if not nil, is called for each line of
// standard error.
//
// A status 0 is the end of a good process; another makes Wait's error an
// [ExitError].
func Command(host string, cmd *exec.Cmd, limit time.Duration, notice func(line string)) (Process, error) {
	fail := func(err error) (Process, error) {
		return nil, &HostError{Host: host, Err: fmt.Errorf("start %s: %w", cmd.Path, err)}
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return fail(err)
	}
	defer theirOut.Close()
	c := &command{host: host, cmd: cmd, limit: limit, in: in, out: out, tail: NewTail(notice), ended: make(chan struct{})}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirIn, theirOut, c.tail
	// A child of its own that it left behind may hold standard error open.
	cmd.WaitDelay = time.Second
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return fail(err)
	}
	go func() {
		defer close(c.ended)
		if err := cmd.Wait(); err != nil && !(errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success()) {
			c.err = &HostError{Host: host, Err: c.verdict(err)}
		}
	}()
	return c, nil
}

func (c *command) verdict(err error) error {
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return err
	}
	e := &ExitError{Stderr: c.tail.String()}
	if status.Signaled() {
		e.Signal = unix.SignalName(status.Signal())[len("SIG"):]
	} else {
		e.Status = status.ExitStatus()
	}
	return e
}

func (c *command) Read(p []byte) (int, error) { return c.out.Read(p) }

func (c *command) Write(p []byte) (int, error) { return c.in.Write(p) }

func (c *command) Wait() error {
	<-c.ended
	return c.err
}

func (c *command) Close() error {
	c.closing.Do(func() {
		c.in.Close()
		// It ends in its own way only if it can write what it has to.
		go io.Copy(io.Discard, c.out)
		select {
		case <-c.ended:
		case <-time.After(c.limit):
			unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL)
			<-c.ended
		}
		c.out.Close()
	})
	return nil
}
