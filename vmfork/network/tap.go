package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VNetHeader is the size in bytes of the struct virtio_net_hdr before every frame that is read from or written to a tap.
// QEMU finds that out by itself.
const VNetHeader = 10

// queueLength is how many frames the kernel keeps for a tap that nobody reads. It has to last for the pause of a live
// fork: TestQueueOutlastsAPause says how much a sender does in 100 ms. Debian's Linux 6.1 takes no longer one (ERANGE).
const queueLength = 32767

// A plug is one member's place in the bridge.
type plug struct {
	tap    *tap // the member's
	spare  *tap // the successor's in a live fork, otherwise nil
	handed bool // the member's frames go to the spare
	gone   bool // it is being removed
}

// taps are the plug's one or two.
func (p *plug) taps() []*tap {
	if p.spare == nil {
		return []*tap{p.tap}
	}
	return []*tap{p.tap, p.spare}
}

// A tap is a device on the bridge, and the descriptor behind it.
type tap struct {
	file *os.File
	link netlink.Link
	ip   netip.Addr // the member's
}

// AddTap makes the tap of a member: on the bridge, down, and gone when its last descriptor is closed. The file stays the
// Network's, so that the tap outlives a QEMU process: pass it on, do not close it. The id of a member that was removed
// may be used again. See [Probe] for errors.
func (n *Network) AddTap(id int) (*os.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("add tap: %w", err)
	}
	if n.handle == nil {
		return nil, fmt.Errorf("add tap of member %d: %w", id, net.ErrClosed)
	}
	if n.plugs[id] != nil {
		return nil, fmt.Errorf("add tap of member %d: it has one", id)
	}
	if err := n.forget(id); err != nil {
		return nil, fmt.Errorf("add tap of member %d: forget where it was: %w", id, err)
	}
	t, err := n.addTap(fmt.Sprintf("tap%d", id), n.plan.IP(id))
	if err == nil {
		if err = n.point(id, t); err != nil {
			t.file.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("add tap of member %d: %w", id, err)
	}
	n.plugs[id] = &plug{tap: t}
	return t.file, nil
}

// addTap makes a tap that is on the bridge, by which only the member with this address can send, and that the bridge knows
// no address behind.
func (n *Network) addTap(name string, ip netip.Addr) (_ *tap, err error) {
	t := &tap{ip: ip}
	// A tap is born in the namespace of the thread that opens the device.
	err = n.inside(func() (err error) {
		t.file, err = openTap(name)
		return err
	})
	if err != nil {
		return nil, tunError(err)
	}
	defer func() {
		if err != nil {
			t.file.Close()
		}
	}()
	if t.link, err = n.handle.LinkByName(name); err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := n.handle.LinkSetTxQLen(t.link, queueLength); err != nil {
		return nil, fmt.Errorf("make the queue of %s longer: %w", name, err)
	}
	if n.trunk != nil {
		if err := n.handle.LinkSetMTU(t.link, n.trunk.fabric.MTU); err != nil {
			return nil, fmt.Errorf("set the MTU of %s to %d: %w", name, n.trunk.fabric.MTU, err)
		}
	}
	if err := n.handle.LinkSetMaster(t.link, n.bridge); err != nil {
		return nil, fmt.Errorf("attach %s to the bridge: %w", name, bridgeError(err))
	}
	// The plan knows where every MAC address is. So the bridge need neither learn nor try all ports, and a member cannot
	// draw another's frames to itself by sending with the other's address.
	if err := n.handle.LinkSetLearning(t.link, false); err != nil {
		return nil, fmt.Errorf("stop learning on %s: %w", name, err)
	}
	if err := n.handle.LinkSetFlood(t.link, false); err != nil {
		return nil, fmt.Errorf("stop flooding to %s: %w", name, err)
	}
	if err := n.filter.admit(t); err != nil {
		return nil, err
	}
	return t, nil
}

// point makes the bridge send a member's frames to t, from one frame to the next: where it knows the address already, it
// changes the port in the entry that it has. The host is made to know the address without having asked, so that nobody
// else can answer.
func (n *Network) point(id int, t *tap) error {
	err := n.handle.NeighSet(&netlink.Neigh{
		LinkIndex:    t.link.Attrs().Index,
		Family:       unix.AF_BRIDGE,
		Flags:        netlink.NTF_MASTER,
		State:        netlink.NUD_NOARP, // "static" of bridge(8)
		HardwareAddr: n.plan.MAC(id),
	})
	if err != nil {
		return fmt.Errorf("enter %v into the bridge's table: %w", n.plan.MAC(id), err)
	}
	if !n.gateway() {
		return nil
	}
	if err := n.handle.NeighSet(n.neighbour(id)); err != nil {
		return fmt.Errorf("make member a neighbour of the host: %w", err)
	}
	return nil
}

// neighbour is a member as the host knows it.
func (n *Network) neighbour(id int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    n.bridge.Attrs().Index,
		Family:       netlink.FAMILY_V4,
		State:        netlink.NUD_PERMANENT,
		IP:           n.plan.IP(id).AsSlice(),
		HardwareAddr: n.plan.MAC(id),
	}
}

// openTap makes a tap device in the calling thread's namespace, not persistent.
func openTap(name string) (*os.File, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	// Only now: the poller finds a descriptor that is no tap yet in a state of error, and never looks again.
	return os.NewFile(uintptr(fd), name), nil
}

// Up lets the frames of a member through. It is for when the member has its identity.
func (n *Network) Up(id int) error {
	return n.withPlug("open", id, func(p *plug) error {
		if p.handed {
			return n.handle.LinkSetUp(p.spare.link)
		}
		return n.handle.LinkSetUp(p.tap.link)
	})
}

// Down stops the frames of a member, both ways.
func (n *Network) Down(id int) error {
	return n.withPlug("shut", id, func(p *plug) error {
		var errs []error
		for _, t := range p.taps() {
			errs = append(errs, n.handle.LinkSetDown(t.link))
		}
		return errors.Join(errs...)
	})
}

// Remove takes a member's tap away, and its spare, also from a QEMU that still has them open: that one is unplugged. The
// id is free afterwards.
func (n *Network) Remove(id int) error {
	n.removals.Lock()
	defer n.removals.Unlock()
	var taps []*tap
	err := n.withPlug("remove", id, func(p *plug) error {
		p.gone = true
		taps = p.taps()
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range taps {
		errs = append(errs, n.unplug(t))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.handle.NeighDel(n.neighbour(id))
	delete(n.plugs, id)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove tap of member %d: %w", id, err)
	}
	return nil
}

// unplug deletes a tap, and with it what the bridge knows to be behind it. Its caller holds removals.
func (n *Network) unplug(t *tap) error {
	return errors.Join(n.remover.LinkDel(t.link), t.file.Close(), n.filter.expel(t))
}

// withPlug runs f with mu held.
func (n *Network) withPlug(verb string, id int, f func(*plug) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.plugs[id]
	if n.handle == nil || p == nil || p.gone {
		return fmt.Errorf("%s tap of member %d: there is none", verb, id)
	}
	if err := f(p); err != nil {
		return fmt.Errorf("%s tap of member %d: %w", verb, id, err)
	}
	return nil
}
