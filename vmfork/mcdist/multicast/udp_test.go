package multicast

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// alone puts the calling test into a network namespace of its own, which has loopback and nothing else.
func alone(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // the thread ends with the test's goroutine, and the namespace with it
	own, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v: run the tests as root", err)
	}
	own.Close()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

// TestKernelSockets sends trains of packets, one packet alone, and a train of packets that cannot be cut by the kernel.
func TestKernelSockets(t *testing.T) {
	alone(t)
	from, err := udp{}.unicast(loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer from.close()
	group := newKeyring(testKey).groupOf(0, randomID(1))
	var sockets []socket
	for range 3 {
		s, err := udp{}.join(loopback, group)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, s)
	}
	if err := sockets[0].rejoin(); err != nil {
		t.Fatal(err)
	}
	const size, n = 1400, 200
	p := make([]byte, size*n-100)
	for i := range p {
		p[i] = byte(i / size)
	}
	var all sync.WaitGroup
	for _, s := range sockets {
		all.Go(func() {
			got := make([]int, 256)
			for total := 0; total < 3*n+1; {
				err := s.receive(func(q []byte, who netip.AddrPort, at time.Time) {
					if late := time.Since(at); late < 0 || late > 20*time.Second {
						t.Errorf("came %v ago", late)
					}
					want := size
					switch {
					case len(q) == 10:
						want = 10
					case q[0] == n-1:
						want = size - 100
					}
					if len(q) != want || !bytes.Equal(q, bytes.Repeat(q[:1], len(q))) || who != from.address() {
						t.Errorf("a packet of %d bytes from %s", len(q), who)
					}
					got[q[0]]++
					total++
				})
				if err != nil {
					t.Errorf("receive: %v", err)
					return
				}
			}
			for i := range n {
				if got[i] != 3 {
					t.Errorf("packet %d came %d times instead of 3", i, got[i])
				}
			}
		})
	}
	for i := range 3 {
		from.(*udpSocket).whole.Store(i == 1)
		if err := from.send(p, size, group); err != nil {
			t.Fatal(err)
		}
	}
	if err := from.send(bytes.Repeat([]byte{255}, 10), 10, group); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("not everything came")
	}
	for _, s := range sockets {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
	<-done
	if err := sockets[0].receive(func([]byte, netip.AddrPort, time.Time) {}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive from a closed socket: %v", err)
	}
}

func TestKernelRoom(t *testing.T) {
	alone(t)
	if n, err := (udp{}).room(loopback); err != nil || n != maxRoom {
		t.Errorf("%d, %v", n, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(lo, 1500); err != nil {
		t.Fatal(err)
	}
	if n, err := (udp{}).room(loopback); err != nil || n != 1472 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := (udp{}).room(netip.MustParseAddr("10.1.2.3")); err == nil {
		t.Error("an address that no interface has")
	}
}

// TestOverKernel distributes an image and an object through real sockets.
func TestOverKernel(t *testing.T) {
	alone(t)
	s, err := NewSender(SenderConfig{Address: loopback, Key: testKey})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, sender: s}
	for i := range 3 {
		r, err := NewReceiver(ReceiverConfig{Self: i + 1, Address: loopback, Key: testKey})
		if err != nil {
			t.Fatal(err)
		}
		c.receivers = append(c.receivers, r)
	}
	m, id, object := newImage(1, 16<<20), randomID(1), randomID(2)
	if err := s.Serve(id, m); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(object, m.data[:300000], []int{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	// Sockets are made in this namespace, so by this thread; what follows may be done by others.
	type both struct {
		f    *Fetch
		sink *copySink
	}
	var all []both
	ctx := inTime(t, 50*time.Second)
	for _, r := range c.receivers {
		sink := newSink(m.Size())
		f, err := r.Open(ctx, s.Origin(), id, m.Size(), sink)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, both{f, sink})
		got, err := r.Receive(ctx, s.Origin(), object)
		if err != nil || !bytes.Equal(got, m.data[:300000]) {
			t.Errorf("the object: %v", err)
		}
	}
	c.each(func(i int, _ *Receiver) error {
		if err := all[i].f.Bring(ctx, 4000, 8); err != nil {
			return err
		}
		if err := all[i].f.Prefetch(ctx, blocksTo(4096)); err != nil {
			return err
		}
		if !bytes.Equal(all[i].sink.data, m.data) {
			return errors.New("what arrived is not what was sent")
		}
		return nil
	})
	for _, r := range c.receivers {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
