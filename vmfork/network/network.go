package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeName is the bridge inside the namespace. Every job's has the same name; no two are in the same namespace.
const bridgeName = "sf0"

// A Network is the private network of one job on this machine.
type Network struct {
	plan      Plan
	namespace *os.File // keeps the namespace alive

	// removals is held by what removes taps, before mu. The kernel takes some 15 ms for each, and what cannot wait so long
	// (HandOver, in a machine's pause) must not: so these have a socket of their own, and hold mu only for the table.
	removals sync.Mutex
	remover  *netlink.Handle

	mu     sync.Mutex
	handle *netlink.Handle // a netlink socket inside; nil after Close
	bridge netlink.Link
	filter filter
	plugs  map[int]*plug
	trunk  *trunk // to the other hosts, or nil
	way    *way   // out of the network, or nil
}

// Create makes the namespace with lo and the bridge, both up, and nothing else in it. See [Probe] for its errors.
func Create(ctx context.Context, plan Plan) (*Network, error) {
	if err := plan.Check(); err != nil {
		return nil, fmt.Errorf("create network: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create network: %w", err)
	}
	n := &Network{plan: plan, plugs: make(map[int]*plug)}
	if err := n.create(); err != nil {
		n.Close()
		return nil, fmt.Errorf("create network: %w", err)
	}
	return n, nil
}

func (n *Network) create() (err error) {
	if n.namespace, err = newNamespace(); err != nil {
		return fmt.Errorf("make network namespace: %w", namespaceError(err))
	}
	err = n.inside(func() (err error) {
		quietIPv6("all", "default")
		quietBridge()
		if n.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		n.remover, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open netlink sockets: %w", err)
	}

	lo, err := n.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := n.handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}

	// No spanning tree (the kernel's default): it would hold frames back for 30 seconds after a link comes up, and one
	// bridge makes no loop. No snooping: with no multicast querier around, it loses memberships.
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	attrs.HardwareAddr = n.plan.HostMAC()
	if err := n.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("make bridge: %w", bridgeError(err))
	}
	if n.bridge, err = n.handle.LinkByName(bridgeName); err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	if err := n.addFilter(lo); err != nil {
		return err
	}
	host := n.hostPrefix()
	if err := n.handle.AddrAdd(n.bridge, &netlink.Addr{IPNet: ipNet(host)}); err != nil {
		return fmt.Errorf("give the bridge address %v: %w", host, err)
	}
	if err := n.handle.LinkSetUp(n.bridge); err != nil {
		return fmt.Errorf("bring bridge up: %w", err)
	}
	return nil
}

// hostPrefix is the gateway's address with the subnet's length.
func (n *Network) hostPrefix() netip.Prefix {
	return netip.PrefixFrom(n.plan.Host(), n.plan.Subnet.Bits())
}

// Plan is the plan that the network was created with.
func (n *Network) Plan() Plan { return n.plan }

// Path names the namespace while the network is open, for "nsenter --net=PATH".
func (n *Network) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.namespace.Fd()) }

// Listen listens on the host's address for connections from the clones, TCP; port 0 takes a free one. The listener
// stays inside wherever it is used, and keeps the namespace alive until it is closed.
func (n *Network) Listen(ctx context.Context, port int) (net.Listener, error) {
	n.mu.Lock()
	here := n.gateway()
	n.mu.Unlock()
	if !here {
		return nil, errors.New("listen in private network: the host's address is on another host")
	}
	address := netip.AddrPortFrom(n.plan.Host(), uint16(port))
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	var listener net.Listener
	err := n.inside(func() (err error) {
		// An address that is literal is resolved, and its socket made, on this thread.
		listener, err = config.Listen(ctx, "tcp4", address.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in private network: %w", err)
	}
	return listener, nil
}

// ListenFile is Listen for a child process: the file is the listening socket, to be inherited through ExtraFiles and
// closed here. The address is the one that clones dial.
func (n *Network) ListenFile(ctx context.Context, port int) (*os.File, netip.AddrPort, error) {
	listener, err := n.Listen(ctx, port)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("pass on listener: %w", err)
	}
	return file, listener.Addr().(*net.TCPAddr).AddrPort(), nil
}

// Close removes all taps and lets go of the namespace. QEMU processes and listeners that are still there keep it, and
// it goes with the last of them. Close may be called twice.
func (n *Network) Close() error {
	n.removals.Lock()
	defer n.removals.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for id, p := range n.plugs {
		for _, t := range p.taps() {
			errs = append(errs, t.file.Close())
		}
		delete(n.plugs, id)
	}
	if n.handle != nil {
		n.handle.Close()
		n.handle = nil
	}
	if n.remover != nil {
		n.remover.Close()
		n.remover = nil
	}
	if n.way != nil {
		n.way.close()
		n.way = nil
	}
	n.filter.close()
	if n.trunk != nil {
		errs = append(errs, n.trunk.guard.close())
		n.trunk = nil
	}
	if n.namespace != nil {
		if err := n.namespace.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close network: %w", err)
	}
	return nil
}

// inside runs f on a thread that is in the namespace.
func (n *Network) inside(f func() error) error { return inNamespace(n.namespace, f) }

func inNamespace(namespace *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// newNamespace makes a network namespace that only the returned file holds.
func newNamespace() (file *os.File, err error) {
	err = onOwnThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		file, err = openNamespace()
		return err
	})
	return file, err
}

// onOwnThread runs f on a thread that f may move to another network namespace. The thread is brought back afterwards,
// or, when that fails, dropped: the runtime ends the thread of a goroutine that returns locked.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := openNamespace()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// openNamespace opens the network namespace of the calling thread. Not by process and thread id, as libraries do:
// SFLD is in a process namespace of its own, where its ids may not be those that the mounted /proc knows.
func openNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// quietIPv6 switches IPv6 off for interfaces of the calling thread's namespace. The private network is IPv4, and every
// link that comes up would otherwise talk of duplicate addresses and ask for routers. That is noise and no harm, so a
// kernel without IPv6, or a read-only /proc, is no error.
func quietIPv6(names ...string) {
	for _, name := range names {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	}
}

// quietBridge keeps frames between ports from the IP filters, to which some kernels show them too. The bridge's own have
// seen them. A kernel without that knows none of these switches.
func quietBridge() {
	for _, name := range []string{"iptables", "ip6tables", "arptables"} {
		_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0)
	}
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
