package network

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxFrame is the largest thing that a tap can hold: 64 KB of segments that are not cut yet, and its headers.
const maxFrame = 1<<16 + 256

// Spare makes a second tap for a member that has one, for the QEMU process that will take over: on the bridge, down, and
// with no address behind it, so that it gets nothing before [Network.HandOver]. (A QEMU that waits for its state takes a
// frame from its tap; from a shared one that frame would be the running guest's.) The file is the Network's, as AddTap's.
func (n *Network) Spare(id int) (*os.File, error) {
	var file *os.File
	err := n.withPlug("make spare", id, func(p *plug) error {
		if p.spare != nil {
			return errors.New("it has one: hand back or retire first")
		}
		// The two names of a member take turns, because a spare becomes the member's tap.
		name := fmt.Sprintf("tap%d", id)
		if !strings.HasSuffix(p.tap.link.Attrs().Name, "b") {
			name += "b"
		}
		t, err := n.addTap(name, n.plan.IP(id))
		if err != nil {
			return err
		}
		p.spare, file = t, t.file
		return nil
	})
	return file, err
}

// HandOver lets a member's frames queue at its spare from now on; each goes to one of the taps, none to both or neither.
// What the guest still sends by its old tap gets out as before, and it goes on receiving what came before.
//
// Broadcasts go to the spare as well, and no longer to the old tap. That is two steps, and one that comes between them
// reaches both.
func (n *Network) HandOver(id int) error {
	return n.withPlug("hand over", id, func(p *plug) error {
		if p.spare == nil {
			return errors.New("there is no spare")
		}
		if p.handed {
			return errors.New("it was handed over before")
		}
		// A port that is down would lose what the table sends to it.
		if err := n.handle.LinkSetUp(p.spare.link); err != nil {
			return fmt.Errorf("bring spare up: %w", err)
		}
		p.handed = true
		if err := n.point(id, p.spare); err != nil {
			return err
		}
		return p.tap.only(n.plan.MAC(id))
	})
}

// Retire removes a member's old tap after HandOver, when the QEMU process behind it has been stopped: what that one did not
// read any more goes to the spare, behind what is there. From now on the spare is the member's tap.
func (n *Network) Retire(id int) error {
	n.removals.Lock()
	defer n.removals.Unlock()
	var old, spare *tap
	err := n.withPlug("retire", id, func(p *plug) error {
		if !p.handed {
			return errors.New("it was not handed over")
		}
		old, spare = p.tap, p.spare
		return nil
	})
	if err != nil {
		return err
	}
	moveErr, unplugErr := n.move(spare, old), n.unplug(old)
	return n.withPlug("retire", id, func(p *plug) error {
		p.tap, p.spare, p.handed = spare, nil, false
		return errors.Join(moveErr, unplugErr)
	})
}

// HandBack gives up: it undoes Spare and, where that has happened, HandOver. The QEMU process behind the spare must have
// been stopped. What was queued at the spare goes to the old tap, which is the member's again.
func (n *Network) HandBack(id int) error {
	n.removals.Lock()
	defer n.removals.Unlock()
	var old, spare *tap
	var errs []error
	err := n.withPlug("hand back", id, func(p *plug) error {
		if p.spare == nil {
			return errors.New("there is no spare")
		}
		old, spare = p.tap, p.spare
		if p.handed {
			p.handed = false
			errs = append(errs, old.only(nil), n.point(id, old))
		}
		return nil
	})
	if err != nil {
		return err
	}
	errs = append(errs, n.move(old, spare), n.unplug(spare))
	return n.withPlug("hand back", id, func(p *plug) error {
		p.spare = nil
		return errors.Join(errs...)
	})
}

// only lets the tap take frames for one address, and with nil for all again. The bridge's switch for broadcasts would do
// as well, but the library does not know it, and this is one ioctl.
func (t *tap) only(mac []byte) error {
	var filter struct {
		flags, count uint16
		address      [6]byte
	}
	if mac != nil {
		filter.count = 1
		copy(filter.address[:], mac)
	}
	return t.control(func(fd int) error {
		if err := control(fd).do(unix.TUNSETTXFILTER, unsafe.Pointer(&filter)); err != nil {
			return fmt.Errorf("filter the frames for %s: %w", t.link.Attrs().Name, err)
		}
		return nil
	})
}

func (t *tap) control(f func(fd int) error) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// move takes down a tap that the bridge's table does not point to any more, and puts what is queued there into the queue
// of another. A packet socket (packet(7)) does that: what it sends by a device is what the device's reader gets. Its
// caller holds removals.
func (n *Network) move(to, from *tap) error {
	// The kernel returns when no processor is still at delivering a frame there.
	if err := n.remover.LinkSetDown(from.link); err != nil {
		return fmt.Errorf("take down %s: %w", from.link.Attrs().Name, err)
	}
	socket := -1
	err := n.inside(func() (err error) {
		socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("move frames: open packet socket: %w", err)
	}
	defer unix.Close(socket)
	// Frames keep the header that says what is still to be done to them: a checksum, a cut into segments.
	if err := unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("move frames: keep headers: %w", err)
	}
	destination := &unix.SockaddrLinklayer{Ifindex: to.link.Attrs().Index}
	return from.control(func(fd int) error {
		// QEMU may have asked for a header that is longer by a field; the packet socket knows the short one.
		var header int32
		if err := control(fd).do(unix.TUNGETVNETHDRSZ, unsafe.Pointer(&header)); err != nil {
			return fmt.Errorf("move frames: ask for the size of headers: %w", err)
		}
		// To pass a file on to a process makes it a blocking one, and here the empty queue is the end.
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("move frames: %w", err)
		}
		buffer := make([]byte, maxFrame)
		for {
			size, err := unix.Read(fd, buffer)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return nil
			case err != nil:
				return fmt.Errorf("move frames: read from %s: %w", from.link.Attrs().Name, err)
			}
			begin := int(header) - VNetHeader
			copy(buffer[begin:], buffer[:VNetHeader])
			// A frame that the queue has no room for is lost, as frames are; the next one may be smaller.
			if err := unix.Sendto(socket, buffer[begin:size], 0, destination); err != nil && err != unix.ENOBUFS {
				return fmt.Errorf("move frames: put into the queue of %s: %w", to.link.Attrs().Name, err)
			}
		}
	})
}
