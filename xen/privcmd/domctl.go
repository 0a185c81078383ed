package privcmd

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The versions of the domctl interface that are known.
const (
	domctlFirst = 0x15 // Xen 4.17
	domctlLast  = 0x18 // Xen 4.22
)

const (
	domctlPause   = 3
	domctlUnpause = 4
	domctlInfo    = 5
)

// domctlHeader is what comes before a command's own arguments: command, version,
// domain.
const domctlHeader = 16

// control does a command on a domain, and gives what Xen answered to read, which
// may be nil.
func (h *Handle) control(command uint32, d Domain, read func(args []byte)) error {
	return h.controlWith(command, d, func([]byte) {}, read)
}

// controlWith does one that has arguments, which write writes.
func (h *Handle) controlWith(command uint32, d Domain, write, read func(args []byte)) error {
	return h.with(func(b buffer) error {
		le.PutUint32(b, command)
		le.PutUint32(b[4:], h.domctl)
		le.PutUint16(b[8:], uint16(d))
		write(b[domctlHeader:])
		if _, err := h.call(opDomctl, b.at(0)); err != nil {
			return err
		}
		if read != nil {
			read(b[domctlHeader:])
		}
		return nil
	})
}

// Pause stops a domain's vCPUs. It counts: as many calls of Unpause let them run.
func (h *Handle) Pause(d Domain) error {
	if err := h.control(domctlPause, d, nil); err != nil {
		return fmt.Errorf("pause domain %d: %w", d, err)
	}
	return nil
}

// Unpause undoes one Pause.
func (h *Handle) Unpause(d Domain) error {
	if err := h.control(domctlUnpause, d, nil); err != nil {
		return fmt.Errorf("unpause domain %d: %w", d, err)
	}
	return nil
}

// Info is what Xen knows of a domain.
type Info struct {
	Dying    bool // it is being destroyed
	Shutdown bool // it has ended by itself, or was suspended
	Paused   bool
	Reason   Reason // of Shutdown
	Pages    uint64 // that it has
	CPUTime  time.Duration
}

// Reason says why a domain is shut down.
type Reason uint8

// The reasons, as in Xen's public header sched.h.
const (
	Poweroff Reason = iota
	Reboot
	Suspend
	Crash
	Watchdog
	SoftReset
)

func (r Reason) String() string {
	switch r {
	case Poweroff:
		return "the guest powered off"
	case Reboot:
		return "the guest restarted"
	case Suspend:
		return "the guest was suspended"
	case Crash:
		return "the guest crashed"
	case Watchdog:
		return "the guest's watchdog ended it"
	}
	return fmt.Sprintf("the guest ended for reason %d", uint8(r))
}

// Info says what there is to know of a domain. One that is gone is [unix.ESRCH].
func (h *Handle) Info(d Domain) (info Info, err error) {
	found := d
	err = h.control(domctlInfo, d, func(args []byte) {
		found = Domain(le.Uint16(args))
		flags := le.Uint32(args[4:])
		info = Info{
			Dying: flags&1 != 0, Shutdown: flags&(1<<2) != 0, Paused: flags&(1<<3) != 0, Reason: Reason(flags >> 16),
			Pages: le.Uint64(args[8:]), CPUTime: time.Duration(le.Uint64(args[56:])),
		}
	})
	if err == nil && found != d { // Xen answers with the next one that there is
		err = unix.ESRCH
	}
	if err != nil {
		return Info{}, fmt.Errorf("look at domain %d: %w", d, err)
	}
	return info, nil
}
