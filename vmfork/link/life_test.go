package link_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link/linktest"
)

// through is a link whose network can be cut.
func through(t *testing.T, opts ...link.Option) (dialled, listened *link.Link, network *proxy) {
	t.Helper()
	a, b := linktest.Identity(t), linktest.Identity(t)
	l, err := link.Listen(t.Context(), b, "127.0.0.1:0", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.AllowHost("h2", a.Fingerprint())
	network = newProxy(t, l.Addr().String())
	dialled, err = link.Dial(within(t), a, network.l.Addr().String(), b.Fingerprint(), append(opts, link.Host("h3"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	listened, err = l.AcceptLink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listened.Close() })
	return dialled, listened, network
}

func ended(t *testing.T, l *link.Link) error {
	t.Helper()
	select {
	case <-l.Done():
	case <-within(t).Done():
		t.Fatal("the link goes on")
	}
	return l.Err()
}

func TestShortCutIsSurvived(t *testing.T) {
	a, b, network := through(t)
	go echo(b)
	conn, err := a.Dial(within(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	network.Cut()
	stream, err := a.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, 2)
	for _, c := range []io.ReadWriteCloser{stream, conn} {
		go func() {
			got, err := exchange(c, "across")
			if err == nil && !strings.HasSuffix(got, ":across") {
				err = errors.New(got)
			}
			answers <- err
		}()
	}
	select {
	case err := <-answers:
		t.Errorf("an answer came through the cut: %v", err)
	case <-time.After(1500 * time.Millisecond):
	}
	network.Heal()
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if a.Err() != nil || b.Err() != nil {
		t.Errorf("the link ended: %v, %v", a.Err(), b.Err())
	}
}

func TestLongCutEndsTheLink(t *testing.T) {
	a, b, network := through(t, link.Silence(500*time.Millisecond))
	stream, err := a.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := a.Dial(within(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	network.Cut()
	for _, end := range []struct {
		l    *link.Link
		want string
	}{{a, "host h3 has not answered for 500ms"}, {b, "host h2 has not answered for 500ms"}} {
		if err := ended(t, end.l); !errors.Is(err, link.ErrSilent) || err.Error() != end.want {
			t.Errorf("%v, want %s", err, end.want)
		}
	}
	for _, c := range []net.Conn{stream, conn} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, link.ErrSilent) {
			t.Errorf("a read of %T: %v", c, err)
		}
		if _, err := c.Write(make([]byte, 1)); !errors.Is(err, link.ErrSilent) {
			t.Errorf("a write of %T: %v", c, err)
		}
	}
}

func TestBulkIsNotTakenForSilence(t *testing.T) {
	a, b := linktest.Pair(t, link.Silence(time.Second))
	stream, err := a.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, in, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// The reader takes no more, so that the stream stands still, and after that very little at a time.
	go stream.Write(make([]byte, 1<<20))
	time.Sleep(1500 * time.Millisecond)
	if _, err := io.ReadFull(in, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	if a.Err() != nil || b.Err() != nil {
		t.Errorf("%v, %v", a.Err(), b.Err())
	}
}

func TestDaemonThatEnds(t *testing.T) {
	a, b, network := through(t)
	network.Break()
	for _, end := range []struct {
		l    *link.Link
		want string
	}{{a, "the daemon on host h3 ended"}, {b, "the daemon on host h2 ended"}} {
		if err := ended(t, end.l); !errors.Is(err, link.ErrEnded) || err.Error() != end.want {
			t.Errorf("%v, want %s", err, end.want)
		}
	}
}

func TestEndOfTheLinkIsNoEndOfAStream(t *testing.T) {
	a, b, network := through(t)
	stream, err := a.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	_, in, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	network.Break()
	if rest, err := io.ReadAll(in); len(rest) > 0 || !errors.Is(err, link.ErrEnded) {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestClosedStream(t *testing.T) {
	a, b := linktest.Pair(t)
	stream, err := a.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, in, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	stream.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read with a deadline: %v", err)
	}
	stream.SetReadDeadline(time.Time{})
	read := make(chan error)
	go func() {
		_, err := stream.Read(make([]byte, 1))
		read <- err
	}()
	stream.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the read that was under way: %v", err)
	}
	if _, err := stream.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write: %v", err)
	}
	// The other end reads to the end, and is not held up by what nobody reads any more.
	if got, err := io.ReadAll(in); len(got) > 0 || err != nil {
		t.Errorf("the other end reads %q, %v", got, err)
	}
	if _, err := in.Write(make([]byte, 2<<20)); err != nil {
		t.Errorf("the other end writes: %v", err)
	}
}

func TestListenersConnectionThatCannotBeMade(t *testing.T) {
	a, b, network := through(t)
	network.Refuse()
	if _, err := b.Dial(within(t), 1); err == nil || !strings.Contains(err.Error(), "host h2: it could not connect to this host") {
		t.Errorf("the listener's: %v", err)
	}
	if _, err := a.Dial(within(t), 1); err == nil || !strings.Contains(err.Error(), "host h3: it closed the connection before it had accepted it") {
		t.Errorf("the dialler's: %v", err)
	}
	if a.Err() != nil || b.Err() != nil {
		t.Errorf("the link ended: %v, %v", a.Err(), b.Err())
	}
}

func TestClosedListenerLeavesLinks(t *testing.T) {
	id := linktest.Identity(t)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := link.Listen(ctx, id, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Allow(id.Fingerprint())
	a, err := link.Dial(within(t), id, l.Addr().String(), id.Fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.AcceptLink()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	cancel()
	if _, err := l.AcceptLink(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	go echo(b)
	s, err := a.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := exchange(s, "still"); got != "1:still" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := link.Dial(within(t), id, l.Addr().String(), id.Fingerprint()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a new link: %v", err)
	}
}

func TestTheFirstAddressWithTheRightKey(t *testing.T) {
	id, other := linktest.Identity(t), linktest.Identity(t)
	listen := func(id *link.Identity) netip.AddrPort {
		l, err := link.Listen(t.Context(), id, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		l.Allow(id.Fingerprint(), other.Fingerprint())
		return l.Addr()
	}
	right, wrong := listen(id), listen(other)
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	l, err := link.DialAny(within(t), other, []netip.AddrPort{nobody, wrong, right}, id.Fingerprint(), link.Host("h1"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.RemoteAddr() != right {
		t.Errorf("connected to %v, not %v", l.RemoteAddr(), right)
	}
	_, err = link.DialAny(within(t), other, []netip.AddrPort{nobody, wrong}, id.Fingerprint(), link.Host("h1"))
	if err == nil || !strings.Contains(err.Error(), "connect to host h1 at 127.0.0.1:1: ") || !strings.Contains(err.Error(), "it has the key ") {
		t.Errorf("%v does not say both", err)
	}
	if _, err = link.DialAny(within(t), other, nil, id.Fingerprint(), link.Host("h1")); err == nil {
		t.Error("connected to no address")
	}
}
