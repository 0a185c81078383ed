package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
	"github.com/mpirun-sf/mpirun-sf/xen/evtchn"
	"github.com/mpirun-sf/mpirun-sf/xen/store"
	"github.com/mpirun-sf/mpirun-sf/xen/store/storetest"
)

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// guest is the other side of a console, as a guest's driver plays it.
type guest struct {
	t       *testing.T
	store   *store.Client
	page    consoleRing
	channel *evtchn.Channel
	mapped  int
}

func newBus(t *testing.T) (*Bus, *guest, *storetest.Server) {
	server := storetest.New()
	g := &guest{t: t, store: store.New(server.Connect()), page: make(consoleRing, 4096)}
	mine, theirs, err := evtchn.Pair()
	if err != nil {
		t.Fatal(err)
	}
	g.channel = theirs
	s := store.New(server.Connect())
	t.Cleanup(func() { s.Close(); g.store.Close(); theirs.Close() })
	return &Bus{
		Store: s,
		Map: func(domain uint16, ref uint32) ([]byte, func() error, error) {
			if domain != 7 || ref != 8 {
				return nil, nil, fmt.Errorf("grant %d of domain %d is not there", ref, domain)
			}
			g.mapped++
			return g.page, func() error { g.mapped--; return nil }, nil
		},
		Bind: func(domain uint16, port uint32) (*evtchn.Channel, error) {
			if domain != 7 || port != 9 {
				return nil, fmt.Errorf("port %d of domain %d is not there", port, domain)
			}
			return mine, nil
		},
	}, g, server
}

const front = "/local/domain/7/device/console/1"

// connect does what the driver of a guest does.
func (g *guest) connect(ref string) {
	g.t.Helper()
	ctx := limit(g.t)
	back, err := g.store.Read(ctx, front+"/backend")
	if err != nil {
		g.t.Fatal(err)
	}
	for _, e := range [][2]string{{"ring-ref", ref}, {"port", "9"}, {"state", "3"}} {
		if err := g.store.Write(ctx, front+"/"+e[0], e[1]); err != nil {
			g.t.Fatal(err)
		}
	}
	if ref != "8" {
		return
	}
	if _, err := g.store.Await(ctx, back+"/state", "the host", func(v string) bool { return v == "4" }); err != nil {
		g.t.Fatal(err)
	}
	if err := g.store.Write(ctx, front+"/state", "4"); err != nil {
		g.t.Fatal(err)
	}
}

// greet does what a guest has to do before it is told anything.
func (g *guest) greet() {
	g.t.Helper()
	g.say([]byte{1, 2})
	var b []byte
	g.await("the greeting to be said back", func() bool { b = append(b, g.hear(2)...); return len(b) == 2 })
	if string(b) != "\x01\x02" {
		g.t.Errorf("the host says back %q", b)
	}
	g.say([]byte{guestport.Ready})
	g.await("the greeting to be over", func() bool { return g.page.load(outCons) == g.page.load(outProd) })
}

