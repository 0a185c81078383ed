// Package guestport is a guest's end of its serial ports, whatever the hypervisor: as a virtio port, which has a name, or
// as a terminal, of which the kernel's command line says which port it is.
package guestport

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// argument is the kernel's argument that says which terminal is which port:
// mpirun-sf.port=NAME:DEVICE.
const argument = "mpirun-sf.port="

// limit is how long a port may take to appear.
const limit = 10 * time.Second

// Argument is what the kernel's command line has to say where a port has no name, but is a terminal of /dev.
func Argument(port, device string) string { return argument + port + ":" + device }

// Find waits for a serial port, and returns its device.
func Find(port string) (string, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("find the way to the host: %w", err)
	}
	terminal := terminal(string(cmdline), port)
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == port {
				return "/dev/" + filepath.Base(filepath.Dir(n)), nil
			}
		}
		// The device is there before what it stands for is.
		if fd, err := Open(terminal); err == nil {
			unix.Close(fd)
			return terminal, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("find the way to the host: waited %v for the serial port %s", limit, port)
		}
	}
}

// terminal is what the kernel's command line says of a port, "" if nothing.
func terminal(cmdline, port string) string {
	for _, word := range strings.Fields(cmdline) {
		if device, ok := strings.CutPrefix(word, Argument(port, "")); ok {
			return "/dev/" + filepath.Base(device)
		}
	}
	return ""
}

// Open opens a port's device, so that bytes pass through it as they are, also where it
// is a terminal.
func Open(device string) (fd int, err error) {
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
