package network

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A testHost is a namespace with one interface, as a host has, on the switch that the hosts share.
type testHost struct {
	namespace *os.File
	handle    *netlink.Handle
	address   netip.Addr
}

func (h *testHost) inside(f func() error) error { return inNamespace(h.namespace, f) }

func newTestNamespace(t *testing.T) (*os.File, *netlink.Handle) {
	t.Helper()
	namespace, err := newNamespace()
	must(t, err)
	t.Cleanup(func() { namespace.Close() })
	handle, err := routeHandle(namespace)
	must(t, err)
	t.Cleanup(handle.Close)
	lo, err := handle.LinkByName("lo")
	must(t, err)
	must(t, handle.LinkSetUp(lo))
	return namespace, handle
}

// newTestHosts makes hosts with the addresses 192.0.2.1 and so on, or 2001:db8::1.
func newTestHosts(t *testing.T, count int, v6 bool) []*testHost {
	t.Helper()
	_, handle := newTestNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "switch"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	must(t, handle.LinkAdd(bridge))
	must(t, handle.LinkSetUp(bridge))
	var hosts []*testHost
	for i := range count {
		h := &testHost{address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}
		prefix := netip.PrefixFrom(h.address, 24)
		if v6 {
			h.address = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
			prefix = netip.PrefixFrom(h.address, 64)
		}
		h.namespace, h.handle = newTestNamespace(t)
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("port%d", i)
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.namespace.Fd())}
		must(t, handle.LinkAdd(veth))
		must(t, handle.LinkSetMaster(veth, bridge))
		must(t, handle.LinkSetUp(veth))
		addAddress(t, h, prefix)
		hosts = append(hosts, h)
	}
	// Hosts have been up for a while when a job comes; until then, what they send is lost.
	for i, h := range hosts {
		waitUp(t, h.handle, "eth0")
		waitUp(t, handle, fmt.Sprintf("port%d", i))
	}
	waitUp(t, handle, "switch")
	return hosts
}

// waitUp waits until the kernel's worker has seen that an interface is up.
func waitUp(t *testing.T, handle *netlink.Handle, name string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := handle.LinkByName(name)
		must(t, err)
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come up", name)
		}
	}
}

func addAddress(t *testing.T, h *testHost, prefix netip.Prefix) {
	t.Helper()
	eth0, err := h.handle.LinkByName("eth0")
	must(t, err)
	// Without the flag, an IPv6 address is of no use for a second or two.
	must(t, h.handle.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(prefix), Flags: unix.IFA_F_NODAD}))
	must(t, h.handle.LinkSetUp(eth0))
}

// joined makes a network on each host; the first has the gateway.
func joined(t *testing.T, hosts []*testHost) []*Network {
	t.Helper()
	var networks []*Network
	for i, h := range hosts {
		n := create(t)
		must(t, h.inside(func() error { return n.Join(t.Context(), fabricOf(hosts, i)) }))
		networks = append(networks, n)
	}
	return networks
}

func fabricOf(hosts []*testHost, i int) Fabric {
	f := Fabric{VNI: 0xabcdef, Local: hosts[i].address, Port: 4789, Gateway: i == 0}
	for j, other := range hosts {
		if j != i {
			f.Hosts = append(f.Hosts, other.address)
		}
	}
	return f
}

func locate(t *testing.T, n *Network, host *testHost, members ...int) {
	t.Helper()
	for _, m := range members {
		must(t, n.Locate(m, host.address))
	}
}

// counted is how many packets a host has sent on the underlay.
func (h *testHost) counted(t *testing.T) uint64 {
	t.Helper()
	eth0, err := h.handle.LinkByName("eth0")
	must(t, err)
	return eth0.Attrs().Statistics.TxPackets
}

