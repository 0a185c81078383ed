package testcluster

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// roundTrips are how long some small datagrams take there and back, in order.
func roundTrips(tb testing.TB, a, b *net.UDPConn, many int) (all []time.Duration) {
	tb.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 2000)
		for range many {
			n, from, err := b.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = b.WriteToUDPAddrPort(buffer[:n], from)
		}
	}()
	to := b.LocalAddr().(*net.UDPAddr).AddrPort()
	buffer := make([]byte, 2000)
	a.SetReadDeadline(time.Now().Add(3 * patience))
	b.SetReadDeadline(time.Now().Add(3 * patience))
	for range many {
		begin := time.Now()
		if _, err := a.WriteToUDPAddrPort([]byte("ping"), to); err != nil {
			tb.Fatal(err)
		}
		if _, err := a.Read(buffer); err != nil {
			tb.Fatal(err)
		}
		all = append(all, time.Since(begin))
	}
	<-done
	slices.Sort(all)
	return all
}

func TestDelay(t *testing.T) {
	for _, delays := range [][2]time.Duration{{0, 0}, {0, 100e3}, {50e3, 50e3}, {1e6, 0}, {20e6, 30e6}} {
		t.Run(fmt.Sprint(delays), func(t *testing.T) {
			c := ForTest(t, Options{Hosts: 2, Links: map[int]Link{0: {Delay: delays[0]}, 1: {Delay: delays[1]}}})
			a, b := socket(t, c.Host(0)), socket(t, c.Host(1))
			try(t, reach(c.Host(0), c.Host(1)))
			const many = 20
			all := roundTrips(t, a, b, many)
			want := 2 * (delays[0] + delays[1])
			if all[0] < want {
				t.Errorf("a round trip took %v, which is less than %v", all[0], want)
			}
			t.Logf("round trips: shortest %v, median %v, longest %v instead of %v", all[0], all[many/2], all[many-1], want)
		})
	}
}

// TestManyOnTheWire keeps much on its way, of all sizes and in order.
func TestManyOnTheWire(t *testing.T) {
	c := ForTest(t, Options{Hosts: 2, Link: Link{Delay: 10 * time.Millisecond}})
	tcp(t, c.Host(0), c.Host(1), 40<<20)
	a, b := socket(t, c.Host(0)), socket(t, c.Host(1))
	try(t, b.SetReadBuffer(16<<20))
	to := netip.AddrPortFrom(c.Host(1).Address, 7000)
	const many = 2000
	for i := range many {
		send(t, a, to, fmt.Sprintf("%05d%*s", i, i%1400, ""))
	}
	b.SetReadDeadline(time.Now().Add(patience))
	buffer := make([]byte, 2000)
	for i := range many {
		n, err := b.Read(buffer)
		if err != nil || n != 5+i%1400 || string(buffer[:5]) != fmt.Sprintf("%05d", i) {
			t.Fatalf("datagram %d is %q, %v", i, buffer[:n], err)
		}
	}
}

func TestLineMemory(t *testing.T) {
	l := newLine(0, 0, 0)
	l.memory, l.frames = l.memory[:4*maxFrame], l.frames[:1000]
	var held []frame
	check := func(f frame) {
		t.Helper()
		if f.offset < 0 || f.offset+maxFrame > len(l.memory) {
			t.Fatalf("a frame at %d leaves the memory", f.offset)
		}
		for _, other := range held {
			if f.offset < other.offset+other.size && other.offset < f.offset+f.size {
				t.Fatalf("a frame at %d, %d bytes, lies on one at %d, %d bytes", f.offset, f.size, other.offset, other.size)
			}
		}
	}
	sizes := []int{70, maxFrame, 1500, maxFrame - 1, 70, 9000, maxFrame / 2}
	for i := range 10000 {
		if l.room() {
			f := frame{offset: l.write, size: sizes[i%len(sizes)]}
			check(f)
			l.frames[(l.first+l.many)%len(l.frames)] = f
			l.many++
			l.write += f.size
			held = append(held, f)
		}
		if i%3 == 0 || i%1000 > 900 {
			if l.many > 0 {
				l.first = (l.first + 1) % len(l.frames)
				l.many--
				held = held[1:]
			} else if !l.room() {
				t.Fatal("an empty line has no room")
			}
		}
	}
}

// BenchmarkWire is what a link with a delay adds beyond the delay, one way through one link.
func BenchmarkWire(b *testing.B) {
	measure := func(delay time.Duration) time.Duration {
		c := ForTest(b, Options{Hosts: 2, Links: map[int]Link{0: {Delay: delay}}})
		var conns []*net.UDPConn
		for _, h := range c.Hosts() {
			err := h.Do(func() error {
				conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.Address, 7000)))
				conns = append(conns, conn)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			defer conns[len(conns)-1].Close()
		}
		roundTrips(b, conns[0], conns[1], 100)
		all := roundTrips(b, conns[0], conns[1], 2000)
		return all[len(all)/2]
	}
	for _, delay := range []time.Duration{50 * time.Microsecond, 100 * time.Microsecond, time.Millisecond} {
		b.Run(delay.String(), func(b *testing.B) {
			for range b.N {
				without, with := measure(0), measure(delay)
				b.ReportMetric(float64((with-without)/2-delay)/1e3, "µs-more")
				b.ReportMetric(float64(without)/2e3, "µs-without")
			}
		})
	}
}
