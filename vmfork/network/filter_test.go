package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mark is in every frame that must not arrive.
const mark = "this must not arrive"

// ether is a frame as a guest would send it, marked, of any type.
func ether(to, from net.HardwareAddr, parts ...[]byte) []byte {
	f := make([]byte, VNetHeader, 256)
	f = append(append(f, to...), from...)
	for _, part := range parts {
		f = append(f, part...)
	}
	return append(f, fmt.Sprintf("%-60s", mark)...)
}

// arp is an ARP packet, with its type before it.
func arp(operation uint16, mac net.HardwareAddr, ip netip.Addr, targetMAC net.HardwareAddr, targetIP netip.Addr) []byte {
	p := []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4}
	p = binary.BigEndian.AppendUint16(p, operation)
	p = append(append(p, mac...), ip.AsSlice()...)
	return append(append(p, targetMAC...), targetIP.AsSlice()...)
}

// udp is an IPv4 packet, with its type before it.
func udp(from, to netip.Addr, fromPort, toPort uint16) []byte {
	return append([]byte{8, 0}, packet(from.As4(), to.As4(), fromPort, toPort, mark)...)
}

// An ear is where frames can arrive.
type ear struct {
	name string
	hear func() ([]byte, error) // the next
}

func tapEar(name string, file *os.File) ear {
	buffer := make([]byte, 2048)
	return ear{name, func() ([]byte, error) {
		_ = file.SetReadDeadline(time.Now().Add(10 * time.Second))
		size, err := file.Read(buffer)
		return buffer[:size], err
	}}
}

// hostEars are what the host gets: all frames at the bridge, and what its IP makes of them.
func hostEars(t *testing.T, n *Network) []ear {
	t.Helper()
	const all = unix.ETH_P_ALL << 8 // in the order of the network
	var socket int
	var server net.PacketConn
	must(t, n.inside(func() (err error) {
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		if err := unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: n.bridge.Attrs().Index}); err != nil {
			return err
		}
		server, err = net.ListenPacket("udp4", ":7777")
		return err
	}))
	file := os.NewFile(uintptr(socket), "packets")
	t.Cleanup(func() { file.Close(); server.Close() })
	buffer := make([]byte, 2048)
	return []ear{tapEar("the bridge", file), {"the host's socket", func() ([]byte, error) {
		_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
		size, _, err := server.ReadFrom(buffer)
		return buffer[:size], err
	}}}
}