// say writes to the ring when there is room.
func (g *guest) say(b []byte) {
	for len(b) > 0 {
		prod := g.page.load(outProd)
		n := min(len(b), outSize-int(prod-g.page.load(outCons)))
		for i := range n {
			g.page[inSize+(prod+uint32(i))%outSize] = b[i]
		}
		g.page.store(outProd, prod+uint32(n))
		b = b[n:]
		g.channel.Notify()
		if n == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// hear reads at most n bytes of what is there.
func (g *guest) hear(n int) []byte {
	cons := g.page.load(inCons)
	n = min(n, int(g.page.load(inProd)-cons))
	var b []byte
	for i := range n {
		b = append(b, g.page[(cons+uint32(i))%inSize])
	}
	g.page.store(inCons, cons+uint32(n))
	g.channel.Notify()
	return b
}

func newPort(t *testing.T) (*net.UnixConn, hypervisor.Port) {
	host, port, err := hypervisor.NewPort("mpirun-sf.control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); port.File.Close() })
	host.SetDeadline(time.Now().Add(20 * time.Second))
	return host, port
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func TestConsoleBothWays(t *testing.T) {
	bus, g, server := newBus(t)
	host, port := newPort(t)
	c, err := bus.NewConsole(limit(t), 7, 1, port.Name, port.File)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := g.store.Read(limit(t), front+"/name"); name != port.Name || err != nil {
		t.Errorf("the guest finds the port %q (%v)", name, err)
	}
	if p := server.Permissions(front); p != "n7\x00r0\x00" {
		t.Errorf("the guest's folder is %q", p)
	}
	if p := server.Permissions("/local/domain/0/backend/mpirun-sf-console/7/1"); p != "n0\x00r7\x00" {
		t.Errorf("the host's folder is %q", p)
	}
	g.connect("8")
	g.greet()
	toGuest, toHost := noise(100_000), noise(200_000)
	go g.say(toHost)
	go host.Write(toGuest)
	heard := make(chan []byte)
	go func() {
		var b []byte
		for end := time.Now().Add(20 * time.Second); len(b) < len(toGuest) && time.Now().Before(end); {
			some := g.hear(700)
			if b = append(b, some...); len(some) == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		heard <- b
	}()
	got := make([]byte, len(toHost))
	if _, err := io.ReadFull(host, got); err != nil || !bytes.Equal(got, toHost) {
		t.Errorf("what the guest says does not come (%v)", err)
	}
	if b := <-heard; !bytes.Equal(b, toGuest) {
		t.Errorf("the guest heard %d bytes, want %d", len(b), len(toGuest))
	}
	if err := c.Close(limit(t)); err != nil {
		t.Error(err)
	}
	if g.mapped != 0 {
		t.Errorf("%d pages are mapped", g.mapped)
	}
	for _, path := range []string{front, "/local/domain/0/backend/mpirun-sf-console/7"} {
		if _, err := g.store.Read(limit(t), path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}

// unread is how many bytes that the host has written to a port have not been taken out of it.
func unread(p hypervisor.Port) (int, error) { return unix.IoctlGetInt(int(p.File.Fd()), unix.SIOCINQ) }

// What the guest has not read stays for its successor, and what it has said is out.
func TestConsoleDrain(t *testing.T) {
	bus, g, _ := newBus(t)
	host, port := newPort(t)
	c, err := bus.NewConsole(limit(t), 7, 1, port.Name, port.File)
	if err != nil {
		t.Fatal(err)
	}
	g.connect("8")
	message := noise(3000) // more than the ring takes
	if _, err := host.Write(message); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	if n, err := g.page.unread(); n != 0 || err != nil {
		t.Errorf("before it has greeted, the guest is sent %d bytes (%v)", n, err)
	}
	g.greet()
	g.await("the ring to be full", func() bool { n, _ := g.page.unread(); return n == inSize })
	if n, err := unread(port); n != len(message) || err != nil {
		t.Errorf("unread are %d bytes (%v), want %d", n, err, len(message))
	}
	if b := g.hear(500); !bytes.Equal(b, message[:500]) {
		t.Error("the guest heard something else")
	}
	g.await("what was heard to be taken", func() bool { n, _ := unread(port); return n == len(message)-500 })
	g.page.store(inCons, g.page.load(inCons)+100) // read, but not notified: it was suspended
	g.page[inSize+g.page.load(outProd)%outSize] = 'x'
	g.page.store(outProd, g.page.load(outProd)+1)
	if err := c.Drain(limit(t)); err != nil {
		t.Fatal(err)
	}
	if n, err := unread(port); n != len(message)-600 || err != nil {
		t.Errorf("unread are %d bytes (%v), want %d", n, err, len(message)-600)
	}
	if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	// Resumed, it goes on with its ring.
	c.Resume()
	g.channel.Notify()
	var b []byte
	for len(b) < len(message)-600 {
		n := len(b)
		g.await("the guest to be sent the rest", func() bool { b = append(b, g.hear(5000)...); return len(b) > n })
	}
	if !bytes.Equal(b, message[600:]) {
		t.Error("resumed, the guest heard something else")
	}
	if err := c.Close(limit(t)); err != nil {
		t.Error(err)
	}
}

func (g *guest) await(what string, good func() bool) {
	g.t.Helper()
	for end := time.Now().Add(10 * time.Second); !good(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("waited 10 s for %s", what)
		}
	}
}

func TestConsoleOfBadGuest(t *testing.T) {
	for name, c := range map[string]struct {
		ref  string
		do   func(g *guest)
		says string
	}{
		"a ring that is not granted": {"77", func(*guest) {}, "grant 77 of domain 7"},
		"a ring that is no number":   {"x", func(*guest) {}, "is no number"},
		"too much output":            {"8", func(g *guest) { g.page.store(outProd, outSize+1) }, "impossible indices"},
		"too much input":             {"8", func(g *guest) { g.page.store(inCons, 1) }, "impossible indices"},
	} {
		t.Run(name, func(t *testing.T) {
			bus, g, _ := newBus(t)
			_, port := newPort(t)
			console, err := bus.NewConsole(limit(t), 7, 1, port.Name, port.File)
			if err != nil {
				t.Fatal(err)
			}
			g.connect(c.ref)
			c.do(g)
			g.channel.Notify()
			g.await("the console to fail", func() bool { return console.Err() != nil })
			if err := console.Err(); !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "console 1 of domain 7: ") {
				t.Error(err)
			}
			if err := console.Close(limit(t)); err != nil {
				t.Error(err)
			}
			if g.mapped != 0 {
				t.Errorf("%d pages are mapped", g.mapped)
			}
		})
	}
}

func TestConsoleThatNobodyReads(t *testing.T) {
	bus, g, _ := newBus(t)
	host, port := newPort(t)
	c, err := bus.NewConsole(limit(t), 7, 1, port.Name, port.File)
	if err != nil {
		t.Fatal(err)
	}
	g.connect("8")
	g.greet()
	done := make(chan struct{})
	go func() { g.say(noise(2 << 20)); close(done) }()
	at, since := g.page.load(outProd), time.Now()
	g.await("the guest to wait for room", func() bool {
		if now := g.page.load(outProd); now != at {
			at, since = now, time.Now()
		}
		return at > 100_000 && time.Since(since) > 300*time.Millisecond
	})
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Drain(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it drains into nothing: %v", err)
	}
	c.Resume()
	host.Close() // from now on it is as if nobody were there
	select {
	case <-done:
	case <-limit(t).Done():
		t.Error("waited for the guest to be rid of its words")
	}
	if err := c.Close(limit(t)); err != nil {
		t.Error(err)
	}
}

// Whatever is in the page of a guest, nothing outside it is touched.
func FuzzRing(f *testing.F) {
	f.Add(uint32(0), uint32(0), uint32(0), uint32(0), 100)
	f.Add(uint32(1<<32-5), uint32(1020), uint32(1<<32-1), uint32(2046), 2000)
	f.Fuzz(func(t *testing.T, ic, ip, oc, op uint32, n int) {
		r := make(consoleRing, 4096)
		for i, v := range []uint32{ic, ip, oc, op} {
			r.store(inCons+4*i, v)
		}
		if b, err := r.output(nil); err == nil && len(b) != int(op-oc) || len(b) > outSize {
			t.Errorf("%d bytes of output", len(b))
		}
		if got, err := r.input(make([]byte, n&0xffff)); err == nil && (got > inSize || got > n&0xffff) {
			t.Errorf("%d bytes of input", got)
		}
	})
}
