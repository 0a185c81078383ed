package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A fakeClone is a namespace with an interface whose frames are carried to and from a tap, as QEMU would.
type fakeClone struct {
	namespace *os.File
	handle    *netlink.Handle
}

func (c *fakeClone) inside(f func() error) error {
	return (&Network{namespace: c.namespace}).inside(f)
}

func newFakeClone(t *testing.T, plug *os.File) *fakeClone {
	t.Helper()
	namespace, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	clone := &fakeClone{namespace: namespace}
	var socket *os.File
	err = clone.inside(func() (err error) {
		if socket, err = openTap("eth0"); err != nil {
			return err
		}
		clone.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clone.handle.Close)
	if plug == nil {
		t.Cleanup(func() { socket.Close() })
		return clone
	}
	done := make(chan struct{}, 2)
	carry := func(to, from *os.File) {
		defer func() { done <- struct{}{} }()
		buffer := make([]byte, 65536+VNetHeader)
		for {
			size, err := from.Read(buffer)
			if err != nil {
				return
			}
			// A frame that the other side cannot take is lost, as frames are.
			_, _ = to.Write(buffer[:size])
		}
	}
	go carry(plug, socket)
	go carry(socket, plug)
	t.Cleanup(func() {
		socket.Close()
		_ = plug.SetReadDeadline(time.Unix(1, 0))
		<-done
		<-done
	})
	return clone
}

func (c *fakeClone) configure(t *testing.T, config GuestConfig) {
	t.Helper()
	if err := c.inside(func() error { return Configure(t.Context(), config) }); err != nil {
		t.Fatal(err)
	}
}

// identity is all of the interface that must not outlive it.
type identity struct {
	MAC                           string
	Addresses, Routes, Neighbours []string
}

// identity reads what there is.
func (c *fakeClone) identity(t *testing.T) (got identity) {
	t.Helper()
	link, err := c.handle.LinkByName("eth0")
	must(t, err)
	if link.Attrs().Flags&net.FlagUp == 0 {
		t.Error("the interface is down")
	}
	got.MAC = link.Attrs().HardwareAddr.String()
	addrs, err := c.handle.AddrList(link, netlink.FAMILY_V4)
	must(t, err)
	for _, addr := range addrs {
		got.Addresses = append(got.Addresses, fmt.Sprintf("%v broadcast %v label %s", addr.IPNet, addr.Broadcast, addr.Label))
	}
	routes, err := c.handle.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	must(t, err)
	for _, route := range routes {
		got.Routes = append(got.Routes, fmt.Sprintf("%v from %v via %v", route.Dst, route.Src, route.Gw))
	}
	neighbours, err := c.handle.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	must(t, err)
	for _, neighbour := range neighbours {
		if neighbour.State&netlink.NUD_NOARP == 0 { // that is multicast, which the kernel works out
			got.Neighbours = append(got.Neighbours, fmt.Sprintf("%v at %v, state %d", neighbour.IP, neighbour.HardwareAddr, neighbour.State))
		}
	}
	slices.Sort(got.Routes)
	slices.Sort(got.Neighbours)
	return got
}

// wanted is what a plan wants there to be.
func wanted(plan Plan, id int, members ...Member) identity {
	ip, subnet := plan.IP(id).String(), plan.Subnet.String()
	b := plan.Subnet.Addr().As4()
	b[2], b[3] = 255, 255
	broadcast := netip.AddrFrom4(b).String()
	want := identity{
		MAC:       plan.MAC(id).String(),
		Addresses: []string{fmt.Sprintf("%s/16 broadcast %s label eth0", ip, broadcast)},
		Routes: []string{
			fmt.Sprintf("%s from %s via <nil>", subnet, ip),
			fmt.Sprintf("%s/32 from %s via <nil>", ip, ip),
			fmt.Sprintf("%s/32 from %s via <nil>", broadcast, ip),
		},
	}
	for _, member := range members {
		want.Neighbours = append(want.Neighbours, fmt.Sprintf("%v at %v, state %d", member.IP, member.MAC, netlink.NUD_PERMANENT))
	}
	slices.Sort(want.Routes)
	slices.Sort(want.Neighbours)
	return want
}

func checkIdentity(t *testing.T, got, want identity) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the interface has\n%+v\nnot\n%+v", got, want)
	}
}

func TestConfigureReplacesIdentity(t *testing.T) {
	before, after := NewPlan("before"), NewPlan("after, with another subnet")
	if before == after {
		t.Fatal("choose other job ids")
	}
	clone := newFakeClone(t, nil)
	clone.configure(t, before.Guest(0, []int{0, 1, 2}))
	clone.configure(t, after.Guest(7, []int{7, 8}))
	checkIdentity(t, clone.identity(t), wanted(after, 7, after.HostMember(), after.Member(8)))
}

// A clone of a running machine comes with all that its parent had, and with what users of it may have added.
func TestConfigureReplacesALivingIdentity(t *testing.T) {
	plan := NewPlan("job")
	clone := newFakeClone(t, nil)
	clone.configure(t, plan.Guest(0, []int{0, 1, 2}))
	link, err := clone.handle.LinkByName("eth0")
	must(t, err)
	for address, label := range map[string]string{
		"192.0.2.1/24": "eth0", "192.0.2.2/24": "eth0", "198.51.100.1/24": "eth0:1", plan.IP(100).String() + "/16": "eth0:2",
	} {
		addr, err := netlink.ParseAddr(address)
		must(t, err)
		addr.Label = label
		must(t, clone.handle.AddrAdd(link, addr))
	}
	must(t, clone.handle.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: plan.Host().AsSlice()}))
	must(t, clone.handle.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_REACHABLE, IP: plan.IP(50).AsSlice(), HardwareAddr: plan.MAC(50),
	}))

	// It becomes a member that its parent had for a neighbour, and its parent is a neighbour now.
	clone.configure(t, plan.Guest(2, []int{0, 2, 3}))
	want := wanted(plan, 2, plan.HostMember(), plan.Member(0), plan.Member(3))
	checkIdentity(t, clone.identity(t), want)
	clone.configure(t, plan.Guest(2, []int{0, 2, 3}))
	checkIdentity(t, clone.identity(t), want)
}

