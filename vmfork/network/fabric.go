package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// maxVNI is the highest number of a VXLAN: it has 24 bits.
	maxVNI = 1<<24 - 1
	// The ports that VXLAN packets come from. None but root may send from one of them, see guard.
	lowestSource, highestSource = 512, 1023
	// maxMTU is what even a network with large frames carries, and minMTU what any does (RFC 8200).
	maxMTU, minMTU = 9000, 1280
)

// A Fabric is what joins the bridges of a job's hosts: a VXLAN (RFC 7348) over the network that the hosts share, the
// underlay. Every host of the job has the same VNI, Port and MTU; the other fields are its own.
type Fabric struct {
	VNI   uint32       // the VXLAN's number, 1…2²⁴-1; no other job on these hosts may have it with the same port
	Local netip.Addr   // this host's address on the underlay, IPv4 or IPv6
	Port  uint16       // UDP
	Hosts []netip.Addr // the others' addresses, of Local's family; where Gateway is false, the first has the gateway
	// Gateway says that this host's bridge has the address Plan.Host: one host's has.
	Gateway bool
	// MTU is the size in bytes of the largest IP packet on the job's network; 0 is FabricMTU of Local, which is right
	// where all hosts' underlay interfaces have the same. Give it to the members too ([GuestConfig]).
	MTU int
}

func (f *Fabric) check() error {
	if f.VNI == 0 || f.VNI > maxVNI {
		return fmt.Errorf("VNI %d is not between 1 and %d", f.VNI, maxVNI)
	}
	if f.Port == 0 {
		return errors.New("there is no UDP port 0")
	}
	if f.MTU != 0 && (f.MTU < minMTU || f.MTU > maxMTU) {
		return fmt.Errorf("an MTU of %d is not between %d and %d", f.MTU, minMTU, maxMTU)
	}
	if len(f.Hosts) == 0 {
		return errors.New("there is no other host")
	}
	known := map[netip.Addr]bool{}
	for _, host := range append([]netip.Addr{f.Local}, f.Hosts...) {
		// A link-local address needs an interface to go with it, and one that is IPv4 in disguise looks like two hosts.
		if !host.IsGlobalUnicast() || host.Zone() != "" || host.Is4In6() {
			return fmt.Errorf("%v is no address of a host on a shared network", host)
		}
		if host.Is4() != f.Local.Is4() {
			return fmt.Errorf("host %v is not of the address family of %v", host, f.Local)
		}
		if known[host] {
			return fmt.Errorf("host %v is there twice", host)
		}
		known[host] = true
	}
	return nil
}

// overhead is what VXLAN puts around an IP packet: an Ethernet header, its own, UDP's and IP's.
func overhead(underlay netip.Addr) int {
	if underlay.Is4() {
		return 14 + 8 + 8 + 20
	}
	return 14 + 8 + 8 + 40
}

// FabricMTU is the largest MTU of a job's network that this host can be part of by its address local: the MTU of the
// interface that has the address, less what VXLAN takes (50 bytes, on IPv6 70). All hosts must use the smallest of theirs.
func FabricMTU(local netip.Addr) (int, error) {
	home, err := openNamespace()
	if err != nil {
		return 0, fmt.Errorf("find the MTU of the underlay: %w", err)
	}
	defer home.Close()
	handle, err := routeHandle(home)
	if err != nil {
		return 0, fmt.Errorf("find the MTU of the underlay: %w", err)
	}
	defer handle.Close()
	return fabricMTU(handle, local)
}

