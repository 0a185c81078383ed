package launch

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// What a fork copies for free, a test's clone is told: it is this binary again,
// as the first process of a PID namespace, and goes on where the launcher's copy
// goes on in a clone.
const cloneMark = "MPIRUN_SF_TEST_CLONE"

type copied struct {
	Key    key
	Parent netip.AddrPort
	Ticket string
	ID     int
}

// beTestClone is the main function of a test's clone.
func beTestClone() {
	var c copied
	if err := json.Unmarshal([]byte(os.Getenv(cloneMark)), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Unsetenv(cloneMark)
	f := &Fork{API: exitOnly{ticket: c.Ticket}, key: c.Key, parent: c.Parent}
	f.BeClone(c.ID)
}

// exitOnly is the API of a clone that has nothing more to do than to say who made
// it and to leave.
type exitOnly struct {
	API
	ticket string
}

func (e exitOnly) Whoami(context.Context) (Self, error) { return Self{Ticket: e.ticket}, nil }

func (exitOnly) Exit() error { os.Exit(0); return nil }

// fakeAPI forks by starting processes.
type fakeAPI struct {
	t    *testing.T
	fork *Fork
	// Checkpoint and CreateClones fail with these.
	checkpointError, cloneError error
	// These clones do not come, or come with another key.
	absent, strangers []int
	self              Self // what Whoami says

	ended  chan int // ids
	lost   chan error
	exited chan struct{} // closed by Exit
	gone   atomic.Int64  // a clone that there is no more

	ticket    ticket.Ticket // the first
	discarded chan string   // checkpoints

	mu     sync.Mutex // guards all below
	clones []*exec.Cmd
	made   map[string]ticket.Ticket
	held   map[string]bool
}

func (a *fakeAPI) Whoami(context.Context) (Self, error) { return a.self, nil }

func (a *fakeAPI) RequestTicket(_ context.Context, clones, vcpus int) (ticket.Ticket, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := testTicket(clones, vcpus)
	t.ID = fmt.Sprintf("t%d", len(a.made)+1)
	a.made[t.ID] = t
	return t, nil
}

func testTicket(clones, vcpus int) ticket.Ticket {
	t := ticket.Ticket{ID: "t1", Asked: clones}
	for i := 1; i <= clones; i++ {
		t.Clones = append(t.Clones, ticket.Clone{ID: i, Name: fmt.Sprintf("clone-%d", i), IP: netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), VCPUs: vcpus, Host: "here"})
	}
	return t
}

func (a *fakeAPI) Checkpoint(context.Context) (string, int, error) {
	return "c1", 0, a.checkpointError
}

func (a *fakeAPI) Discard(_ context.Context, checkpoint string) error {
	a.discarded <- checkpoint
	return nil
}

func (a *fakeAPI) HoldCheckpoint(ctx context.Context, checkpoint string) error {
	return a.HoldTicket(ctx, checkpoint)
}

func (a *fakeAPI) HoldTicket(ctx context.Context, id string) error {
	a.hold(id, true)
	<-ctx.Done()
	a.hold(id, false)
	return ctx.Err()
}

func (a *fakeAPI) hold(id string, is bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held[id] = is
}

// holds waits until something is held, or is no more.
func (a *fakeAPI) holds(id string, want bool) bool {
	is := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.held[id]
	}
	for end := time.Now().Add(5 * time.Second); is() != want && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	return is() == want
}

func (a *fakeAPI) CreateClones(_ context.Context, checkpoint, id string) error {
	if checkpoint != "c1" {
		return fmt.Errorf("there is no checkpoint %q", checkpoint)
	}
	a.mu.Lock()
	clones := a.made[id].Clones
	a.mu.Unlock()
	for _, c := range clones {
		if slices.Contains(a.absent, c.ID) {
			continue
		}
		k := a.fork.key
		if slices.Contains(a.strangers, c.ID) {
			k[0] ^= 1
		}
		b, err := json.Marshal(copied{k, a.fork.parent, id, c.ID})
		if err != nil {
			return err
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), cloneMark+"="+string(b))
		// What a copy writes itself must be seen nowhere.
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
		if err := cmd.Start(); err != nil {
			return err
		}
		a.mu.Lock()
		a.clones = append(a.clones, cmd)
		a.mu.Unlock()
		go func() { cmd.Wait(); a.ended <- c.ID }()
	}
	return a.cloneError
}

func (a *fakeAPI) Join(ctx context.Context, id string) error {
	select {
	case err := <-a.lost:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *fakeAPI) Machines(context.Context) ([]string, error) {
	names := []string{"parent"}
	for _, c := range a.ticket.Clones {
		if int64(c.ID) != a.gone.Load() {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

func (a *fakeAPI) Kill(context.Context, string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.clones {
		c.Process.Kill()
	}
	return nil
}

func (a *fakeAPI) Exit() error {
	close(a.exited)
	select {} // as where a clone ends
}

func newFork(t *testing.T, clones, vcpus int) (*Fork, *fakeAPI) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("clones need a namespace and a user: this test needs root")
	}
	a := &fakeAPI{
		t: t, made: map[string]ticket.Ticket{}, held: map[string]bool{}, discarded: make(chan string, 10),
		ended: make(chan int, 100), lost: make(chan error, 1), exited: make(chan struct{}),
	}
	a.self = Self{Name: "parent", IP: netip.MustParseAddr("127.0.0.1"), VCPUs: 2}
	a.ticket, _ = a.RequestTicket(t.Context(), clones, vcpus)
	a.fork = &Fork{API: a, Self: a.self, Limit: 20 * time.Second}
	t.Cleanup(func() {
		a.fork.Close(context.Background())
		a.Kill(context.Background(), "")
	})
	return a.fork, a
}

// make makes the first ticket's clones.
func (a *fakeAPI) make(t *testing.T) []*agent.Session {
	t.Helper()
	if err := a.fork.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	sessions, err := a.fork.Clones(t.Context(), a.ticket)
	if err != nil {
		t.Fatal(err)
	}
	return sessions
}

// awaitEnd waits until n clones are gone.
func (a *fakeAPI) awaitEnd(n int) {
	a.t.Helper()
	for range n {
		select {
		case <-a.ended:
		case <-time.After(20 * time.Second):
			a.t.Error("waited 20 s for a clone's end")
			return
		}
	}
}
