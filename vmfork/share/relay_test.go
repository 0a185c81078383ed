package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// A stalling connection is what a clone has of its parent's: after so many
// bytes one way, and so many the other, it neither takes nor gives any more,
// until it is closed; the server has it still.
type stalling struct {
	net.Conn
	mu       sync.Mutex
	out, in  int // bytes that still go through
	stalls   sync.Once
	stalled  chan struct{}
	closes   sync.Once
	released chan struct{}
}

func newStalling(conn net.Conn, out, in int) *stalling {
	return &stalling{Conn: conn, out: out, in: in, stalled: make(chan struct{}), released: make(chan struct{})}
}

func (s *stalling) wait() (int, error) {
	s.stalls.Do(func() { close(s.stalled) })
	<-s.released
	return 0, net.ErrClosed
}

func (s *stalling) Write(b []byte) (int, error) {
	s.mu.Lock()
	n := min(len(b), s.out)
	s.out -= n
	s.mu.Unlock()
	if _, err := s.Conn.Write(b[:n]); err != nil || n == len(b) {
		return n, err
	}
	_, err := s.wait()
	return n, err
}

func (s *stalling) Read(b []byte) (int, error) {
	s.mu.Lock()
	n := min(len(b), s.in)
	s.mu.Unlock()
	if n == 0 {
		return s.wait()
	}
	select {
	case <-s.released:
		return 0, net.ErrClosed
	default:
	}
	n, err := s.Conn.Read(b[:n])
	s.mu.Lock()
	s.in -= n
	s.mu.Unlock()
	return n, err
}

func (s *stalling) Close() error {
	s.closes.Do(func() {
		close(s.released)
		// Whoever reads leaves, and the server does not see it.
		_ = s.Conn.SetReadDeadline(time.Unix(1, 0))
	})
	return nil
}

func (s *stalling) abandon() { _ = s.Close() }

const endless = 1 << 40

// dialer is how a relay reaches the service.
func (s *service) dialer() dialer {
	return func(ctx context.Context) (net.Conn, error) { return Dial(ctx, mustAddr(s.t, s.addr), s.token) }
}