func fabricMTU(handle *netlink.Handle, local netip.Addr) (int, error) {
	family := netlink.FAMILY_V4
	if local.Is6() {
		family = netlink.FAMILY_V6
	}
	addrs, err := handle.AddrList(nil, family)
	if err != nil {
		return 0, fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, addr := range addrs {
		if !addr.IP.Equal(local.AsSlice()) {
			continue
		}
		link, err := handle.LinkByIndex(addr.LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("find the interface with address %v: %w", local, err)
		}
		mtu := min(link.Attrs().MTU-overhead(local), maxMTU)
		if mtu < minMTU {
			return 0, fmt.Errorf("the MTU of %s is %d: the hosts' network needs %d", link.Attrs().Name, link.Attrs().MTU, minMTU+overhead(local))
		}
		return mtu, nil
	}
	return 0, fmt.Errorf("address %v is not one of this host's", local)
}

// routeHandle opens a netlink socket in a namespace.
func routeHandle(namespace *os.File) (handle *netlink.Handle, err error) {
	err = inNamespace(namespace, func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return handle, err
}

// A trunk is the port of the bridge that leads to the other hosts.
type trunk struct {
	fabric Fabric
	link   netlink.Link
	guard  *nft // what lets only the fabric's hosts in; the kernel removes it with this socket
	far    map[int]netip.Addr
}

// Join plugs this host's bridge into the network of the job's hosts. It is for between Create and the first AddTap, on
// each of them, and at most once. The namespace of the calling thread is the one with the underlay.
//
// Broadcasts go to every other host. Frames for members that no call of [Network.Locate] told of do, too.
func (n *Network) Join(ctx context.Context, f Fabric) error {
	if err := f.check(); err != nil {
		return fmt.Errorf("join hosts' networks: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("join hosts' networks: %w", err)
	}
	home, err := openNamespace()
	if err != nil {
		return fmt.Errorf("join hosts' networks: %w", err)
	}
	defer home.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.handle == nil:
		return fmt.Errorf("join hosts' networks: %w", net.ErrClosed)
	case n.trunk != nil:
		return errors.New("join hosts' networks: they are joined")
	case len(n.plugs) > 0:
		return errors.New("join hosts' networks: there are taps, which have to come later")
	}
	t := &trunk{fabric: f, far: make(map[int]netip.Addr)}
	if err := n.join(t, home); err != nil {
		n.part(t)
		return fmt.Errorf("join hosts' networks: %w", err)
	}
	n.trunk = t
	return nil
}

func (n *Network) join(t *trunk, home *os.File) error {
	underlay, err := routeHandle(home)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer underlay.Close()
	mtu, err := fabricMTU(underlay, t.fabric.Local)
	if err != nil {
		return err
	}
	if t.fabric.MTU == 0 {
		t.fabric.MTU = mtu
	}
	if t.fabric.MTU > mtu {
		return fmt.Errorf("an MTU of %d is more than the %d that the interface with %v has room for", t.fabric.MTU, mtu, t.fabric.Local)
	}
	if t.guard, err = newGuard(home, t.fabric); err != nil {
		return fmt.Errorf("shut the underlay to strangers: %w", err)
	}
	if err := n.addTrunk(t, underlay); err != nil {
		return err
	}
	if !t.fabric.Gateway {
		if err := n.yieldGateway(t); err != nil {
			return err
		}
	}
	if err := n.handle.LinkSetMTU(n.bridge, t.fabric.MTU); err != nil {
		return fmt.Errorf("set the bridge's MTU to %d: %w", t.fabric.MTU, err)
	}
	if err := n.filter.admitHosts(t.link); err != nil {
		return err
	}
	if err := n.handle.LinkSetUp(t.link); err != nil {
		return fmt.Errorf("bring VXLAN device up: %w", vxlanUpError(err))
	}
	return nil
}

// addTrunk makes the VXLAN device, which knows the other hosts but is down yet. The request comes from the host's
// namespace, where the packets' socket is to be, and the device is born in the job's: there is no moment at which it is
// the host's, and it ends with the job's.
func (n *Network) addTrunk(t *trunk, underlay *netlink.Handle) error {
	attrs := netlink.NewLinkAttrs()
	// The kernel looks first whether the host has one of this name.
	attrs.Name = fmt.Sprintf("sf-%06x", t.fabric.VNI)
	attrs.MTU = t.fabric.MTU
	attrs.Namespace = netlink.NsFd(n.namespace.Fd())
	err := underlay.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(t.fabric.VNI), SrcAddr: t.fabric.Local.AsSlice(), Port: int(t.fabric.Port),
		PortLow: lowestSource, PortHigh: highestSource,
		UDPCSum: true, // an outer checksum is what network cards know how to work with
	})
	if err != nil {
		return fmt.Errorf("make VXLAN device: %w", vxlanError(err))
	}
	if t.link, err = n.handle.LinkByName(attrs.Name); err != nil {
		return fmt.Errorf("find VXLAN device: %w", err)
	}
	for _, host := range t.fabric.Hosts {
		// What has no entry of its own goes to all that this address has.
		if err := n.handle.NeighAppend(t.entry(make(net.HardwareAddr, 6), host)); err != nil {
			return fmt.Errorf("enter host %v into the VXLAN's table: %w", host, err)
		}
	}
	if err := n.handle.LinkSetMaster(t.link, n.bridge); err != nil {
		return fmt.Errorf("attach VXLAN device to the bridge: %w", err)
	}
	if err := n.handle.LinkSetLearning(t.link, false); err != nil {
		return fmt.Errorf("stop learning on the VXLAN device: %w", err)
	}
	return nil
}

