package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A world has two hosts of a job, with the parent on the first, who has the gateway, and clone 1 on the second; and a
// third host that is outside.
type world struct {
	hosts   []*testHost
	nets    []*Network
	members []*fakeClone
}

func newWorld(t *testing.T) *world {
	t.Helper()
	hosts := newTestHosts(t, 3, false)
	w := &world{hosts: hosts, nets: joined(t, hosts[:2])}
	for id, n := range w.nets {
		member := newFakeClone(t, addTap(t, n, id))
		config := n.plan.Guest(id, []int{0, 1})
		config.MTU, config.Gateway = n.MTU(), n.plan.Host()
		member.configure(t, config)
		up(t, n, id)
		locate(t, w.nets[1-id], hosts[id], id)
		w.members = append(w.members, member)
	}
	// The bridge sends nothing before the kernel's worker has seen that it has ports, and a datagram is not sent again.
	waitUp(t, w.nets[0].handle, bridgeName)
	return w
}

func (w *world) open(t *testing.T, way Way) {
	t.Helper()
	must(t, w.hosts[0].inside(func() error { return w.nets[0].OpenWay(t.Context(), way) }))
}

// serveOn answers connections to a host, with a text and then where they come from.
func (w *world) serveOn(t *testing.T, host int, text string) netip.AddrPort {
	t.Helper()
	var listener net.Listener
	must(t, w.hosts[host].inside(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(w.hosts[host].address, 0).String())
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintf(conn, "%s from %v", text, conn.RemoteAddr().(*net.TCPAddr).IP)
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

func allow(t *testing.T, forms ...string) (list []Destination) {
	t.Helper()
	for _, form := range forms {
		d, err := ParseAllow(form)
		must(t, err)
		list = append(list, d)
	}
	return list
}

func TestWayOut(t *testing.T) {
	w := newWorld(t)
	text := strings.Repeat("outside ", 100000)
	servers := map[string]netip.AddrPort{
		"outside": w.serveOn(t, 2, text), "another port outside": w.serveOn(t, 2, text),
		"the head": w.serveOn(t, 0, text), "the other host": w.serveOn(t, 1, text),
	}
	for _, c := range []struct {
		name    string
		allow   []Destination
		reached []string
	}{
		{"everything", nil, []string{"outside", "another port outside"}},
		{"everything by a prefix", allow(t, "0.0.0.0/0"), []string{"outside", "another port outside"}},
		{"a prefix with the hosts", allow(t, "192.0.2.0/24"), []string{"outside", "another port outside"}},
		{"another prefix", allow(t, "198.51.100.0/24"), nil},
		{"a port", allow(t, "192.0.2.0/24:"+port(servers["outside"])), []string{"outside"}},
		{"a port for TCP", allow(t, "192.0.2.3:"+port(servers["outside"])+"/tcp"), []string{"outside"}},
		{"a port for UDP", allow(t, "192.0.2.3:"+port(servers["outside"])+"/udp"), nil},
		{"a host", allow(t, "192.0.2.1"), []string{"the head"}},
		{"a host and a prefix", allow(t, "192.0.2.2", "192.0.2.2/31"), []string{"the other host", "outside", "another port outside"}},
		{"a host's other port", allow(t, "192.0.2.1:1", "0.0.0.0/0"), []string{"outside", "another port outside"}},
	} {
		w.open(t, Way{Allow: c.allow})
		for id, member := range w.members {
			for name, server := range servers {
				var got string
				err := member.inside(func() (err error) {
					got, err = fetch(server.String())
					return err
				})
				wanted := false
				for _, r := range c.reached {
					wanted = wanted || r == name
				}
				if want := text + " from 192.0.2.1"; wanted && (err != nil || got != want) {
					t.Errorf("allowed %s: member %d read %d bytes of %d from %s (%v)", c.name, id, len(got), len(want), name, err)
				}
				if !wanted && !errors.Is(err, unix.EHOSTUNREACH) {
					t.Errorf("allowed %s: member %d read %d bytes from %s (%v)", c.name, id, len(got), name, err)
				}
			}
		}
		w.nets[0].way.close()
		w.nets[0].way = nil
	}
	// Without a way there is none.
	if err := w.members[0].inside(func() error { _, err := fetch(servers["outside"].String()); return err }); err == nil {
		t.Error("a member got out without a way")
	}
}

func port(a netip.AddrPort) string { return fmt.Sprint(a.Port()) }

func TestWayRefuses(t *testing.T) {
	w := newWorld(t)
	w.open(t, Way{Allow: allow(t, "0.0.0.0/0")})
	for name, to := range map[string]string{
		"the way's own port": w.nets[0].way.tcp.Addr().String(),
		"a closed port":      "192.0.2.3:9",
		"a cloud's secrets":  "169.254.169.254:80",
		"the other subnet":   netip.AddrPortFrom(NewPlan("another").Host(), 80).String(),
	} {
		err := w.members[1].inside(func() error {
			conn, err := net.DialTimeout("tcp4", to, 5*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, err = conn.Read(make([]byte, 1))
			return err
		})
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := w.nets[1]
	for name, err := range map[string]error{
		"a second way":                 w.nets[0].OpenWay(t.Context(), Way{}),
		"a way without the gateway":    other.OpenWay(t.Context(), Way{}),
		"a way to the job's network":   create(t).OpenWay(t.Context(), Way{Allow: []Destination{{Prefix: NewPlan(t.Name()).Subnet}}}),
		"a way to this host":           create(t).OpenWay(t.Context(), Way{Allow: []Destination{{Prefix: netip.MustParsePrefix("127.0.0.1/32")}}}),
		"a rate of a bit":              create(t).OpenWay(t.Context(), Way{Rate: 1}),
		"a port forwarded to nothing":  create(t).OpenWay(t.Context(), Way{Forward: []Forward{{Host: netip.MustParseAddrPort("127.0.0.1:1")}}}),
		"a port of somebody's address": create(t).OpenWay(t.Context(), Way{Forward: []Forward{{Host: netip.MustParseAddrPort("192.0.2.200:1"), Port: 1}}}),
	} {
		if err == nil {
			t.Errorf("%s was opened", name)
		}
	}
}

func TestDatagramsOut(t *testing.T) {
	w := newWorld(t)
	var echo net.PacketConn
	must(t, w.hosts[2].inside(func() (err error) {
		echo, err = net.ListenPacket("udp4", "192.0.2.3:0")
		return err
	}))
	defer echo.Close()
	go func() {
		buffer := make([]byte, maxDatagram)
		for {
			size, from, err := echo.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(append(buffer[:size:size], []byte(" from "+from.(*net.UDPAddr).IP.String())...), from)
		}
	}()
	server := echo.LocalAddr().(*net.UDPAddr).AddrPort()
	w.open(t, Way{Allow: allow(t, fmt.Sprintf("192.0.2.3:%d/udp", server.Port())), Resolver: server})
	for id, member := range w.members {
		for name, to := range map[string]netip.AddrPort{"the server": server, "the resolver": netip.AddrPortFrom(w.nets[0].plan.Host(), 53)} {
			err := member.inside(func() error {
				conn, err := net.Dial("udp4", to.String()) // takes answers from there only
				if err != nil {
					return err
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				for i, size := range []int{1, 100, 4000, 1, 30000} {
					buffer := make([]byte, maxDatagram)
					question := strings.Repeat("?", size)
					if _, err := io.WriteString(conn, question); err != nil {
						return err
					}
					n, err := conn.Read(buffer)
					if err != nil || string(buffer[:n]) != question+" from 192.0.2.1" {
						return fmt.Errorf("of question %d, with %d bytes, came %d (%w)", i, size, n, err)
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("member %d to %s: %v", id, name, err)
			}
		}
		err := member.inside(func() error {
			conn, err := net.Dial("udp4", "192.0.2.3:1")
			if err != nil {
				return err
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = conn.Write([]byte("?"))
			_, err = conn.Read(make([]byte, 1))
			return err
		})
		if !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("member %d to a port that is not allowed: %v", id, err)
		}
	}
	if got := len(w.nets[0].way.flows); got != 4 {
		t.Errorf("for 4 flows there are %d", got)
	}
}

// The rate is of all connections together. What is counted is bytes: on a machine that has other things to do it may be
// fewer, and never more.
func TestRateOfWay(t *testing.T) {
	w := newWorld(t)
	const rate, size, streams = 16_000_000, 500_000, 2
	server := w.serveOn(t, 2, strings.Repeat("x", size))
	w.open(t, Way{Rate: rate})
	begin := time.Now()
	done := make(chan error)
	for range streams {
		for _, member := range w.members {
			go func() {
				done <- member.inside(func() error {
					got, err := fetch(server.String())
					if err == nil && len(got) < size {
						err = fmt.Errorf("read %d bytes", len(got))
					}
					return err
				})
			}()
		}
	}
	for range streams * len(w.members) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	took := time.Since(begin)
	bytes := float64(size * streams * len(w.members))
	t.Logf("%.0f bytes in %v: %.1f Mbit/s of %.1f", bytes, took, bytes*8e-6/took.Seconds(), rate*1e-6)
	// At the end of each stream a piece may be ahead of its time.
	ahead := slack.Seconds()*rate/8 + float64(streams*len(w.members))*float64(w.nets[0].way.in.piece)
	if most := took.Seconds()*rate/8 + ahead; bytes > most {
		t.Errorf("%.0f bytes came in %v, when %.0f may", bytes, took, most)
	}
}

func TestForwardToParent(t *testing.T) {
	w := newWorld(t)
	var listener net.Listener
	must(t, w.members[0].inside(func() (err error) {
		listener, err = net.Listen("tcp4", ":80")
		return err
	}))
	defer listener.Close()
	go serve(listener, "the parent")
	forward, err := ParseForward("192.0.2.1:8080:80")
	must(t, err)
	w.open(t, Way{Allow: allow(t, "198.51.100.1"), Forward: []Forward{forward}})
	for _, from := range []*testHost{w.hosts[0], w.hosts[2]} {
		err := from.inside(func() error {
			got, err := fetch("192.0.2.1:8080")
			if err == nil && got != "the parent" {
				err = fmt.Errorf("read %q", got)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// The end of a network is the end of the connections by its way.
func TestCloseEndsConnections(t *testing.T) {
	w := newWorld(t)
	var listener net.Listener
	must(t, w.hosts[2].inside(func() (err error) {
		listener, err = net.Listen("tcp4", "192.0.2.3:0")
		return err
	}))
	defer listener.Close()
	w.open(t, Way{Forward: []Forward{{Host: netip.MustParseAddrPort("192.0.2.1:8080"), Port: 80}}})
	var inner net.Conn
	must(t, w.members[1].inside(func() (err error) {
		inner, err = net.DialTimeout("tcp4", listener.Addr().String(), 5*time.Second)
		return err
	}))
	defer inner.Close()
	outer, err := listener.Accept()
	must(t, err)
	defer outer.Close()
	must(t, w.nets[0].Close())
	_ = outer.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := outer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) && err != io.EOF {
		t.Errorf("outside: %v", err)
	}
	must(t, w.hosts[0].inside(func() error {
		again, err := net.Listen("tcp4", "192.0.2.1:8080")
		if err == nil {
			again.Close()
		}
		return err
	}))
}
