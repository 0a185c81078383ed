package guestport

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A hypervisor's consoles are terminals of hvc_console.c, which Linux takes away when its machine goes on in another, and
// makes anew. Until the old one is released, by work that closing it queues (release_one_tty), it is what who opens the device is given. What
// is written to that arrives, and it hears for a while and then no more, for its interrupt is gone. So who opens one looks whether
// there is an interrupt more than before.

// console begins the names of such devices, and consoleInterrupt is what their interrupts are called (hvc_irq.c).
const (
	console          = "hvc"
	consoleInterrupt = "hvc_console"
)

// freshLimit is how long a terminal is opened again for want of an interrupt: there may be one without.
const freshLimit = 5 * time.Second

// opening is held while interrupts are counted.
var opening sync.Mutex

// openFresh opens a device, and the new one where there are two of a console.
func openFresh(device string) (fd int, err error) {
	for end := time.Now().Add(freshLimit); ; time.Sleep(time.Millisecond) {
		opening.Lock()
		before := consoles()
		fd, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		stale := err == nil && strings.HasPrefix(filepath.Base(device), console) && consoles() <= before && time.Now().Before(end)
		if stale {
			unix.Close(fd)
		}
		opening.Unlock()
		if !stale {
			return fd, err
		}
		released()
	}
}

// closeFresh closes what openFresh has opened.
func closeFresh(fd int) {
	opening.Lock()
	defer opening.Unlock()
	unix.Close(fd)
}

// consoles is how many consoles there are that are open and have an interrupt.
func consoles() int {
	all, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return 0
	}
	return bytes.Count(all, []byte(consoleInterrupt))
}

// released waits until the kernel has released what was closed, as a rule. To have the counters of virtual memory refreshed is work on
// the queues on which that is, is waited for, and begins after what was queued before.
func released() { os.WriteFile("/proc/sys/vm/stat_refresh", []byte("1"), 0) }
