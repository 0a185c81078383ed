package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/xen/gntdev"
)

// Network is a network device of a guest's, over a tap.
type Network struct {
	*Device
	tap    *os.File      // a copy of the owner's
	header int           // bytes before each frame on the tap
	woken  chan struct{} // has room for one: the guest may have given room for a frame

	// Of what runs for it, or has stopped it: out is from the guest, in is to it.
	out, in *sharedRing
}

// Of a network device's rings, struct netif_tx_sring and netif_rx_sring.
const (
	outSlot, outSlots = 12, 256
	inSlot, inSlots   = 8, 256

	noChecksum = 1 << 0 // flags of a request of the guest's: the frame's checksum is to be completed
	moreData   = 1 << 2 // it goes on in the next
	extraInfo  = 1 << 3 // a slot of another kind follows

	netOK    = 0
	netError = -1

	frameLimit = 1 << 16
	partsLimit = 18 // slots of a frame: what every guest may use
)

// NewNetwork gives a domain that is paused a network device, over a tap that stays its
// owner's.
func (b *Bus) NewNetwork(ctx context.Context, domain uint16, mac net.HardwareAddr, tap *os.File) (*Network, error) {
	fd, err := unix.FcntlInt(tap.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("take the tap: %w", err)
	}
	n := &Network{tap: os.NewFile(uintptr(fd), "tap"), woken: make(chan struct{}, 1)}
	if n.header, err = headerSize(fd); err != nil {
		n.tap.Close()
		return nil, err
	}
	// Whole frames with checksums, one page each: what the tap has and takes.
	n.Device, err = b.Announce(ctx, domain, "vif", 0,
		map[string]string{"handle": "0", "mac": mac.String(), "mtu": "1500"},
		map[string]string{"handle": "0", "mac": mac.String(), "feature-rx-copy": "1", "feature-no-csum-offload": "1", "feature-sg": "0"})
	if err != nil {
		n.tap.Close()
		return nil, err
	}
	n.serve(n.takeRings, n.empty, n.fill)
	return n, nil
}

// headerSize is what a tap puts before each frame; any other file, nothing.
func headerSize(fd int) (int, error) {
	var request [40]byte // struct ifreq
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNGETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return 0, nil
	}
	if binary.NativeEndian.Uint16(request[unix.IFNAMSIZ:])&unix.IFF_VNET_HDR == 0 {
		return 0, nil
	}
	size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return 0, fmt.Errorf("take the tap: %w", err)
	}
	return size, nil
}

func (n *Network) takeRings(ctx context.Context) error {
	page, err := n.mapPage(ctx, "tx-ring-ref")
	if err != nil {
		return err
	}
	n.out = &sharedRing{page: page, slot: outSlot, slots: outSlots}
	if page, err = n.mapPage(ctx, "rx-ring-ref"); err != nil {
		return err
	}
	n.in = &sharedRing{page: page, slot: inSlot, slots: inSlots}
	return n.bind(ctx, "event-channel")
}

// empty moves frames of the guest's to the tap until ctx ends.
func (n *Network) empty(ctx context.Context) error {
	for {
		for {
			ok, err := n.send(ctx)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
		}
		select {
		case n.woken <- struct{}{}:
		default:
		}
		if err := n.channel.Wait(ctx); err != nil {
			return err
		}
	}
}

// outRequest is a part of a frame of the guest's.
type outRequest struct {
	ref               uint32
	offset, flags, id uint16
	size              int // of the first, the whole frame's
}

func parseOutRequest(b []byte) outRequest {
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
	return outRequest{binary.LittleEndian.Uint32(b), u16(4), u16(6), u16(8), int(u16(10))}
}