// relay is a client's connection through a relay, whose own goes out as wrap
// makes it.
func (s *service) relay(wrap func(net.Conn) net.Conn) (*relay, net.Conn) {
	s.t.Helper()
	server, err := s.dialer()(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	near, far := sockets(s.t)
	r := begin(s.t, far, wrap(server))
	s.t.Cleanup(func() { server.Close() })
	return r, near
}

// relayed is a client that has the root as fid 0, and the relay on its way.
func (s *service) relayed() (*client, *relay) {
	s.t.Helper()
	r, conn := s.relay(func(c net.Conn) net.Conn { return newStalling(c, endless, endless) })
	c := newClient(s.t, conn)
	c.hello(mountMessage)
	return c, r
}

func sockets(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	a, b, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, f := range []*os.File{a, b} {
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

func begin(t testing.TB, kernel, server net.Conn) *relay {
	t.Helper()
	r, err := newRelay(kernel, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

// fork is what a clone does.
func fork(t testing.TB, s *service, r *relay) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.reconnect(ctx, s.dialer()); err != nil {
		t.Fatal(err)
	}
}

func TestRelayIsTransparent(t *testing.T) {
	s := newService(t, false)
	c, _ := s.relayed()
	f := c.create("file", ninep.OpenReadWrite)
	big := make([]byte, mountMessage-ninep.DataOverhead)
	for i := range big {
		big[i] = byte(i * 7)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if _, err := c.call(&ninep.Twrite{FID: f, Offset: uint64(i * len(big)), Data: big}); err != nil {
				t.Error(err)
			}
			m, err := c.call(&ninep.Tread{FID: f, Offset: uint64(i * len(big)), Count: uint32(len(big))})
			if err != nil || string(m.(*ninep.Rread).Data) != string(big) {
				t.Errorf("block %d is not what was written: %v", i, err)
			}
		})
	}
	all.Wait()
	c.fails(unix.ENOENT, &ninep.Twalk{FID: root, NewFID: 77, Names: []string{"none"}})
	c.fails(unix.EOPNOTSUPP, &ninep.Tauth{AuthFID: 78})
}

// TestCloneAtEveryByte copies the machine at every byte of a dialogue, each way.
func TestCloneAtEveryByte(t *testing.T) {
	s := newService(t, false)
	if err := os.Mkdir(s.path("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	dialogue := func(t *testing.T, c *client) {
		write(t, s.path("dir/file"), "0123456789")
		c.hello(mountMessage)
		dir := c.walk(root, "dir")
		f := c.walk(dir, "file")
		must[*ninep.Rlopen](c, &ninep.Tlopen{FID: f, Flags: ninep.OpenReadWrite})
		if got := c.read1(f, 3, 4); got != "3456" {
			t.Errorf("read %q", got)
		}
		c.write(f, 2, "ab")
		made := c.walk(dir)
		must[*ninep.Rlcreate](c, &ninep.Tlcreate{FID: made, Name: "made", Flags: ninep.OpenReadWrite | ninep.OpenCreate, Mode: 0o644})
		c.write(made, 0, "made")
		if got := c.stat(f).Size; got != 10 {
			t.Errorf("%d bytes", got)
		}
		c.fails(unix.ENOENT, &ninep.Twalk{FID: dir, NewFID: 99, Names: []string{"none"}})
		c.clunk(f)
		if got := c.read1(made, 0, 10); got != "made" {
			t.Errorf("read %q", got)
		}
		if len(must[*ninep.Rwalk](c, &ninep.Twalk{FID: made, NewFID: 98}).QIDs) != 0 {
			t.Error("a walk without names came somewhere")
		}
		c.clunk(made)
		c.clunk(dir)
		check(t, s.path("dir/file"), "01ab456789")
	}
	counted := newStalling(nil, endless, endless)
	_, conn := s.relay(func(c net.Conn) net.Conn { counted.Conn = c; return counted })
	dialogue(t, newClient(t, conn))
	counted.mu.Lock()
	sent, received := endless-counted.out, endless-counted.in
	counted.mu.Unlock()
	if sent < 300 || received < 300 {
		t.Fatalf("a dialogue of %d and %d bytes says nothing", sent, received)
	}
	at := func(t *testing.T, out, in int) {
		var parent *stalling
		r, conn := s.relay(func(c net.Conn) net.Conn { parent = newStalling(c, out, in); return parent })
		copied := make(chan error, 1)
		go func() {
			<-parent.stalled
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			copied <- r.reconnect(ctx, s.dialer())
		}()
		c := newClient(t, conn)
		dialogue(t, c)
		if err := <-copied; err != nil {
			t.Error(err)
		}
		r.close()
		parent.Conn.Close()
		conn.Close()
	}
	for n := range sent {
		at(t, n, endless)
		if t.Failed() {
			t.Fatalf("when %d bytes had been sent", n)
		}
	}
	for n := range received {
		at(t, endless, n)
		if t.Failed() {
			t.Fatalf("when %d bytes had been received", n)
		}
	}
}

// TestCloneUnderTraffic copies a machine again and again while its kernel
// reads and writes.
func TestCloneUnderTraffic(t *testing.T) {
	s := newService(t, false)
	c, r := s.relayed()
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range 8 {
		f := c.create(fmt.Sprint("file", i), ninep.OpenReadWrite)
		all.Go(func() {
			block := make([]byte, 100<<10)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for j := range block {
					block[j] = byte(n + i)
				}
				if _, err := c.call(&ninep.Twrite{FID: f, Data: block}); err != nil {
					t.Error(err)
					return
				}
				m, err := c.call(&ninep.Tread{FID: f, Count: uint32(len(block))})
				if err != nil || string(m.(*ninep.Rread).Data) != string(block) {
					t.Errorf("client %d, round %d: what was written is not there: %v", i, n, err)
					return
				}
			}
		})
	}
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		fork(t, s, r)
	}
	close(stop)
	all.Wait()
}

func TestReplyReachesASlowKernel(t *testing.T) {
	s := newService(t, false)
	write(t, s.path("file"), string(make([]byte, 200<<10)))
	r, conn := s.relay(func(c net.Conn) net.Conn { return newStalling(c, endless, endless) })
	var tag uint16
	ask := func(m ninep.Message) {
		tag++
		if _, err := conn.Write(encode(tag, m)); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(want ninep.Message) {
		t.Helper()
		if _, m, err := readMessage(conn); err != nil || m.Type() != want.Type() {
			t.Fatalf("%v, %v", m, err)
		}
	}
	ask(&ninep.Tversion{MaxSize: mountMessage, Version: ninep.Version})
	hear(&ninep.Rversion{})
	ask(&ninep.Tattach{FID: root, AuthFID: ninep.NoFID})
	hear(&ninep.Rattach{})
	ask(&ninep.Twalk{FID: root, NewFID: 1, Names: []string{"file"}})
	hear(&ninep.Rwalk{})
	ask(&ninep.Tlopen{FID: 1})
	hear(&ninep.Rlopen{})
	for range 10 { // more than the socket holds
		ask(&ninep.Tread{FID: 1, Count: 200 << 10})
	}
	time.Sleep(50 * time.Millisecond) // the first replies are half delivered
	done := make(chan error, 1)
	go func() { done <- r.reconnect(t.Context(), s.dialer()) }()
	for range 10 {
		hear(&ninep.Rread{})
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestServerGoneEndsTheMount(t *testing.T) {
	near, far := sockets(t)
	link, server := sockets(t)
	begin(t, far, link)
	c := newClient(t, near)
	go func() {
		_, _, _ = readMessage(server)
		server.Close()
	}()
	if _, err := c.call(&ninep.Tgetattr{FID: root}); !errors.Is(err, errEnded) {
		t.Errorf("%v", err)
	}
}

func TestFailedReconnectEndsTheMount(t *testing.T) {
	s := newService(t, false)
	c, r := s.relayed()
	refused := errors.New("refused")
	if err := r.reconnect(t.Context(), func(context.Context) (net.Conn, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
	if _, err := c.call(&ninep.Tgetattr{FID: root}); !errors.Is(err, errEnded) {
		t.Errorf("%v", err)
	}
	if err := r.reconnect(t.Context(), s.dialer()); err == nil {
		t.Error("a relay came back from the dead")
	}
}

func TestReconnectHasADeadline(t *testing.T) {
	s := newService(t, false)
	_, r := s.relayed()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = r.reconnect(ctx, func(context.Context) (net.Conn, error) { return net.Dial("tcp", silent.Addr().String()) })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestRelayEndsProtocolViolations(t *testing.T) {
	for name, message := range map[string]string{
		"too short": "\x06\x00\x00\x00\x64\x00\x00",
		"too long":  "\x00\x00\x00\x7f\x64\x00\x00",
		"tag twice": "\x09\x00\x00\x00\x6c\x01\x00\x01\x00\x09\x00\x00\x00\x6c\x01\x00\x01\x00",
	} {
		near, far := sockets(t)
		server, theirs := sockets(t)
		begin(t, far, server)
		go io.Copy(io.Discard, theirs)
		_ = near.SetDeadline(time.Now().Add(20 * time.Second))
		go io.WriteString(near, message)
		if _, err := io.ReadAll(near); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		theirs.Close()
	}
	near, far := sockets(t)
	server, theirs := sockets(t)
	begin(t, far, server)
	_ = near.SetDeadline(time.Now().Add(20 * time.Second))
	go theirs.Write(whole(5, &ninep.Rclunk{}))
	if _, err := io.ReadAll(near); err != nil {
		t.Errorf("a reply without a request: %v", err)
	}
}
