package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// What a fork copies for free, a test's clone is told: it is this binary again,
// as the first process of a PID namespace, and goes on where the launcher's copy
// goes on in a clone.
const cloneMark = "MPIRUN_SF_TEST_CLONE"

type copied struct {
	Key    key
	Parent netip.AddrPort
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
	f := &Fork{API: exitOnly{}, key: c.Key, parent: c.Parent}
	f.BeClone(c.ID)
}

// exitOnly is the API of a clone that has nothing more to do than to leave.
type exitOnly struct{ API }

func (exitOnly) Exit() error { os.Exit(0); return nil }

// fakeAPI forks by starting processes.
type fakeAPI struct {
	t    *testing.T
	fork *Fork
	// Clone fails with this after it has made the clones.
	cloneError error
	// These clones do not come, or come with another key.
	absent, strangers []int
	self              Self // what Whoami says

	ended  chan int // ids
	lost   chan error
	exited chan struct{} // closed by Exit
	gone   atomic.Int64  // a clone that there is no more

	mu     sync.Mutex // guards clones
	clones map[int]*exec.Cmd
}

func (a *fakeAPI) Whoami(context.Context) (Self, error) { return a.self, nil }

func (a *fakeAPI) RequestTicket(_ context.Context, clones, vcpus int) (ticket.Ticket, error) {
	return testTicket(clones, vcpus), nil
}

func testTicket(clones, vcpus int) ticket.Ticket {
	t := ticket.Ticket{ID: "t1", Asked: clones}
	for i := 1; i <= clones; i++ {
		t.Clones = append(t.Clones, ticket.Clone{ID: i, Name: fmt.Sprintf("clone-%d", i), IP: netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), VCPUs: vcpus, Host: "here"})
	}
	return t
}

func (a *fakeAPI) Clone(_ context.Context, id string) (int, error) {
	for _, c := range a.fork.Ticket.Clones {
		if slices.Contains(a.absent, c.ID) {
			continue
		}
		k := a.fork.key
		if slices.Contains(a.strangers, c.ID) {
			k[0] ^= 1
		}
		b, err := json.Marshal(copied{k, a.fork.parent, c.ID})
		if err != nil {
			return 0, err
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), cloneMark+"="+string(b))
		// What a copy writes itself must be seen nowhere.
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		a.mu.Lock()
		a.clones[c.ID] = cmd
		a.mu.Unlock()
		go func() { cmd.Wait(); a.ended <- c.ID }()
	}
	return 0, a.cloneError
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
	for _, c := range a.fork.Ticket.Clones {
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
	a := &fakeAPI{t: t, clones: map[int]*exec.Cmd{}, ended: make(chan int, 100), lost: make(chan error, 1), exited: make(chan struct{})}
	a.self = Self{Name: "parent", IP: netip.MustParseAddr("127.0.0.1"), VCPUs: 2}
	tk, _ := a.RequestTicket(t.Context(), clones, vcpus)
	a.fork = &Fork{API: a, Self: a.self, Ticket: tk, Limit: 20 * time.Second}
	t.Cleanup(func() { a.Kill(context.Background(), "") })
	return a.fork, a
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

// A job in clones of this process: the ticket's, and with ranks of its own.
func TestForkedJob(t *testing.T) {
	for name, parentRanks := range map[string]int{"clones alone": 0, "with ranks in the parent": 1} {
		t.Run(name, func(t *testing.T) {
			tr := newTrial(t, `init; barrier; echo "$PMI_RANK/$PMI_SIZE $MPIR_CVAR_CH3_INTERFACE_HOSTNAME $(cat)"; echo oops >&2; finalize`)
			f, api := newFork(t, 2, 2)
			sessions, err := f.Clone(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var parent *agent.Session
			if parentRanks > 0 {
				parent = newNode(t).Session
			}
			tr.Places = f.Places(3+parentRanks, parentRanks, parent, sessions)
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
	f, _ := newFork(t, 3, 1)
	sessions, err := f.Clone(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tr.Places = f.Places(4, 1, newNode(t).Session, sessions)
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
	_, err := f.Clone(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "clone-2, clone-4 did not come back to this VM in 2s") {
		t.Errorf("the fork ended with %v", err)
	}
	// Those that came are gone with the fork, and so is the stranger.
	api.awaitEnd(3)
}

// Anybody on the network may connect, and holds up nobody.
func TestForkAmongStrangers(t *testing.T) {
	f, api := newFork(t, 1, 1)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f.key, f.parent = newKey(), l.Addr().(*net.TCPAddr).AddrPort()
	for i := range 20 {
		c, err := net.Dial("tcp", f.parent.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		switch i % 3 {
		case 0:
			c.Write(hello{id: 1}.bytes())
		case 1:
			c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		}
	}
	api.Clone(t.Context(), "")
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	sessions, err := f.gather(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	sessions[0].Close()
}

// The second to come as a clone that is there already is sent away.
func TestForkTakesEachCloneOnce(t *testing.T) {
	f, _ := newFork(t, 2, 1)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f.key = newKey()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	come := func(id int) net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := f.key.introduce(c, id); err != nil {
			t.Fatal(err)
		}
		return c
	}
	got := make(chan error, 1)
	go func() { _, err := f.gather(ctx, l); got <- err }()
	come(1)
	for _, id := range []int{1, 3} { // a second 1, and one that the ticket does not have
		c := come(id)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("clone %d was not sent away: %v", id, err)
		}
	}
	come(2)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// A clone call that fails returns in the parent, and in a clone of somebody
// else's fork, but never in a clone of this one.
func TestForkThatFails(t *testing.T) {
	boom := errors.New("no more memory")
	for name, c := range map[string]struct {
		now    Self
		leaves bool
	}{
		"in the parent":              {Self{Member: 0}, false},
		"in a clone of another fork": {Self{Member: 5, Ticket: "t9", ID: 1}, false},
		"in a clone of this fork":    {Self{Member: 3, Ticket: "t1", ID: 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, api := newFork(t, 1, 1)
			api.absent, api.cloneError, api.self = []int{1}, boom, c.now
			failed := make(chan error, 1)
			go func() { _, err := f.Clone(t.Context()); failed <- err }()
			select {
			case err := <-failed:
				if c.leaves || !errors.Is(err, boom) {
					t.Errorf("the fork returned with %v", err)
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
			sessions, err := f.Clone(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			tr.Places = f.Places(2, 0, nil, sessions)
			lost := make(chan string, 1)
			tr.Lost = lost
			go f.Watch(t.Context(), lost)
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
		f := &Fork{Self: Self{Name: "parent", IP: netip.MustParseAddr("127.0.0.1")}, Ticket: testTicket(c.clones, c.vcpus)}
		var got []string
		for _, p := range f.Places(c.np, c.parent, nil, make([]*agent.Session, c.clones)) {
			got = append(got, fmt.Sprint(p.Name, p.Ranks))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v: %s", c, s)
		}
	}
}