func TestAddNeighbours(t *testing.T) {
	plan := NewPlan("job")
	clone := newFakeClone(t, nil)
	clone.configure(t, plan.Guest(0, []int{0, 1}))
	add := func(members ...Member) error {
		return clone.inside(func() error { return AddNeighbours(t.Context(), members) })
	}
	must(t, add(plan.Member(1), plan.Member(2), plan.Member(3)))
	must(t, add())
	want := wanted(plan, 0, plan.HostMember(), plan.Member(1), plan.Member(2), plan.Member(3))
	checkIdentity(t, clone.identity(t), want)
	if err := add(Member{Name: "x"}); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("a member without addresses: %v", err)
	}
	checkIdentity(t, clone.identity(t), want)
}

func TestChooseInterface(t *testing.T) {
	drivers := map[string]string{"eth0": guestDriver, "eth1": guestDriver, "docker0": "bridge", "tap0": "tun"}
	for names, want := range map[string]string{
		"eth0":              "eth0",
		"tap0":              "tap0", // whoever is alone is meant
		"docker0 tap0 eth0": "eth0",
		"docker0 tap0":      "",
		"eth0 eth1":         "",
	} {
		got, err := choose(strings.Fields(names), func(name string) string { return drivers[name] })
		if got != want || (err == nil) != (want != "") {
			t.Errorf("of %s: %q, %v", names, got, err)
		}
	}
}

func TestConfigureErrors(t *testing.T) {
	plan := NewPlan("job")
	good := plan.Guest(1, nil)
	clone := newFakeClone(t, nil)
	for name, test := range map[string]struct {
		config GuestConfig
		want   string
	}{
		"no MAC":     {GuestConfig{Address: good.Address}, "hardware address"},
		"group MAC":  {GuestConfig{Address: good.Address, MAC: net.HardwareAddr{1, 0, 0, 0, 0, 0}}, "hardware address"},
		"no address": {GuestConfig{MAC: good.MAC}, "IPv4"},
		"member":     {GuestConfig{MAC: good.MAC, Address: good.Address, Members: []Member{{Name: "x"}}}, `"x"`},
		"interface":  {GuestConfig{Interface: "eth9", MAC: good.MAC, Address: good.Address}, "eth9"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		err := clone.inside(func() error { return Configure(ctx, test.config) })
		cancel()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	var second *os.File
	err := clone.inside(func() (err error) {
		second, err = openTap("eth1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	err = clone.inside(func() error { return Configure(t.Context(), good) })
	if err == nil || !strings.Contains(err.Error(), "eth0, eth1") {
		t.Errorf("two interfaces: %v", err)
	}
	good.Interface = "eth1"
	clone.configure(t, good)
}

func TestConfigureWaitsForInterface(t *testing.T) {
	clone := newFakeClone(t, nil)
	config := NewPlan("job").Guest(1, nil)
	config.Interface = "eth1"
	late := make(chan *os.File, 1)
	go func() {
		time.Sleep(30 * time.Millisecond)
		_ = clone.inside(func() error {
			file, err := openTap("eth1")
			late <- file
			return err
		})
	}()
	clone.configure(t, config)
	(<-late).Close()
}

func TestConfigureMTUAndGateway(t *testing.T) {
	clone := newFakeClone(t, nil)
	plan := NewPlan(t.Name())
	config := plan.Guest(3, nil)
	for _, step := range []struct {
		mtu, want int
		gateway   netip.Addr
	}{{0, 1500, netip.Addr{}}, {1450, 1450, plan.Host()}, {0, 1450, netip.Addr{}}, {1430, 1430, plan.Host()}, {1430, 1430, plan.Host()}} {
		config.MTU, config.Gateway = step.mtu, step.gateway
		clone.configure(t, config)
		link, err := clone.handle.LinkByName("eth0")
		must(t, err)
		if link.Attrs().MTU != step.want {
			t.Errorf("MTU %d made %d", step.mtu, link.Attrs().MTU)
		}
		var gateways []netip.Addr
		routes, err := clone.handle.RouteList(link, netlink.FAMILY_V4)
		must(t, err)
		for _, route := range routes {
			if gateway, ok := netip.AddrFromSlice(route.Gw.To4()); ok {
				gateways = append(gateways, gateway)
			}
		}
		if step.gateway.IsValid() != (len(gateways) == 1 && gateways[0] == step.gateway) {
			t.Errorf("gateway %v made %v", step.gateway, gateways)
		}
	}
	for name, change := range map[string]func(*GuestConfig){
		"an MTU below nothing":          func(c *GuestConfig) { c.MTU = -1 },
		"an MTU that no packet can use": func(c *GuestConfig) { c.MTU = 1 << 16 },
		"a gateway that is elsewhere":   func(c *GuestConfig) { c.Gateway = netip.MustParseAddr("192.0.2.1") },
		"a gateway of IPv6":             func(c *GuestConfig) { c.Gateway = netip.MustParseAddr("2001:db8::1") },
	} {
		bad := plan.Guest(3, nil)
		change(&bad)
		if err := clone.inside(func() error { return Configure(t.Context(), bad) }); err == nil {
			t.Errorf("%s was configured", name)
		}
	}
}