// send moves one frame of the guest's to the tap. A frame that cannot be is answered as
// such.
func (n *Network) send(ctx context.Context) (ok bool, err error) {
	var parts []outRequest
	for more := true; more; {
		var b [outSlot]byte
		ok, err := n.out.next(b[:])
		if err != nil || !ok && len(parts) == 0 {
			return false, err
		}
		q := parseOutRequest(b[:])
		if !ok || q.flags&extraInfo != 0 || len(parts) == partsLimit {
			return false, errors.New("the guest sends frames as it was not offered to")
		}
		parts, more = append(parts, q), q.flags&moreData != 0
	}
	status := int16(netOK)
	if err := n.transmit(ctx, parts); ctx.Err() != nil {
		return false, ctx.Err()
	} else if err != nil {
		status = netError
	}
	notify := false
	for _, q := range parts {
		b := binary.LittleEndian.AppendUint16(nil, q.id)
		notify = n.out.answer(binary.LittleEndian.AppendUint16(b, uint16(status))) || notify
	}
	if notify {
		return true, n.channel.Notify()
	}
	return true, nil
}

// segments are where the parts of a frame are, and the frame that they make.
func segments(domain uint16, parts []outRequest, header int) (list []gntdev.Segment, frame []byte, err error) {
	size := parts[0].size
	first := size
	for _, q := range parts[1:] {
		first -= q.size
	}
	if first <= 0 {
		return nil, nil, fmt.Errorf("a frame of %d bytes has parts of more", size)
	}
	frame = make([]byte, header+size)
	rest := frame[header:]
	for i, q := range parts {
		length := q.size
		if i == 0 {
			length = first
		}
		list = append(list, gntdev.Segment{Domain: domain, Ref: q.ref, Offset: int(q.offset), Bytes: rest[:length]})
		rest = rest[length:]
	}
	return list, frame, nil
}

func (n *Network) transmit(ctx context.Context, parts []outRequest) error {
	list, frame, err := segments(n.domain, parts, n.header)
	if err != nil {
		return err
	}
	if err := n.bus.Copy(list); err != nil {
		return err
	}
	if parts[0].flags&noChecksum != 0 {
		if err := completeChecksum(frame[n.header:]); err != nil {
			return err
		}
	}
	defer endWith(ctx, n.tap.SetWriteDeadline)()
	_, err = n.tap.Write(frame)
	return err
}

// fill moves frames from the tap to the guest until ctx ends. It takes none out of the
// tap before the guest has room for it.
func (n *Network) fill(ctx context.Context) error {
	defer endWith(ctx, n.tap.SetReadDeadline)()
	frame := make([]byte, frameLimit)
	for {
		room, err := n.in.waiting()
		if err != nil {
			return err
		}
		if !room {
			select {
			case <-n.woken:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		got, err := n.tap.Read(frame)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, unix.EBADFD):
			return nil // the tap is gone, and nothing more comes
		case err != nil:
			return fmt.Errorf("read from the tap: %w", err)
		}
		if got <= n.header || got-n.header > pageBytes {
			continue
		}
		if err := n.receive(frame[n.header:got]); err != nil {
			return err
		}
	}
}

const pageBytes = 4096

// receive gives the guest a frame, in the page that it has offered first.
func (n *Network) receive(frame []byte) error {
	var b [inSlot]byte
	if ok, err := n.in.next(b[:]); err != nil || !ok {
		return errors.Join(err, errRing)
	}
	// An answer: number, offset, flags, and the length or an error.
	answer := binary.LittleEndian.AppendUint64(nil, uint64(binary.LittleEndian.Uint16(b[:])))
	status := int16(len(frame))
	if err := n.bus.Copy([]gntdev.Segment{{Domain: n.domain, Ref: binary.LittleEndian.Uint32(b[4:]), Bytes: frame, Write: true}}); err != nil {
		status = netError
	}
	binary.LittleEndian.PutUint16(answer[6:], uint16(status))
	if n.in.answer(answer) {
		return n.channel.Notify()
	}
	return nil
}

// Close ends it.
func (n *Network) Close(ctx context.Context) error { return n.close(ctx, n.tap) }
