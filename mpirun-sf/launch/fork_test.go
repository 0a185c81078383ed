package launch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// A job in clones of this process: the ticket's, and with ranks of its own.
func TestForkedJob(t *testing.T) {
	for name, parentRanks := range map[string]int{"clones alone": 0, "with ranks in the parent": 1} {
		t.Run(name, func(t *testing.T) {
			tr := newTrial(t, `init; barrier; echo "$PMI_RANK/$PMI_SIZE $MPIR_CVAR_CH3_INTERFACE_HOSTNAME $(cat)"; echo oops >&2; finalize`)
			f, api := newFork(t, 2, 2)
			sessions := api.make(t)
			var parent *agent.Session
			if parentRanks > 0 {
				parent = newNode(t).Session
			}
			tr.Places = f.Places(api.ticket, 3+parentRanks, parentRanks, parent, sessions)
			tr.Label = true
			tr.Stdin = strings.NewReader("in")
			if err := tr.run(t, 15*time.Second); err != nil {
				t.Fatal(err)
			}
			want := "[0] 0/3 127.0.0.2 in\n[1] 1/3 127.0.0.2 \n[2] 2/3 127.0.0.3 "
			if parentRanks > 0 {
				want = "[0] 0/4 127.0.0.1 in\n[1] 1/4 127.0.0.2 \n[2] 2/4 127.0.0.2 \n[3] 3/4 127.0.0.3 "
			}
			if got := sorted(tr.out.String()); got != want {
				t.Errorf("stdout is\n%s\nwant\n%s", got, want)
			}
			if n := strings.Count(tr.errors.String(), "oops"); n != 3+parentRanks {
				t.Errorf("%d ranks wrote to stderr", n)
			}
			// The end of a session is the end of its clone, without a kill.
			for _, s := range sessions {
				s.Close()
			}
			api.awaitEnd(2)
		})
	}
}

// A real MPI program, in processes that came back as clones do.
func TestForkedMPICH(t *testing.T) {
	program := filepath.Join(t.TempDir(), "ring")
	if out, err := exec.Command("mpicc.mpich", "-o", program, "../../examples/ring.c").CombinedOutput(); err != nil {
		t.Fatalf("compile the example: %v: %s", err, out)
	}
	tr := newTrial(t, "")
	f, api := newFork(t, 3, 1)
	sessions := api.make(t)
	tr.Places = f.Places(api.ticket, 4, 1, newNode(t).Session, sessions)
	tr.Apps[0].Argv = []string{program}
	// The processes have equal pids, each in its namespace, on what UCX takes
	// for one machine: by TCP alone they do not mistake each other.
	tr.Apps[0].Env = append(os.Environ(), "HWLOC_COMPONENTS=-gl,-opencl", "UCX_TLS=tcp", "UCX_NET_DEVICES=lo")
	so, err := guest.Progress()
	if err != nil {
		t.Fatal(err)
	}
	preload := filepath.Join(t.TempDir(), "progress.so")
	if err := os.WriteFile(preload, so, 0o755); err != nil {
		t.Fatal(err)
	}
	tr.Apps[0].Env = append(tr.Apps[0].Env, "LD_PRELOAD="+preload)
	if err := tr.run(t, 30*time.Second); err != nil {
		t.Fatalf("%v\nstdout: %s\nstderr: %s", err, tr.out.String(), tr.errors.String())
	}
	if tr.out.String() == "" {
		t.Error("it wrote nothing")
	}
}

// Who does not come is named; who cannot prove to be a clone does not count.
func TestForkNamesTheMissing(t *testing.T) {
	f, api := newFork(t, 4, 1)
	api.absent, api.strangers = []int{2}, []int{4}
	f.Limit = 2 * time.Second
	if err := f.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := f.Clones(t.Context(), api.ticket)
	if err == nil || !strings.HasPrefix(err.Error(), "clone-2, clone-4 did not come back to this VM in 2s") {
		t.Errorf("the fork ended with %v", err)
	}
	// Those that came are gone with the fork, and so is the stranger.
	api.awaitEnd(3)
}

