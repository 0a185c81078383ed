// Command go is the conformance program in Go; see ../README.md. Run it in a
// virtual machine that may fork: it prints one line for each step, and the last is
// "conformance: ok". Where something differs it says what and exits with 1.
package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

const patience = 2 * time.Minute

// value is what the clones inherit; atomic, so that the memory is asked and no register.
var value atomic.Int32

func main() {
	if err := conformance(); err != nil {
		fmt.Println("conformance:", err)
		os.Exit(1)
	}
}

func expect(step, got, want string) error {
	if got != want {
		return fmt.Errorf("%s: got %s, want %s", step, got, want)
	}
	fmt.Printf("%s: %s\n", step, got)
	return nil
}

func expectKind(step string, err error, want string) error {
	got := "ok"
	if err != nil {
		got = string(api.KindOf(err))
	}
	return expect(step, got, want)
}

// child is what a clone does: it tells the parent what it saw, and ends when
// that has arrived.
func child(parent string, id int, saw int32, status int) error {
	if err := tell(parent, fmt.Sprintf("child %d saw %d\n", id, saw)); err != nil {
		status = 100
	}
	return vmfork.Exit(status)
}

func tell(parent, line string) error {
	conn, err := net.DialTimeout("tcp", parent, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, line); err != nil {
		return err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadAll(conn)
	return err
}

// hear is one child's line, without its LF.
func hear(l *net.TCPListener) (string, error) {
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	conn, err := l.Accept()
	if err != nil {
		return "", fmt.Errorf("wait for a child: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := io.ReadAll(conn)
	return strings.TrimSuffix(string(line), "\n"), err
}

func text(statuses map[int]int) string {
	var s []string
	for _, id := range slices.Sorted(maps.Keys(statuses)) {
		s = append(s, fmt.Sprintf("%d:%d", id, statuses[id]))
	}
	return strings.Join(s, " ")
}

func conformance() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	me, err := vmfork.Whoami(ctx)
	if err != nil {
		return err
	}
	if err := expect("whoami", fmt.Sprintf("id %d", me.ID), "id 0"); err != nil {
		return err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{})
	if err != nil {
		return err
	}
	defer l.Close()
	parent := netip.AddrPortFrom(me.IP, l.Addr().(*net.TCPAddr).AddrPort().Port()).String()
	if err := cloneAndJoin(ctx, l, parent); err != nil {
		return err
	}
	if err := expectKind("exit in the parent", vmfork.Exit(0), "refused"); err != nil {
		return err
	}
	if err := cloneAndKill(ctx); err != nil {
		return err
	}
	if err := checkpointAndCreate(ctx, l, parent); err != nil {
		return err
	}
	fmt.Println("conformance: ok")
	return nil
}

func cloneAndJoin(ctx context.Context, l *net.TCPListener, parent string) error {
	value.Store(42)
	t, err := vmfork.RequestTicket(ctx, 2)
	if err != nil {
		return err
	}
	var ids string
	addresses := map[netip.Addr]bool{}
	for _, c := range t.Clones {
		ids += fmt.Sprintf(" %d", c.ID)
		addresses[c.IP] = true
	}
	got := fmt.Sprintf("granted %d, ids%s, %d addresses", len(t.Clones), ids, len(addresses))
	if err := expect("ticket", got, "granted 2, ids 1 2, 2 addresses"); err != nil {
		return err
	}
	id, err := vmfork.Clone(ctx, t)
	if err != nil {
		return err
	}
	if id > 0 {
		return child(parent, id, value.Load(), id)
	}
	var lines []string
	for range 2 {
		line, err := hear(l)
		if err != nil {
			return err
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	for i, line := range lines {
		if err := expect("clone", line, fmt.Sprintf("child %d saw 42", i+1)); err != nil {
			return err
		}
	}
	statuses, err := vmfork.Join(ctx, t)
	if err != nil {
		return err
	}
	if err := expect("join", text(statuses), "1:1 2:2"); err != nil {
		return err
	}
	_, err = vmfork.Join(ctx, t)
	if err := expectKind("join again", err, "unknown"); err != nil {
		return err
	}
	_, err = vmfork.Clone(ctx, t)
	return expectKind("clone after join", err, "unknown")
}

func cloneAndKill(ctx context.Context) error {
	t, err := vmfork.RequestTicket(ctx, 1)
	if err != nil {
		return err
	}
	id, err := vmfork.Clone(ctx, t)
	if err != nil {
		return err
	}
	for id > 0 {
		time.Sleep(time.Second)
	}
	if err := expectKind("kill", vmfork.Kill(ctx, t), "ok"); err != nil {
		return err
	}
	_, err = vmfork.Join(ctx, t)
	return expectKind("join after kill", err, "unknown")
}

func checkpointAndCreate(ctx context.Context, l *net.TCPListener, parent string) error {
	value.Store(7)
	c, id, err := vmfork.CheckpointParent(ctx)
	if err != nil {
		return err
	}
	if id > 0 {
		return child(parent, id, value.Load(), 0)
	}
	value.Store(8)
	t, err := vmfork.RequestTicket(ctx, 1)
	if err != nil {
		return err
	}
	if err := vmfork.CreateClones(ctx, c, t); err != nil {
		return err
	}
	line, err := hear(l)
	if err != nil {
		return err
	}
	if err := expect("create-clones", line, "child 1 saw 7"); err != nil {
		return err
	}
	statuses, err := vmfork.Join(ctx, t)
	if err != nil {
		return err
	}
	if err := expect("join", text(statuses), "1:0"); err != nil {
		return err
	}
	if err := vmfork.Discard(ctx, c); err != nil {
		return err
	}
	if t, err = vmfork.RequestTicket(ctx, 1); err != nil {
		return err
	}
	if err := expectKind("create-clones after discard", vmfork.CreateClones(ctx, c, t), "unknown"); err != nil {
		return err
	}
	return vmfork.Kill(ctx, t)
}
