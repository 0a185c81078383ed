package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const patience = 10 * time.Second

// served is a server for one connection at a time, with its socket.
func served(t *testing.T, h Handler) (path string, ended <-chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sf.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	done := make(chan error, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			done <- ServeConn(context.Background(), conn, h)
		}
	}()
	return path, done
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func waitFor[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("waited in vain for ", what)
		panic("unreachable")
	}
}

// echo replies with the call's name; join waits for its client to go.
type echo struct{ cancelled chan string }

func (e echo) Call(ctx context.Context, r Request) Reply {
	if r.Call == Join {
		<-ctx.Done()
		e.cancelled <- r.Value("ticket")
	}
	return OK("call", r.Call)
}

func TestCallsOfAConnectionTakeTurns(t *testing.T) {
	path, ended := served(t, echo{})
	conn := dial(t, path)
	r := bufio.NewReader(conn)
	// Pipelined, with mistakes among them.
	if _, err := io.WriteString(conn, "whoami\nlist\nwhoami x\n\nfork\nclone\nawait-fork\n"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ok call=whoami", "ok call=list", "error kind=invalid", "error kind=invalid", "error kind=invalid", "error kind=invalid", "ok call=await-fork"} {
		got, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(got, want) {
			t.Fatalf("%q, %v, want %q", got, err, want)
		}
	}
	conn.Close()
	if err := waitFor(t, "the server's end", ended); err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestClosingCancelsTheCall(t *testing.T) {
	for _, c := range []struct{ name, sent string }{
		{"a waiting call", "join ticket=t1\n"},
		{"with another one after it", "join ticket=t1\nwhoami\n"},
		{"with a piece of one", "join ticket=t1\nwho"},
		{"with a line that has no end", "join ticket=t1\n" + strings.Repeat("x", MaxLine+8192)},
		{"with too many", "join ticket=t1\n" + strings.Repeat("whoami\n", 2*maxAhead)},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := echo{cancelled: make(chan string, 1)}
			path, ended := served(t, h)
			conn := dial(t, path)
			if _, err := io.WriteString(conn, c.sent); err != nil {
				t.Fatal(err)
			}
			select {
			case <-h.cancelled:
				t.Fatal("cancelled before its time")
			case <-time.After(30 * time.Millisecond):
			}
			conn.Close()
			if got := waitFor(t, "the cancellation", h.cancelled); got != "t1" {
				t.Errorf("cancelled %s", got)
			}
			waitFor(t, "the server's end", ended)
		})
	}
}

func TestALineWithoutEndEndsTheConnection(t *testing.T) {
	path, ended := served(t, echo{})
	conn := dial(t, path)
	if _, err := io.WriteString(conn, "whoami\n"+strings.Repeat("x", MaxLine+8192)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if want := "ok call=whoami\nerror kind=invalid text=no%20end"; !strings.HasPrefix(string(got), want) {
		t.Fatalf("%q, %v, want %q", got, err, want)
	}
	if err := waitFor(t, "the server's end", ended); !errors.Is(err, errLongLine) {
		t.Errorf("ended with %v", err)
	}
}

func TestTheServersContextEndsConnections(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ours, theirs := net.Pipe()
	defer ours.Close()
	begun, cancelled, ended := make(chan bool, 1), make(chan bool, 1), make(chan error, 1)
	h := HandlerFunc(func(ctx context.Context, _ Request) Reply {
		begun <- true
		<-ctx.Done()
		cancelled <- true
		return OK()
	})
	go func() { ended <- ServeConn(ctx, theirs, h) }()
	if _, err := io.WriteString(ours, "join ticket=t1\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the call", begun)
	leaving := errors.New("leaving")
	cancel(leaving)
	waitFor(t, "the cancellation", cancelled)
	if err := waitFor(t, "the server's end", ended); !errors.Is(err, leaving) {
		t.Errorf("ended with %v", err)
	}
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is not closed: %v", err)
	}
}

func TestDo(t *testing.T) {
	h := HandlerFunc(func(ctx context.Context, r Request) Reply {
		switch r.Call {
		case Join:
			<-ctx.Done()
		case Kill:
			return Fail(KindUnknown, "no ticket %s", r.Value("ticket"))
		}
		return OK("call", r.Call)
	})
	path, ended := served(t, h)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(ctx, NewRequest(Clone)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a wrong call: %v", err)
	}
	if _, err := c.Do(ctx, NewRequest(Kill, "ticket", "t9")); !errors.Is(err, ErrUnknown) || err.Error() != "unknown: no ticket t9" {
		t.Errorf("an error: %v", err)
	}
	if r, err := c.Do(ctx, NewRequest(List)); err != nil || len(r.Args) != 1 {
		t.Errorf("a call: %v, %v", r, err)
	}
	soon, cancelSoon := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancelSoon()
	if _, err := c.Do(soon, NewRequest(Join, "ticket", "t1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that takes too long: %v", err)
	}
	if err := waitFor(t, "the server to notice", ended); err != nil {
		t.Errorf("ended with %v", err)
	}
	if _, err := c.Do(ctx, NewRequest(List)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after that: %v", err)
	}
	if _, err := Dial(ctx, path+"x"); err == nil {
		t.Error("connected to nothing")
	}
}

func TestDoTakesTurns(t *testing.T) {
	var busy atomic.Int32
	path, _ := served(t, HandlerFunc(func(_ context.Context, r Request) Reply {
		if busy.Add(1) > 1 {
			return Fail(KindFailed, "two at once")
		}
		time.Sleep(time.Millisecond)
		busy.Add(-1)
		return OK("status", r.Value("status"))
	}))
	c, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	errs := make(chan error, 20)
	for i := range cap(errs) {
		go func() {
			want := string(rune('0' + i%10))
			r, err := c.Do(context.Background(), NewRequest(Exit, "status", want))
			if got, _ := r.Args.Get("status"); err == nil && got != want {
				err = errors.New("got the reply of another call")
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := waitFor(t, "a reply", errs); err != nil {
			t.Error(err)
		}
	}
}
