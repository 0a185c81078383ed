// Package guestport is a guest's end of its serial ports, whatever the hypervisor: as a virtio port, which has a name, or
// as a terminal, of which the kernel's command line says which port it is.
//
//  1. [Find] waits for a port by its name (port.go).
//  2. [Use] opens it, and it stays open when the machine goes on in another: a terminal is opened again
//     where Linux has taken it away (terminal.go), after a greeting by which guest and host know that they hear each
//     other ([Ready]).
//  3. [Share] does the same for a port that one user has after another, each for a [Turn]. Before a fork, [Turn.Hold]
//     sees to it that nothing is on its way (turns.go).
package guestport

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
		if fd, err := unix.Open(terminal, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0); err == nil {
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

// Ready ends what a guest says to greet its host over a port that is a terminal. Before, the host says back what it hears, and
// nothing else; from then on bytes pass as they are. None of that is the port's user's to hear.
//
// It has two reasons. Until a terminal is told not to, it changes what it hears, and says it back by its echo. And Linux gives who opens
// a terminal that it had taken away the one that is about to go: what is written to it arrives, and is heard no more, for its interrupt
// is gone. [released] sees to it that this does not happen, as a rule. In case that it does, nothing counts before the host was heard several times, one
// after the other, and else the terminal is opened again: when any terminal is opened, Linux looks once at what all have heard.
const Ready = 0

// greetings is how often the host has to be heard.
const greetings = 3

// The greeting's limits: how long a host may take to say a byte back before the terminal is opened again, twice as long each time; and in all.
const (
	echoLimit  = 100 * time.Millisecond
	greetLimit = time.Minute
)

// greeting is held from the opening of a terminal to its last greeting, for no other to be opened meanwhile.
var greeting sync.Mutex

// released waits until the kernel has released a terminal that was closed. The driver of a hypervisor's consoles (hvc_console.c) gives a terminal that
// it has taken away to who opens it until then, and what releases it (release_one_tty) is work that closing queues on the processor's
// common queue. To have the counters of virtual memory refreshed is work on the same queues, which is waited for, and begins after what was queued before.
func released() { os.WriteFile("/proc/sys/vm/stat_refresh", []byte("1"), 0) }

// open opens a port's device, so that bytes pass through it as they are, also where it
// is a terminal. That can be opened once for each time that it meets a host.
func open(device string) (fd int, err error) {
	patience, first := echoLimit, byte(Ready+1)
	for end := time.Now().Add(greetLimit); ; patience, first = 2*patience, first+greetings {
		fd, greeted, err := openAndGreet(device, first, patience)
		if err != nil || greeted {
			return fd, err
		}
		if time.Now().After(end) {
			return -1, fmt.Errorf("waited %v for the host to say back what it heard", greetLimit)
		}
		released()
	}
}

// openAndGreet opens a device, and if that is a terminal says so many bytes from first on, and Ready when they were heard. What was
// not greeted is closed.
func openAndGreet(device string, first byte, patience time.Duration) (fd int, greeted bool, err error) {
	greeting.Lock()
	defer greeting.Unlock()
	if fd, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0); err != nil {
		return -1, false, err
	}
	if !term.IsTerminal(fd) {
		return fd, true, nil
	}
	_, err = term.MakeRaw(fd)
	greeted = true
	for b := first; greeted && err == nil && b < first+greetings; b++ {
		greeted, err = greet(fd, b, patience)
	}
	if greeted && err == nil {
		_, err = unix.Write(fd, []byte{Ready})
	}
	if !greeted || err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, true, nil
}

// greet says a byte, which is not Ready nor one that was said before, and waits to hear it back.
func greet(fd int, b byte, patience time.Duration) (heard bool, err error) {
	if _, err := unix.Write(fd, []byte{b}); err != nil {
		return false, err
	}
	for end := time.Now().Add(patience); ; {
		left := time.Until(end)
		if left <= 0 {
			return false, nil
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if err == unix.EINTR || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return false, err
		}
		var back [1]byte
		n, err = unix.Read(fd, back[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return false, err
		case n == 0:
			return false, io.EOF
		case back[0] == b: // and else what was said through another
			return true, nil
		}
	}
}
