package sfld

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNetworkOf dials from within the private network of a daemon's job.
func inNetworkOf(t *testing.T, c *Client, address string) (conn net.Conn, err error) {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	namespace := ""
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && len(to) > 4 && to[:4] == "net:" && to != own {
			namespace = f
		}
	}
	ns, err := os.Open(namespace)
	if err != nil {
		t.Fatalf("the daemon has no network of its own: %v", err)
	}
	defer ns.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		home, failed := os.Open("/proc/thread-self/ns/net")
		if err = failed; err != nil {
			return
		}
		defer home.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		defer unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err = new(net.Dialer).DialContext(ctx, "tcp4", address)
	}()
	<-done
	return conn, err
}

// Machines reach the launcher where it listens, and there alone.
func TestListen(t *testing.T) {
	c := startDaemon(t)
	l, err := c.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	type accepted struct {
		conn net.Conn
		err  error
	}
	accepts := make(chan accepted)
	go func() {
		for {
			conn, err := l.Accept()
			accepts <- accepted{conn, err}
			if err != nil {
				return
			}
		}
	}()
	for range 2 {
		there, err := inNetworkOf(t, c, address)
		if err != nil {
			t.Fatal(err)
		}
		defer there.Close()
		a := <-accepts
		if a.err != nil {
			t.Fatal(a.err)
		}
		if got, want := a.conn.RemoteAddr().String(), there.LocalAddr().String(); got != want {
			t.Errorf("a connection is said to come from %s, and comes from %s", got, want)
		}
		for _, way := range [][2]net.Conn{{there, a.conn}, {a.conn, there}} {
			if _, err := way[0].Write([]byte("hello")); err != nil {
				t.Error(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(way[1], got); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
		}
		a.conn.Close()
		if _, err := there.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("after its end a connection reads %v", err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if a := <-accepts; !errors.Is(a.err, net.ErrClosed) {
		t.Errorf("a closed listener accepts %v", a.err)
	}
	if conn, err := inNetworkOf(t, c, address); err == nil {
		conn.Close()
		t.Error("a closed listener listens")
	}
	if err := l.Close(); err != nil {
		t.Errorf("to close twice: %v", err)
	}
}

// A machine that is gone ends no connection: the job's end does not wait for that.
func TestListenToTheLost(t *testing.T) {
	c := startDaemon(t)
	l, err := c.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	there, err := inNetworkOf(t, c, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	begin := time.Now()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
}
