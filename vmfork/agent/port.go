package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// The agent's serial ports: orders, and the session.
const (
	ControlPort = "mpirun-sf.control"
	DataPort    = "mpirun-sf.data"
)

// portArgument is the kernel's argument that says which terminal is which port, where
// ports have no names: mpirun-sf.port=NAME:DEVICE.
const portArgument = "mpirun-sf.port="

// findPort returns the device of a serial port.
func findPort(port string) (string, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("find the way to the host: %w", err)
	}
	terminal := portTerminal(string(cmdline), port)
	deadline := time.Now().Add(10 * time.Second)
	for {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == port {
				return "/dev/" + filepath.Base(filepath.Dir(n)), nil
			}
		}
		// The device is there before what it stands for is.
		if fd, err := openPort(terminal); err == nil {
			unix.Close(fd)
			return terminal, nil
		}
		if time.Now().After(deadline) {
			return "", errors.New("find the way to the host: waited 10 s for the serial port " + port)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// portTerminal is what the kernel's command line says of a port, "" if nothing.
func portTerminal(cmdline, port string) string {
	for _, word := range strings.Fields(cmdline) {
		if device, ok := strings.CutPrefix(word, portArgument+port+":"); ok {
			return "/dev/" + filepath.Base(device)
		}
	}
	return ""
}

// openPort opens a port, so that bytes pass through it as they are, also where it is a
// terminal.
func openPort(device string) (fd int, err error) {
	if fd, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0); err != nil {
		return -1, err
	}
	if term.IsTerminal(fd) {
		if _, err := term.MakeRaw(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}
