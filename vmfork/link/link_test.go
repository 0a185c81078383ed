package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link/linktest"
)

// within is a context for things that take milliseconds.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// echo answers whatever comes over the link by its kind and what was sent, until the link ends.
func echo(l *link.Link) {
	for {
		kind, conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			text, err := io.ReadAll(conn)
			if err == nil {
				fmt.Fprintf(conn, "%d:%s", kind, text)
			}
		}()
	}
}

// exchange says something and reads the answer.
func exchange(conn io.ReadWriteCloser, text string) (string, error) {
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}

func TestStreamsAndConnectionsBothWays(t *testing.T) {
	a, b := linktest.Pair(t)
	if a.Host() != "listener" || b.Host() != "dialler" {
		t.Errorf("the hosts are %s and %s", a.Host(), b.Host())
	}
	if a.LocalAddr() != b.RemoteAddr() || b.LocalAddr() != a.RemoteAddr() {
		t.Errorf("%v to %v, but %v to %v", a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr())
	}
	for _, way := range []struct {
		name     string
		from, to *link.Link
	}{{"dialler", a, b}, {"listener", b, a}} {
		go echo(way.to)
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				conn, err := way.from.Open(within(t), byte(i+1))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := exchange(conn, "stream"); err != nil || got != fmt.Sprintf("%d:stream", i+1) {
					t.Errorf("%s's stream %d: %q, %v", way.name, i, got, err)
				}
			})
		}
		for i := range 20 {
			all.Go(func() {
				conn, err := way.from.Dial(within(t), byte(i+101))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := exchange(conn, "connection"); err != nil || got != fmt.Sprintf("%d:connection", i+101) {
					t.Errorf("%s's connection %d: %q, %v", way.name, i, got, err)
				}
			})
		}
		all.Wait()
	}
	if _, err := a.Open(within(t), 0); err == nil {
		t.Error("a stream of kind 0 was opened")
	}
	if _, err := a.Dial(within(t), 0); err == nil {
		t.Error("a connection of kind 0 was opened")
	}
}

func TestCloseTellsThePeer(t *testing.T) {
	a, b := linktest.Pair(t)
	if a.Err() != nil {
		t.Fatal(a.Err())
	}
	stream, err := b.Open(within(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := b.Dial(within(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	select {
	case <-b.Done():
	case <-within(t).Done():
		t.Fatal("the peer was not told")
	}
	for _, end := range []struct {
		l    *link.Link
		want string
	}{{a, "the link to host listener was closed here"}, {b, "host dialler closed the connection"}} {
		if err := end.l.Err(); err.Error() != end.want || !errors.Is(err, link.ErrClosed) {
			t.Errorf("%v, want %s", err, end.want)
		}
	}
	for _, c := range []io.Reader{stream, conn} {
		if _, err := c.Read(make([]byte, 1)); err == nil || err.Error() != b.Err().Error() {
			t.Errorf("%T: %v, want the link's reason", c, err)
		}
	}
	if _, err := b.Open(within(t), 1); !errors.Is(err, link.ErrClosed) {
		t.Errorf("open: %v", err)
	}
	if _, err := b.Dial(within(t), 1); !errors.Is(err, link.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
	if _, _, err := b.Accept(); !errors.Is(err, link.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}

func TestClockOfThePeer(t *testing.T) {
	a, b := linktest.Pair(t)
	for _, l := range []*link.Link{a, b} {
		for {
			ahead, trip, ok := l.Clock()
			if ok {
				// Both are on one clock.
				if ahead.Abs() > trip/2+time.Millisecond || trip <= 0 {
					t.Errorf("%v ahead, in a round trip of %v", ahead, trip)
				}
				break
			}
			select {
			case <-time.After(time.Millisecond):
			case <-within(t).Done():
				t.Fatal("no answer")
			}
		}
	}
}