func TestHostileClone(t *testing.T) {
	hosts := newTestHosts(t, 2, false)
	nets := joined(t, hosts)
	plan := nets[0].plan
	evil, near, far := addTap(t, nets[0], 1), addTap(t, nets[0], 2), addTap(t, nets[1], 3)
	up(t, nets[0], 1, 2)
	up(t, nets[1], 3)
	locate(t, nets[0], hosts[1], 3)
	locate(t, nets[1], hosts[0], 1, 2)
	ears := append(hostEars(t, nets[0]), tapEar("a clone of the same host", near), tapEar("a clone of another host", far))

	me, gateway := plan.MAC(1), plan.HostMAC()
	myIP, gatewayIP := plan.IP(1), plan.Host()
	everybody := netip.MustParseAddr("255.255.255.255")
	unknown := net.HardwareAddr{2, 3, 4, 5, 6, 7}
	vlan := func(tag ...byte) []byte { return tag }
	group := func(last byte) net.HardwareAddr { return net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, last} }
	type attempt struct {
		name  string
		frame []byte
	}
	var attempts []attempt
	try := func(name string, f []byte) { attempts = append(attempts, attempt{name, f}) }

	for name, to := range map[string]struct {
		mac net.HardwareAddr
		ip  netip.Addr
	}{
		"the gateway": {gateway, gatewayIP}, "a near clone": {plan.MAC(2), plan.IP(2)}, "a far clone": {plan.MAC(3), plan.IP(3)},
		"everybody": {broadcast, everybody}, "a group": {net.HardwareAddr{1, 0, 0x5e, 1, 1, 1}, netip.MustParseAddr("239.1.1.1")},
	} {
		for who, id := range map[string]int{"a near clone": 2, "a far clone": 3, "nobody": 9} {
			try("to "+name+" with the MAC address of "+who, ether(to.mac, plan.MAC(id), udp(myIP, to.ip, 7777, 7777)))
			try("to "+name+" with the IP address of "+who, ether(to.mac, me, udp(plan.IP(id), to.ip, 7777, 7777)))
			try("to "+name+" as "+who, ether(to.mac, plan.MAC(id), udp(plan.IP(id), to.ip, 7777, 7777)))
			try("to "+name+" ARP for the IP address of "+who, ether(to.mac, me, arp(2, me, plan.IP(id), to.mac, to.ip)))
			try("to "+name+" ARP for the MAC address of "+who, ether(to.mac, me, arp(2, plan.MAC(id), myIP, to.mac, to.ip)))
			try("to "+name+" ARP in a frame from "+who, ether(to.mac, plan.MAC(id), arp(1, me, myIP, unknown, to.ip)))
		}
		try("to "+name+" as the gateway", ether(to.mac, gateway, udp(gatewayIP, to.ip, 7777, 7777)))
		try("to "+name+" with the gateway's IP address", ether(to.mac, me, udp(gatewayIP, to.ip, 7777, 7777)))
		try("to "+name+" ARP for the gateway", ether(to.mac, me, arp(2, me, gatewayIP, to.mac, to.ip)))
		try("to "+name+" ARP for the gateway, gratuitous", ether(to.mac, me, arp(1, me, gatewayIP, unknown, gatewayIP)))
		try("to "+name+" ARP with a short address", ether(to.mac, me, []byte{8, 6, 0, 1, 8, 0, 4, 4, 0, 2}, me, myIP.AsSlice()))
		try("to "+name+" reverse ARP", ether(to.mac, me, []byte{0x80, 0x35}, arp(4, me, myIP, me, myIP)[2:]))
		try("to "+name+" from no address", ether(to.mac, me, udp(netip.IPv4Unspecified(), to.ip, 68, 67)))
		try("to "+name+" from another job's subnet", ether(to.mac, me, udp(NewPlan("another job").IP(1), to.ip, 7777, 7777)))
		try("to "+name+" from outside", ether(to.mac, me, udp(netip.MustParseAddr("192.0.2.2"), to.ip, 7777, 7777)))
		try("to "+name+" a DHCP offer", ether(to.mac, me, udp(myIP, to.ip, 67, 68)))
		try("to "+name+" with a VLAN tag", ether(to.mac, me, vlan(0x81, 0, 0, 5), udp(myIP, to.ip, 7777, 7777)))
		try("to "+name+" with a priority tag", ether(to.mac, me, vlan(0x81, 0, 0xe0, 0), udp(myIP, to.ip, 7777, 7777)))
		try("to "+name+" with a provider's tag", ether(to.mac, me, vlan(0x88, 0xa8, 0, 5), udp(myIP, to.ip, 7777, 7777)))
		try("to "+name+" with two tags", ether(to.mac, me, vlan(0x88, 0xa8, 0, 5, 0x81, 0, 0, 5), udp(myIP, to.ip, 7777, 7777)))
		for _, kind := range []uint16{0x88b5, 0x8847, 0x8864, 0x888e, 0x88cc, 0x0026, 0} {
			try(fmt.Sprintf("to %s of type %#04x", name, kind), ether(to.mac, me, binary.BigEndian.AppendUint16(nil, kind), udp(myIP, to.ip, 7777, 7777)[2:]))
		}
		// IPv6 with ICMPv6: a router's advertisement, from fe80::1 to all nodes.
		advertisement := []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 76, 58, 255}
		advertisement = append(advertisement, netip.MustParseAddr("fe80::1").AsSlice()...)
		advertisement = append(advertisement, netip.MustParseAddr("ff02::1").AsSlice()...)
		advertisement = append(advertisement, 134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0)
		try("to "+name+" a router's advertisement", ether(to.mac, me, advertisement))
	}
	try("a router's advertisement", ether(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, me, []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, 58, 255}))
	try("from a group", ether(broadcast, net.HardwareAddr{1, 0, 0x5e, 1, 1, 1}, udp(myIP, everybody, 7777, 7777)))
	try("from everybody", ether(broadcast, broadcast, udp(myIP, everybody, 7777, 7777)))
	// What bridges take for themselves: the kernel keeps some of it for the host, and gives some to all ports.
	for last := range byte(16) {
		try(fmt.Sprintf("to group %d of bridges as another", last), ether(group(last), plan.MAC(2), udp(plan.IP(2), gatewayIP, 7777, 7777)))
		try(fmt.Sprintf("to group %d of bridges, a tree's root", last), ether(group(last), me, []byte{0, 38, 0x42, 0x42, 3, 0, 0, 0, 0, 0}))
	}

	deaf := map[string]bool{}
	for i, a := range attempts {
		send(t, evil, a.frame)
		// What is sent by the rules comes behind it, and tells when to stop listening.
		send(t, evil, numbered(broadcast, me, i))
		for _, e := range ears {
			for !deaf[e.name] {
				got, err := e.hear()
				if err != nil {
					t.Errorf("%s: at %s, not even good frames arrive: %v", a.name, e.name, err)
					deaf[e.name] = true
				}
				if bytes.Contains(got, []byte(mark)) {
					t.Errorf("%s: arrived at %s", a.name, e.name)
				}
				if bytes.Contains(got, numbered(broadcast, me, i)[body:]) {
					break
				}
			}
		}
	}
	t.Logf("%d attempts", len(attempts))

	// And what a clone may do.
	for name, f := range map[string][]byte{
		"a question for an address":  ether(broadcast, me, arp(1, me, myIP, unknown, plan.IP(3))),
		"an answer":                  ether(plan.MAC(3), me, arp(2, me, myIP, plan.MAC(3), plan.IP(3))),
		"a word to a group":          ether(net.HardwareAddr{1, 0, 0x5e, 1, 1, 1}, me, udp(myIP, netip.MustParseAddr("239.1.1.1"), 7777, 7777)),
		"a word to a far clone":      ether(plan.MAC(3), me, udp(myIP, plan.IP(3), 7777, 7777)),
		"a word to another's subnet": ether(plan.MAC(3), me, udp(myIP, NewPlan("another job").IP(1), 7777, 7777)),
	} {
		send(t, evil, f)
		for {
			got, err := ears[3].hear()
			if err != nil {
				t.Errorf("%s did not arrive: %v", name, err)
				break
			}
			if bytes.Contains(got, []byte(mark)) {
				break
			}
		}
	}
}

