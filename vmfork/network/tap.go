package network

import (
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// VNetHeader is the size in bytes of the struct virtio_net_hdr before every frame that is read from or written to a tap.
// QEMU finds that out by itself.
const VNetHeader = 10

// A tap is one clone's plug in the bridge.
type tap struct {
	file *os.File
	link netlink.Link
}

// AddTap makes the tap of a clone: on the bridge, down, and gone when its last descriptor is closed. The file stays the
// Network's, so that the tap outlives a QEMU process (a parent goes on in a new one after a fork, with the same tap):
// pass it on, do not close it. See [Probe] for errors.
func (n *Network) AddTap(id int) (*os.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("add tap: %w", err)
	}
	if n.handle == nil {
		return nil, fmt.Errorf("add tap of clone %d: %w", id, net.ErrClosed)
	}
	if n.taps[id] != nil {
		return nil, fmt.Errorf("add tap of clone %d: it has one", id)
	}
	t, err := n.addTap(id)
	if err != nil {
		return nil, fmt.Errorf("add tap of clone %d: %w", id, err)
	}
	n.taps[id] = t
	return t.file, nil
}

func (n *Network) addTap(id int) (t *tap, err error) {
	name := fmt.Sprintf("tap%d", id)
	t = new(tap)
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
	if err := n.handle.LinkSetMaster(t.link, n.bridge); err != nil {
		return nil, fmt.Errorf("attach %s to the bridge: %w", name, bridgeError(err))
	}
	// The plan knows where every MAC address is. So the bridge need neither learn nor try all ports, and a clone cannot
	// draw another's frames to itself by sending with the other's address.
	if err := n.handle.LinkSetLearning(t.link, false); err != nil {
		return nil, fmt.Errorf("stop learning on %s: %w", name, err)
	}
	if err := n.handle.LinkSetFlood(t.link, false); err != nil {
		return nil, fmt.Errorf("stop flooding to %s: %w", name, err)
	}
	err = n.handle.NeighSet(&netlink.Neigh{
		LinkIndex:    t.link.Attrs().Index,
		Family:       unix.AF_BRIDGE,
		Flags:        netlink.NTF_MASTER,
		State:        netlink.NUD_NOARP, // "static" of bridge(8)
		HardwareAddr: n.plan.MAC(id),
	})
	if err != nil {
		return nil, fmt.Errorf("enter %v into the bridge's table: %w", n.plan.MAC(id), err)
	}
	if err := n.handle.NeighSet(n.neighbour(id)); err != nil {
		return nil, fmt.Errorf("make clone a neighbour of the host: %w", err)
	}
	return t, nil
}

// neighbour is a clone as the host knows it, without having asked, so that nobody else can answer.
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

// Up lets the frames of a clone through. It is for when the clone has its identity.
func (n *Network) Up(id int) error {
	return n.withTap("open", id, func(t *tap) error { return n.handle.LinkSetUp(t.link) })
}

// Down stops the frames of a clone, both ways. What is queued in the tap is dropped.
func (n *Network) Down(id int) error {
	return n.withTap("shut", id, func(t *tap) error { return n.handle.LinkSetDown(t.link) })
}

// Remove takes the tap of a clone away, also from a QEMU that still has it open: that one is unplugged.
func (n *Network) Remove(id int) error {
	return n.withTap("remove", id, func(t *tap) error {
		delete(n.taps, id)
		_ = n.handle.NeighDel(n.neighbour(id))
		err := n.handle.LinkDel(t.link)
		if closeErr := t.file.Close(); err == nil {
			err = closeErr
		}
		return err
	})
}

func (n *Network) withTap(verb string, id int, f func(*tap) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.taps[id]
	if n.handle == nil || t == nil {
		return fmt.Errorf("%s tap of clone %d: there is none", verb, id)
	}
	if err := f(t); err != nil {
		return fmt.Errorf("%s tap of clone %d: %w", verb, id, err)
	}
	return nil
}