// Anybody on the network may connect, and holds up nobody.
func TestForkAmongStrangers(t *testing.T) {
	f, api := newFork(t, 1, 1)
	if err := f.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	strangers := func() {
		for i := range 20 {
			c, err := net.Dial("tcp", f.parent.String())
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { c.Close() })
			switch i % 3 {
			case 0:
				c.Write(hello{member: first}.bytes())
			case 1:
				c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
			}
		}
	}
	strangers()
	a := f.await(api.ticket)
	defer f.stopAwaiting(a)
	strangers()
	if err := api.CreateClones(t.Context(), "c1", api.ticket.ID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	sessions, err := f.gather(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	sessions[0].Close()
}

// sentAway tells whether a connection is closed by the other side.
func sentAway(t *testing.T, c net.Conn) bool {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// The second to come as a clone that is there already is sent away, and so is who
// is of a ticket that nobody awaits.
func TestForkTakesEachCloneOnce(t *testing.T) {
	f, api := newFork(t, 2, 1)
	if err := f.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	come := func(who member) (net.Conn, error) {
		c, err := net.Dial("tcp", f.parent.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, f.key.introduce(c, who)
	}
	if _, err := come(first); err == nil {
		t.Error("a clone was let in that nobody awaits")
	}
	a := f.await(api.ticket)
	defer f.stopAwaiting(a)
	got := make(chan error, 1)
	go func() { _, err := f.gather(ctx, a); got <- err }()
	// Which of two is the second is decided where they are let in.
	closed := make(chan bool, 2)
	for range 2 {
		c, err := come(first)
		if err != nil {
			t.Fatal(err)
		}
		go func() { closed <- sentAway(t, c) }()
	}
	away := false
	for range 2 {
		away = away || <-closed
	}
	if !away {
		t.Error("neither of two that came as the same clone was sent away")
	}
	// One that the ticket does not have, and one of another ticket.
	for _, who := range []member{{"t1", 3}, {"t2", 2}} {
		if c, err := come(who); err != nil || !sentAway(t, c) {
			t.Errorf("clone %v was not sent away: %v", who, err)
		}
	}
	if _, err := come(member{"t1", 2}); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// Clones that are made later, of the same checkpoint, are others; two tickets at
// once do not mix.
func TestForkGrows(t *testing.T) {
	f, api := newFork(t, 2, 1)
	tr := newTrial(t, `init; barrier; echo "$PMI_RANK/$PMI_SIZE"; finalize`)
	sessions := api.make(t)
	if !api.holds("c1", true) {
		t.Error("nobody discards the checkpoint if the launcher is killed")
	}
	var more errgroup.Group
	var grown [2][]*agent.Session
	for i := range grown {
		tk, err := api.RequestTicket(t.Context(), 1+i, 1)
		if err != nil {
			t.Fatal(err)
		}
		more.Go(func() (err error) { grown[i], err = f.Clones(t.Context(), tk); return err })
	}
	if err := more.Wait(); err != nil || len(grown[0]) != 1 || len(grown[1]) != 2 {
		t.Fatalf("%d and %d clones more (%v)", len(grown[0]), len(grown[1]), err)
	}
	tr.Places = f.Places(testTicket(5, 1), 5, 0, nil, slices.Concat(sessions, grown[0], grown[1]))
	if err := tr.run(t, 15*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, want := sorted(tr.out.String()), "0/5\n1/5\n2/5\n3/5\n4/5"; got != want {
		t.Errorf("stdout is\n%s\nwant\n%s", got, want)
	}
	f.Close(t.Context())
	if got := <-api.discarded; got != "c1" || !api.holds("c1", false) {
		t.Errorf("checkpoint %s was discarded, and not c1 alone", got)
	}
	tk, _ := api.RequestTicket(t.Context(), 1, 1)
	if _, err := f.Clones(t.Context(), tk); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("clones of a checkpoint that was discarded: %v", err)
	}
}

// A checkpoint that fails returns in the parent, and in a clone of somebody
// else's fork, but never in a clone of it.
func TestForkThatFails(t *testing.T) {
	boom := errors.New("no more memory")
	for name, c := range map[string]struct {
		now    Self
		err    error
		leaves bool
	}{
		"in the parent":              {Self{Member: 0}, boom, false},
		"in a clone of another fork": {Self{Member: 5, Ticket: "t9", ID: 1}, fmt.Errorf("%w: it is the parent's", vmfork.ErrCloned), false},
		"in a clone of this fork":    {Self{Member: 3, Ticket: "t1", ID: 1}, boom, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, api := newFork(t, 1, 1)
			api.checkpointError, api.self = c.err, c.now
			failed := make(chan error, 1)
			go func() { failed <- f.Checkpoint(t.Context()) }()
			select {
			case err := <-failed:
				if c.leaves || !errors.Is(err, c.err) {
					t.Errorf("it returned with %v", err)
				}
			case <-api.exited:
				if !c.leaves {
					t.Error("it ended the VM")
				}
			case <-time.After(10 * time.Second):
				t.Error("waited 10 s")
			}
		})
	}
}

// A clone that is lost ends the job, with Join's reason or that it is gone.
func TestForkLosesClone(t *testing.T) {
	for name, c := range map[string]struct {
		lose func(*fakeAPI)
		says string
	}{
		"the ticket was killed": {func(a *fakeAPI) { a.lost <- errors.New("the ticket was killed") }, "the ticket was killed"},
		"a machine is gone":     {func(a *fakeAPI) { a.gone.Store(2) }, "clone-2 was lost: its virtual machine has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTrial(t, `echo ready; sleep 60`)
			f, api := newFork(t, 2, 1)
			sessions := api.make(t)
			tr.Places = f.Places(api.ticket, 2, 0, nil, sessions)
			lost := make(chan string, 1)
			tr.Lost = lost
			go f.Watch(t.Context(), api.ticket, lost)
			go func() {
				tr.awaitOutput(t, "ready", 2)
				c.lose(api)
			}()
			fails(t, tr.run(t, watchInterval+5*time.Second), 1, c.says)
		})
	}
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		np, parent, clones, vcpus int
		want                      string
	}{
		{4, 0, 4, 1, "clone-1[0] clone-2[1] clone-3[2] clone-4[3]"},
		{4, 1, 3, 1, "parent[0] clone-1[1] clone-2[2] clone-3[3]"},
		{5, 2, 2, 2, "parent[0 1] clone-1[2 3] clone-2[4]"},
		{2, 2, 0, 1, "parent[0 1]"},
		{7, 1, 2, 2, "parent[0] clone-1[1 2 3] clone-2[4 5 6]"},
	} {
		f := &Fork{Self: Self{Name: "parent", IP: netip.MustParseAddr("127.0.0.1")}}
		var got []string
		for _, p := range f.Places(testTicket(c.clones, c.vcpus), c.np, c.parent, nil, make([]*agent.Session, c.clones)) {
			got = append(got, fmt.Sprint(p.Name, p.Ranks))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v: %s", c, s)
		}
	}
}