// Of two taps of a member each has its rule, and what becomes of them changes nothing.
func TestFilterThroughLiveForks(t *testing.T) {
	n := create(t)
	current, to := addTap(t, n, 1), addTap(t, n, 2)
	up(t, n, 1, 2)
	ears := []ear{tapEar("the other", to)}
	number := 0
	check := func(when string, taps ...*os.File) {
		t.Helper()
		for _, from := range taps {
			send(t, from, ether(n.plan.MAC(2), n.plan.MAC(3), udp(n.plan.IP(1), n.plan.IP(2), 7777, 7777)))
			number++
			good := numbered(n.plan.MAC(2), n.plan.MAC(1), number)
			send(t, from, good)
			for {
				got, err := ears[0].hear()
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if bytes.Contains(got, []byte(mark)) {
					t.Errorf("%s: a spoofed frame arrived", when)
				}
				if bytes.Contains(got, good[body:]) {
					break
				}
			}
		}
	}
	for range 3 {
		check("before", current)
		next := spare(t, n, 1)
		must(t, n.HandOver(1))
		check("handed over", current, next)
		must(t, n.HandBack(1))
		check("handed back", current)
		next = spare(t, n, 1)
		must(t, n.HandOver(1))
		must(t, n.Retire(1))
		check("retired", next)
		current = next
	}
	members, err := n.filter.add.GetSetElements(n.filter.members)
	must(t, err)
	if len(members) != 2 {
		t.Errorf("for 2 taps there are %d entries", len(members))
	}
}

// VXLAN packets that any machine on the underlay can send.
func TestStrangersOnTheUnderlay(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			hosts := newTestHosts(t, 4, v6)
			nets := joined(t, hosts[:3])
			plan := nets[0].plan
			to := addTap(t, nets[0], 1)
			up(t, nets[0], 1)
			second := netip.MustParseAddr("192.0.2.100")
			bits := 24
			if v6 {
				second, bits = netip.MustParseAddr("2001:db8::100"), 64
			}
			addAddress(t, hosts[0], netip.PrefixFrom(second, bits))

			inject := func(from *testHost, fromPort int, address netip.Addr, vni uint32, f []byte) {
				t.Helper()
				must(t, from.inside(func() error {
					conn, err := net.DialUDP("udp", &net.UDPAddr{Port: fromPort}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 4789)))
					if err != nil {
						return err
					}
					defer conn.Close()
					_, err = conn.Write(append(binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8), f[VNetHeader:]...))
					return err
				}))
			}
			bad := ether(plan.MAC(1), plan.MAC(2), udp(plan.IP(2), plan.IP(1), 7777, 7777))
			attempts := map[string]func(){
				"a stranger":                           func() { inject(hosts[3], 600, hosts[0].address, 0xabcdef, bad) },
				"a stranger's user":                    func() { inject(hosts[3], 6000, hosts[0].address, 0xabcdef, bad) },
				"a host's user":                        func() { inject(hosts[1], 6000, hosts[0].address, 0xabcdef, bad) },
				"a host that means another number":     func() { inject(hosts[1], 600, hosts[0].address, 0xabcdee, bad) },
				"a host that means another address":    func() { inject(hosts[1], 600, second, 0xabcdef, bad) },
				"this host's user to another's number": func() { inject(hosts[0], 600, hosts[0].address, 0xabcdef, bad) },
			}
			number := 0
			listen := tapEar("the clone", to)
			for name, attempt := range attempts {
				attempt()
				number++
				good := numbered(plan.MAC(1), plan.MAC(2), number)
				inject(hosts[2], 600, hosts[0].address, 0xabcdef, good)
				for {
					got, err := listen.hear()
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if bytes.Contains(got, []byte(mark)) {
						t.Errorf("%s: its frame arrived", name)
					}
					if bytes.Contains(got, good[body:]) {
						break
					}
				}
				// They take different ways, so it may come later.
				if got := stray(t, to); got != nil {
					t.Errorf("%s: %q arrived", name, got)
				}
			}
		})
	}
}