// part undoes join.
func (n *Network) part(t *trunk) {
	if t.link != nil {
		_ = n.handle.LinkDel(t.link)
	}
	if t.guard != nil {
		t.guard.close()
	}
}

// yieldGateway takes the gateway's addresses from this host's bridge. Its frames, if ever it has one to send, must not
// come from the address of another host's bridge, nor those for that one end here.
func (n *Network) yieldGateway(t *trunk) error {
	if err := n.handle.AddrDel(n.bridge, &netlink.Addr{IPNet: ipNet(n.hostPrefix())}); err != nil {
		return fmt.Errorf("take the bridge's address: %w", err)
	}
	own := make(net.HardwareAddr, 6)
	_, _ = rand.Read(own)
	own[0], own[1] = 0x02, 0x5e // the members' and the gateway's begin with 02:5f
	if err := n.handle.LinkSetHardwareAddr(n.bridge, own); err != nil {
		return fmt.Errorf("change the bridge's hardware address: %w", err)
	}
	return n.send(t, n.plan.HostMAC(), t.fabric.Hosts[0])
}

// entry is what the VXLAN device knows of an address: the host that it is on.
func (t *trunk) entry(mac net.HardwareAddr, host netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    t.link.Attrs().Index,
		Family:       unix.AF_BRIDGE,
		Flags:        netlink.NTF_SELF,
		State:        netlink.NUD_NOARP | netlink.NUD_REACHABLE,
		IP:           host.AsSlice(),
		HardwareAddr: mac,
	}
}

// send makes this host's frames for an address go to another host, and to no other any more.
func (n *Network) send(t *trunk, mac net.HardwareAddr, host netip.Addr) error {
	entry := t.entry(mac, host)
	entry.Flags |= netlink.NTF_MASTER // the bridge's table, too
	if err := n.handle.NeighSet(entry); err != nil {
		return fmt.Errorf("enter %v on host %v into the tables: %w", mac, host, err)
	}
	return nil
}

// Locate says which other host carries a member. To say it again, or something else, is no error; that the member is here
// is one: then Remove comes first. AddTap ends it.
func (n *Network) Locate(member int, host netip.Addr) error {
	if err := CheckID(member); err != nil {
		return fmt.Errorf("locate member: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.trunk
	switch {
	case n.handle == nil:
		return fmt.Errorf("locate member %d: %w", member, net.ErrClosed)
	case t == nil:
		return fmt.Errorf("locate member %d: this host is on its own", member)
	case !t.has(host):
		return fmt.Errorf("locate member %d: host %v is not one of the job's", member, host)
	case n.plugs[member] != nil:
		return fmt.Errorf("locate member %d on host %v: it has a tap on this one", member, host)
	}
	if err := n.send(t, n.plan.MAC(member), host); err != nil {
		return fmt.Errorf("locate member %d: %w", member, err)
	}
	t.far[member] = host
	if n.gateway() {
		if err := n.handle.NeighSet(n.neighbour(member)); err != nil {
			return fmt.Errorf("locate member %d: make it a neighbour of the host: %w", member, err)
		}
	}
	return nil
}

func (t *trunk) has(host netip.Addr) bool {
	for _, other := range t.fabric.Hosts {
		if other == host {
			return true
		}
	}
	return false
}

// Forget undoes Locate, and is no error where there was none.
func (n *Network) Forget(member int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.handle == nil {
		return nil
	}
	if err := n.forget(member); err != nil {
		return fmt.Errorf("forget where member %d is: %w", member, err)
	}
	return nil
}

// forget takes a member that is on another host out of the tables. Its caller holds mu.
func (n *Network) forget(member int) error {
	if n.trunk == nil || !n.trunk.far[member].IsValid() {
		return nil
	}
	if n.gateway() {
		_ = n.handle.NeighDel(n.neighbour(member))
	}
	entry := n.trunk.entry(n.plan.MAC(member), n.trunk.far[member])
	delete(n.trunk.far, member)
	if err := n.handle.NeighDel(entry); err != nil {
		return err
	}
	entry.Flags, entry.IP = netlink.NTF_MASTER, nil
	return n.handle.NeighDel(entry)
}

// MTU is the largest IP packet that members may send, in bytes; 0 on a host on its own, where they keep what they have.
func (n *Network) MTU() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.trunk == nil {
		return 0
	}
	return n.trunk.fabric.MTU
}

// gateway says whether this host's bridge has the address Plan.Host. Its caller holds mu.
func (n *Network) gateway() bool { return n.trunk == nil || n.trunk.fabric.Gateway }
