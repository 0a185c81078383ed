package vmfork_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api/apitest"
)

func start(t *testing.T) (*apitest.Server, context.Context) {
	t.Helper()
	s := apitest.Start(t)
	t.Setenv("SF_SOCKET", s.Socket)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return s, ctx
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestTheParentsWay(t *testing.T) {
	s, ctx := start(t)
	s.Exits(2, 7)
	tk := must[vmfork.Ticket](t)(vmfork.RequestTicket(ctx, 3, vmfork.Hierarchical()))
	if len(tk.Clones) != 2 || tk.Clones[0].VCPUs != 2 || tk.Clones[1].VCPUs != 1 {
		t.Fatalf("ticket %+v", tk)
	}
	if again := must[vmfork.Ticket](t)(vmfork.LookUpTicket(ctx, tk.ID)); !reflect.DeepEqual(again, tk) {
		t.Errorf("looked up %+v, requested %+v", again, tk)
	}
	if id := must[int](t)(vmfork.Clone(ctx, tk)); id != 0 {
		t.Errorf("id %d in the parent", id)
	}
	if _, err := vmfork.Clone(ctx, tk); !errors.Is(err, vmfork.ErrState) {
		t.Errorf("cloned twice: %v", err)
	}
	if err := vmfork.Exit(0); !errors.Is(err, vmfork.ErrRefused) {
		t.Errorf("exit in the parent: %v", err)
	}
	if got := must[map[int]int](t)(vmfork.Join(ctx, tk)); !reflect.DeepEqual(got, map[int]int{1: 0, 2: 7}) {
		t.Errorf("statuses %v", got)
	}
	if _, err := vmfork.Join(ctx, tk); !errors.Is(err, vmfork.ErrUnknown) || !strings.Contains(err.Error(), "join ticket "+tk.ID) {
		t.Errorf("joined twice: %v", err)
	}
	tk = must[vmfork.Ticket](t)(vmfork.RequestTicket(ctx, 1, vmfork.VCPUs(2)))
	if err := errors.Join(vmfork.KillClone(ctx, tk, 1), vmfork.Kill(ctx, tk)); err != nil {
		t.Error(err)
	}
	if err := vmfork.Kill(ctx, tk); !errors.Is(err, vmfork.ErrUnknown) {
		t.Errorf("killed twice: %v", err)
	}
	if _, err := vmfork.RequestTicket(ctx, 0); !errors.Is(err, vmfork.ErrInvalid) {
		t.Errorf("a ticket for nothing: %v", err)
	}
}

func TestAClonesWay(t *testing.T) {
	s, ctx := start(t)
	me := vmfork.Identity{ID: 3, Ticket: "t1", Member: 5, Name: "clone-5", IP: netip.MustParseAddr("10.7.0.6"), VCPUs: 2, Host: "host"}
	s.Be(me)
	if got := must[vmfork.Identity](t)(vmfork.Whoami(ctx)); got != me {
		t.Errorf("I am %+v", got)
	}
	tk := must[vmfork.Ticket](t)(vmfork.RequestTicket(ctx, 3))
	if id := must[int](t)(vmfork.Clone(ctx, tk)); id != 3 {
		t.Errorf("id %d", id)
	}
	if c, id, err := vmfork.CheckpointParent(ctx); c == "" || id != 3 || err != nil {
		t.Errorf("checkpoint %q %d %v", c, id, err)
	}
	if id, ticket, err := vmfork.AwaitFork(ctx); id != 3 || ticket != "t1" || err != nil {
		t.Errorf("await %d %q %v", id, ticket, err)
	}
	if got := must[[]vmfork.Member](t)(vmfork.List(ctx)); len(got) != 1 || got[0].Name != "clone-5" || got[0].Parent != -1 {
		t.Errorf("list %+v", got)
	}
}

func TestTransitiveCallsNameTheirMachine(t *testing.T) {
	s, ctx := start(t)
	web := vmfork.VM("web")
	tk := must[vmfork.Ticket](t)(web.RequestTicket(ctx, 1))
	must[int](t)(web.Clone(ctx, tk))
	must[map[int]int](t)(web.Join(ctx, tk))
	must[vmfork.Identity](t)(web.Whoami(ctx))
	c, _, err := web.CheckpointParent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tk = must[vmfork.Ticket](t)(web.RequestTicket(ctx, 1))
	for what, err := range map[string]error{"create clones": web.CreateClones(ctx, c, tk), "discard": web.Discard(ctx, c), "kill": web.Kill(ctx, tk), "exit": web.Exit(4)} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, call := range s.Calls() {
		if !strings.HasSuffix(call, " vm=web") {
			t.Errorf("call %q does not name the machine", call)
		}
	}
	if !slices.Contains(s.Calls(), "exit status=4 vm=web") {
		t.Errorf("calls %q", s.Calls())
	}
}

func TestJoinTellsWhoIsLost(t *testing.T) {
	s, ctx := start(t)
	s.On(api.Join, func(context.Context, api.Request) api.Reply {
		return api.LostReply([]int{2}, map[int]int{1: 4}, "clone 2 ended by a panic of its kernel")
	})
	statuses, err := vmfork.Join(ctx, vmfork.Ticket{ID: "t1"})
	var lost *vmfork.LostError
	if !errors.Is(err, vmfork.ErrLost) || !errors.As(err, &lost) || !reflect.DeepEqual(lost.Clones, []int{2}) {
		t.Fatalf("%v (%+v)", err, lost)
	}
	if want := (map[int]int{1: 4}); !reflect.DeepEqual(statuses, want) || !reflect.DeepEqual(lost.Statuses, want) {
		t.Errorf("statuses %v, %v", statuses, lost.Statuses)
	}
	if want := "join ticket t1: lost: clone 2 ended by a panic of its kernel"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

func TestContextsEndWaiting(t *testing.T) {
	s, ctx := start(t)
	gone := make(chan bool, 1)
	s.On(api.Join, func(ctx context.Context, r api.Request) api.Reply {
		if limit, ok := r.Timeout(); ok && limit == 0 {
			return api.Fail(api.KindTimeout, "2 clones have not ended")
		}
		<-ctx.Done()
		gone <- true
		return api.Fail(api.KindTimeout, "")
	})
	if _, err := vmfork.TryJoin(ctx, vmfork.Ticket{ID: "t1"}); !errors.Is(err, vmfork.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := vmfork.Join(soon, vmfork.Ticket{ID: "t1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	select {
	case <-gone:
	case <-ctx.Done():
		t.Error("the server has not noticed")
	}
	if _, _, err := vmfork.AwaitFork(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestOutsideOfAMachine(t *testing.T) {
	t.Setenv("SF_SOCKET", "")
	if _, err := os.Stat(vmfork.DefaultSocket); err == nil {
		t.Fatalf("this test wants to run where there is no %s", vmfork.DefaultSocket)
	}
	_, err := vmfork.Whoami(context.Background())
	want := "not inside a virtual machine of mpirun-sf (no /run/mpirun-sf/sf.sock); start one with: mpirun-sf vm run"
	if !errors.Is(err, vmfork.ErrOutside) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	nobody := t.TempDir() + "/file"
	if err := os.WriteFile(nobody, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := vmfork.Machine{Socket: nobody}
	if _, err := m.Whoami(context.Background()); !errors.Is(err, vmfork.ErrUnavailable) || errors.Is(err, vmfork.ErrOutside) {
		t.Errorf("a socket without a listener: %v", err)
	}
}