// Two jobs with one subnet, on the same hosts and at the same port.
func TestJobsDoNotHearEachOther(t *testing.T) {
	hosts := newTestHosts(t, 2, false)
	first := joined(t, hosts)
	plan := first[0].plan
	var second []*Network
	for i, h := range hosts {
		n := create(t)
		f := fabricOf(hosts, i)
		f.VNI++
		must(t, h.inside(func() error { return n.Join(t.Context(), f) }))
		second = append(second, n)
	}
	var taps [2][2]*os.File
	for job, nets := range [][]*Network{first, second} {
		for i, n := range nets {
			taps[job][i] = addTap(t, n, i)
			up(t, n, i)
		}
	}
	for job := range taps {
		send(t, taps[job][0], frame(broadcast, plan.MAC(0), "to all of my job"))
		if received(t, taps[job][1]) == nil {
			t.Error("a job's own frame did not arrive")
		}
		for i, tap := range taps[1-job] {
			if got := stray(t, tap); got != nil {
				t.Errorf("host %d: a frame of another job arrived: %q", i, got)
			}
		}
	}
	// The end of one is not the other's.
	must(t, second[0].Close())
	send(t, taps[0][1], frame(broadcast, plan.MAC(1), "still here"))
	if received(t, taps[0][0]) == nil {
		t.Error("when one job ended, the other was cut off")
	}
}

// The frame of a benchmark goes from tap to tap, and is read there.
func BenchmarkFrame(b *testing.B) {
	for _, filtered := range []bool{true, false} {
		b.Run(map[bool]string{true: "filtered", false: "open"}[filtered], func(b *testing.B) {
			n, err := Create(b.Context(), NewPlan("benchmark"))
			if err != nil {
				b.Fatal(err)
			}
			defer n.Close()
			var taps []*tap
			for id := range 32 {
				if _, err := n.AddTap(id); err != nil {
					b.Fatal(err)
				}
				if err := n.Up(id); err != nil {
					b.Fatal(err)
				}
				taps = append(taps, n.plugs[id].tap)
			}
			if !filtered {
				n.filter.add.DelTable(n.filter.table)
				if err := n.filter.add.Flush(); err != nil {
					b.Fatal(err)
				}
			}
			f, buffer := frame(n.plan.MAC(2), n.plan.MAC(1), ""), make([]byte, 2048)
			read := func(to int) (err error) {
				for {
					if _, err = unix.Read(to, buffer); err != nil {
						return err
					}
				}
			}
			err = taps[1].control(func(from int) error {
				return taps[2].control(func(to int) error {
					if err := read(to); err != unix.EAGAIN {
						return err
					}
					b.ResetTimer()
					for range b.N {
						if _, err := unix.Write(from, f); err != nil {
							return err
						}
						if _, err := unix.Read(to, buffer); err != nil {
							return err
						}
					}
					b.StopTimer()
					return nil
				})
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}

// How long a tap takes to come and to go.
func BenchmarkTap(b *testing.B) {
	n, err := Create(b.Context(), NewPlan("benchmark"))
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	var added, removed time.Duration
	for range b.N {
		begin := time.Now()
		if _, err := n.AddTap(1); err != nil {
			b.Fatal(err)
		}
		added += time.Since(begin)
		begin = time.Now()
		if err := n.Remove(1); err != nil {
			b.Fatal(err)
		}
		removed += time.Since(begin)
	}
	b.ReportMetric(float64(added.Microseconds())/float64(b.N), "µs/AddTap")
	b.ReportMetric(float64(removed.Microseconds())/float64(b.N), "µs/Remove")
}