func TestFrameCrossesHosts(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			hosts := newTestHosts(t, 3, v6)
			nets := joined(t, hosts)
			plan := nets[0].plan
			if want := 1500 - overhead(hosts[0].address); nets[0].MTU() != want {
				t.Errorf("the MTU is %d, want %d", nets[0].MTU(), want)
			}
			// Members 0 and 1 on host 0, 2 on host 1, 3 on host 2.
			var taps []*os.File
			for member, at := range []int{0, 0, 1, 2} {
				taps = append(taps, addTap(t, nets[at], member))
				up(t, nets[at], member)
				for i, n := range nets {
					if i != at && member != 3 { // where that is, nobody says
						locate(t, n, hosts[at], member)
					}
				}
			}
			for from := range taps {
				for to := range taps {
					if from == to {
						continue
					}
					want := frame(plan.MAC(to), plan.MAC(from), fmt.Sprintf("from %d to %d", from, to))
					send(t, taps[from], want)
					if got := received(t, taps[to]); got == nil || !bytes.Equal(got[VNetHeader:], want[VNetHeader:]) {
						t.Errorf("%d to %d: received %q", from, to, got)
					}
					for i, tap := range taps {
						if got := stray(t, tap); got != nil {
							t.Errorf("%d to %d: %d received %q", from, to, i, got)
						}
					}
				}
				send(t, taps[from], frame(broadcast, plan.MAC(from), "to all"))
				for i, tap := range taps {
					if i != from && received(t, tap) == nil {
						t.Errorf("%d to all: %d received nothing", from, i)
					}
				}
				for i, tap := range taps {
					if got := stray(t, tap); got != nil {
						t.Errorf("%d to all: %d received %q", from, i, got)
					}
				}
			}
			// What two members of one host say to each other stays there, and what is for one host goes to no other.
			counts := func() (c []uint64) {
				for _, h := range hosts {
					c = append(c, h.counted(t))
				}
				return c
			}
			before := counts()
			for range 100 {
				send(t, taps[0], frame(plan.MAC(1), plan.MAC(0), "within"))
				send(t, taps[2], frame(plan.MAC(0), plan.MAC(2), "to host 0"))
			}
			after := counts()
			if d := after[0] - before[0]; d > 20 {
				t.Errorf("host 0 sent %d packets", d)
			}
			if d := after[1] - before[1]; d < 100 || d > 120 {
				t.Errorf("host 1 sent %d packets for 100", d)
			}
		})
	}
}

// Clones on three hosts talk to each other and to the gateway, with packets of all sizes.
func TestClonesReachEachOtherAcrossHosts(t *testing.T) {
	hosts := newTestHosts(t, 3, false)
	nets := joined(t, hosts)
	plan := nets[0].plan
	var clones []*fakeClone
	for id := range 3 {
		clone := newFakeClone(t, addTap(t, nets[id], id))
		config := plan.Guest(id, []int{0, 1}) // that there is a third, they have to ask
		config.MTU = nets[id].MTU()
		clone.configure(t, config)
		up(t, nets[id], id)
		for i, n := range nets {
			if i != id {
				locate(t, n, hosts[id], id)
			}
		}
		clones = append(clones, clone)
	}
	listeners := map[string]net.Listener{}
	gateway, err := nets[0].Listen(t.Context(), 0)
	must(t, err)
	listeners["gateway"] = gateway
	for id, clone := range clones {
		must(t, clone.inside(func() (err error) {
			listeners[plan.Name(id)], err = net.Listen("tcp4", netip.AddrPortFrom(plan.IP(id), 0).String())
			return err
		}))
	}
	for name, listener := range listeners {
		defer listener.Close()
		go serve(listener, strings.Repeat(name, 20000))
		for id, clone := range clones {
			var got string
			err := clone.inside(func() (err error) {
				got, err = fetch(listener.Addr().String())
				return err
			})
			if want := strings.Repeat(name, 20000); err != nil || got != want {
				t.Errorf("%s from %s: %d bytes of %d (%v)", plan.Name(id), name, len(got), len(want), err)
			}
		}
	}
	if _, err := nets[1].Listen(t.Context(), 0); err == nil {
		t.Error("a host without the gateway's address listens on it")
	}
}

// A member goes on in a successor on its host while one of another host sends to it.
func TestHandOverAcrossHosts(t *testing.T) {
	hosts := newTestHosts(t, 2, false)
	nets := joined(t, hosts)
	plan := nets[0].plan
	from, current := addTap(t, nets[0], 1), addTap(t, nets[1], 2)
	locate(t, nets[0], hosts[1], 2)
	locate(t, nets[1], hosts[0], 1)
	up(t, nets[0], 1)
	up(t, nets[1], 2)
	for range 3 {
		next := spare(t, nets[1], 2)
		s := newSender(t, from, plan.MAC(2), plan.MAC(1), 16)
		s.more(t, 200)
		must(t, nets[1].HandOver(2))
		s.more(t, 200)
		must(t, nets[1].Retire(2))
		sent := s.stop()
		if got := await(t, next, sent, 10*time.Second); len(got) != sent {
			t.Errorf("sent %d frames, received %d", sent, len(got))
		}
		current = next
	}
	must(t, nets[1].Down(2))
	must(t, nets[1].Up(2))
	send(t, current, numbered(plan.MAC(1), plan.MAC(2), 7))
	if got := await(t, from, 1, 10*time.Second); len(got) != 1 {
		t.Errorf("received %v", got)
	}
}

// A member's number is used again on another host.
func TestMemberMovesBetweenHosts(t *testing.T) {
	hosts := newTestHosts(t, 3, false)
	nets := joined(t, hosts)
	plan := nets[0].plan
	from := addTap(t, nets[0], 1)
	up(t, nets[0], 1)
	for _, at := range []int{1, 2, 0, 1, 1} {
		tap := addTap(t, nets[at], 5)
		up(t, nets[at], 5)
		if at != 0 {
			locate(t, nets[0], hosts[at], 5)
		} else if err := nets[0].Locate(5, hosts[1].address); err == nil {
			t.Error("a member with a tap was located on another host")
		}
		send(t, from, numbered(plan.MAC(5), plan.MAC(1), 1))
		if got := await(t, tap, 1, 10*time.Second); len(got) != 1 {
			t.Errorf("on host %d: received %v", at, got)
		}
		must(t, nets[at].Remove(5))
	}
	must(t, nets[0].Forget(5))
	must(t, nets[0].Forget(5))
	entries, err := nets[0].handle.NeighList(0, unix.AF_BRIDGE)
	must(t, err)
	for _, e := range entries {
		if e.HardwareAddr.String() == plan.MAC(5).String() {
			t.Errorf("of a member that is forgotten there is still %v", e)
		}
	}
}

func TestFabricMTU(t *testing.T) {
	h := newTestHosts(t, 1, false)[0]
	eth0, err := h.handle.LinkByName("eth0")
	must(t, err)
	v6 := netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct{ link, v4, v6 int }{{1500, 1450, 1430}, {9000, 8950, 8930}, {65000, maxMTU, maxMTU}, {1330, 1280, 0}, {1329, 0, 0}} {
		must(t, h.handle.LinkSetMTU(eth0, c.link))
		if c.v4 == 1450 {
			addAddress(t, h, netip.PrefixFrom(v6, 64))
		}
		for local, want := range map[netip.Addr]int{h.address: c.v4, v6: c.v6} {
			var got int
			err := h.inside(func() (err error) {
				got, err = FabricMTU(local)
				return err
			})
			if got != want || (err == nil) != (want > 0) {
				t.Errorf("with an MTU of %d, %v can have %d (%v)", c.link, local, got, err)
			}
		}
	}
}

func TestFabricErrors(t *testing.T) {
	hosts := newTestHosts(t, 2, false)
	good := fabricOf(hosts, 0)
	for name, change := range map[string]func(*Fabric){
		"no VNI":             func(f *Fabric) { f.VNI = 0 },
		"VNI of 25 bits":     func(f *Fabric) { f.VNI = 1 << 24 },
		"no port":            func(f *Fabric) { f.Port = 0 },
		"no address":         func(f *Fabric) { f.Local = netip.Addr{} },
		"another's address":  func(f *Fabric) { f.Local = netip.MustParseAddr("192.0.2.77") },
		"no hosts":           func(f *Fabric) { f.Hosts = nil },
		"a host of IPv6":     func(f *Fabric) { f.Hosts = []netip.Addr{netip.MustParseAddr("2001:db8::1")} },
		"a host in disguise": func(f *Fabric) { f.Hosts = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.9")} },
		"itself":             func(f *Fabric) { f.Hosts = []netip.Addr{f.Local} },
		"a multicast group":  func(f *Fabric) { f.Hosts = []netip.Addr{netip.MustParseAddr("239.1.1.1")} },
		"a large MTU":        func(f *Fabric) { f.MTU = 1451 },
		"a small MTU":        func(f *Fabric) { f.MTU = 500 },
	} {
		n := create(t)
		f := good
		change(&f)
		if err := hosts[0].inside(func() error { return n.Join(t.Context(), f) }); err == nil {
			t.Errorf("%s: joined", name)
		}
		// It is as if nothing had been.
		must(t, hosts[0].inside(func() error { return n.Join(t.Context(), good) }))
		if err := n.Join(t.Context(), good); err == nil {
			t.Error("joined twice")
		}
		if err := n.Locate(1, netip.MustParseAddr("192.0.2.77")); err == nil {
			t.Error("a member is on a host that is not in the fabric")
		}
		must(t, n.Close())
		waitForNoVXLAN(t, hosts[0])
	}
	n := create(t)
	must(t, hosts[0].inside(func() error { return n.Join(t.Context(), good) }))
	other := create(t)
	if err := hosts[0].inside(func() error { return other.Join(t.Context(), good) }); err == nil {
		t.Error("two jobs of one host joined with one VNI")
	}
	good.VNI++
	must(t, hosts[0].inside(func() error { return other.Join(t.Context(), good) }))
}

// waitForNoVXLAN waits until the host has no socket for VXLAN packets any more. The kernel destroys a namespace, and the
// device with it, some time after its last user is gone.
func waitForNoVXLAN(t *testing.T, h *testHost) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		var sockets []byte
		must(t, h.inside(func() (err error) {
			sockets, err = os.ReadFile("/proc/thread-self/net/udp")
			return err
		}))
		if !bytes.Contains(sockets, []byte(":12B5 ")) { // 4789
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the host still has VXLAN: %s", sockets)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
