package pmix

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// program is testdata/mpi.c, built with Open MPI's compiler.
var program = sync.OnceValues(func() (string, error) {
	if _, err := exec.LookPath("mpicc.openmpi"); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "pmix-test-")
	if err != nil {
		return "", err
	}
	at := filepath.Join(dir, "mpi")
	if out, err := exec.Command("mpicc.openmpi", "-o", at, "testdata/mpi.c").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return at, nil
})

// hosts are where the nodes are. Each has its own address and name: Open MPI takes ranks with the same ones for
// neighbours, and connections of theirs for each other's.
var hosts = sync.OnceValues(func() (*testcluster.Cluster, error) {
	return testcluster.New(context.Background(), testcluster.Options{Hosts: 4})
})

func TestMain(m *testing.M) {
	code := m.Run()
	if c, err := hosts(); err == nil {
		c.Close()
	}
	if at, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(at))
	}
	os.Exit(code)
}

// world runs jobs with real helpers as processes of this machine.
type world struct {
	t      *testing.T
	ctx    context.Context
	server *Server
	helper string
	env    []string

	mu      sync.Mutex
	out     bytes.Buffer
	aborted *Proc
	code    int
	texts   []string
	jobs    int
	ranks   sync.WaitGroup
	exits   map[Proc]int
	states  map[Proc]pmi.State
	kill    context.CancelFunc
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if _, err := program(); err != nil {
		t.Skipf("no Open MPI program can be built: %v", err)
	}
	b, err := Helper()
	if err != nil {
		t.Skipf("%v", err)
	}
	w := &world{t: t, helper: filepath.Join(t.TempDir(), "sfpmix"), exits: map[Proc]int{}, states: map[Proc]pmi.State{}}
	if err := os.WriteFile(w.helper, b, 0o755); err != nil {
		t.Fatal(err)
	}
	w.ctx, w.kill = context.WithTimeout(context.Background(), 60*time.Second)
	w.server = NewServer(Events{
		Abort: func(p Proc, code int, text string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.aborted, w.code = &p, code
			w.kill()
		},
		Message: func(p Proc, text string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.texts = append(w.texts, text)
		},
		Spawn: func(s Spawn, answer func(string, error)) {
			go func() { answer(w.spawned(s)) }()
		},
	})
	t.Cleanup(w.kill)
	return w
}

// stream is a process's standard input and output.
type stream struct {
	io.ReadCloser
	in io.WriteCloser
}

func (s stream) Write(b []byte) (int, error) { return s.in.Write(b) }

func (s stream) Close() error {
	s.in.Close()
	return s.ReadCloser.Close()
}

// start starts a job with ppn ranks on each of so many nodes.
func (w *world) start(nodes, ppn int, parent Proc, dir string, argv, env []string) (string, error) {
	w.mu.Lock()
	w.jobs++
	j := Job{Namespace: fmt.Sprintf("sf.%d.%d", os.Getpid(), w.jobs), Universe: nodes * ppn, Parent: parent}
	w.mu.Unlock()
	for n := range nodes {
		p := Place{Name: fmt.Sprintf("host%d", n%4)}
		for i := range ppn {
			p.Ranks = append(p.Ranks, n*ppn+i)
		}
		j.Places = append(j.Places, p)
	}
	j.Apps = []App{{Program: argv[0], Dir: dir, Ranks: nodes * ppn}}
	if err := w.server.Add(j); err != nil {
		return "", err
	}
	cluster, err := hosts()
	if err != nil {
		return "", err
	}
	attached := make([]*Node, nodes)
	errs := make(chan error, nodes)
	for n := range nodes {
		go func() {
			h := cluster.Host(n%4).Command(context.Background(), w.helper)
			h.Stderr = os.Stderr
			in, _ := h.StdinPipe()
			out, _ := h.StdoutPipe()
			if err := h.Start(); err != nil {
				errs <- err
				return
			}
			w.t.Cleanup(func() { in.Close(); h.Wait() })
			var err error
			attached[n], err = w.server.Attach(w.ctx, stream{out, in}, j.Namespace, n)
			errs <- err
		}()
	}
	for range nodes {
		if err := <-errs; err != nil {
			return "", err
		}
	}
	for n, p := range j.Places {
		host := cluster.Host(n % 4)
		// /dev/shm is the same on all.
		shm := w.t.TempDir()
		go attached[n].Serve(w.ctx)
		for _, r := range p.Ranks {
			c := host.Command(w.ctx, argv[0], argv[1:]...)
			c.Dir = dir
			c.Env = append(append(append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, w.env...), env...), attached[n].Environ[r]...)
			c.Env = append(c.Env, j.Environ(r, host.Address.String())...)
			c.Env = append(c.Env, "OMPI_MCA_btl_vader_backing_directory="+shm)
			c.Stdout, c.Stderr = &locked{w}, &locked{w}
			if err := c.Start(); err != nil {
				return "", err
			}
			w.ranks.Go(func() {
				c.Wait()
				limit, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				proc := Proc{j.Namespace, r}
				state := w.server.Settle(limit, proc)
				w.mu.Lock()
				defer w.mu.Unlock()
				w.exits[proc], w.states[proc] = c.ProcessState.ExitCode(), state
			})
		}
	}
	return j.Namespace, nil
}

func (w *world) spawned(s Spawn) (string, error) {
	a := s.Apps[0]
	return w.start(a.Ranks, 1, s.By, a.Dir, append([]string{a.Program}, a.Argv[1:]...), a.Env)
}

type locked struct{ w *world }

func (l *locked) Write(b []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.w.out.Write(b)
}

// run runs the test program to its end.
func (w *world) run(nodes, ppn int, args ...string) string {
	w.t.Helper()
	at, _ := program()
	dir, _ := os.Getwd()
	if _, err := w.start(nodes, ppn, Proc{}, dir, append([]string{at}, args...), nil); err != nil {
		w.t.Fatal(err)
	}
	w.ranks.Wait()
	if w.aborted == nil && w.ctx.Err() != nil {
		w.t.Fatalf("%v did not end:\n%s", args, w.out.String())
	}
	return w.out.String()
}

// allRight asserts that all ranks have ended well.
func (w *world) allRight(ranks int) {
	w.t.Helper()
	if len(w.exits) != ranks {
		w.t.Errorf("%d ranks ended, expected %d", len(w.exits), ranks)
	}
	for p, code := range w.exits {
		if code != 0 || w.states[p] != pmi.Finalized {
			w.t.Errorf("%v exited with %d, %v\n%s", p, code, w.states[p], w.out.String())
		}
	}
}

func TestOpenMPIHello(t *testing.T) {
	w := newWorld(t)
	out := w.run(2, 2, "hello")
	for r := range 4 {
		if want := fmt.Sprintf("rank %d of 4\n", r); !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	w.allRight(4)
}

func TestOpenMPITraffic(t *testing.T) {
	for _, c := range [][]string{{"ring"}, {"alltoall", "5000"}} {
		t.Run(c[0], func(t *testing.T) {
			w := newWorld(t)
			if out := w.run(2, 2, c...); out != c[0]+" right\n" {
				t.Errorf("it said %q", out)
			}
			w.allRight(4)
		})
	}
}

func TestOpenMPIWithoutCollectedData(t *testing.T) {
	w := newWorld(t)
	w.env = []string{"OMPI_MCA_pmix_base_collect_data=0"}
	if out := w.run(3, 1, "ring"); out != "ring right\n" {
		t.Errorf("it said %q", out)
	}
	w.allRight(3)
}

func TestOpenMPISpawn(t *testing.T) {
	w := newWorld(t)
	if out := w.run(2, 1, "spawn"); out != "children sum 21\n" {
		t.Errorf("it said %q", out)
	}
	w.allRight(4)
}

func TestOpenMPIPublish(t *testing.T) {
	w := newWorld(t)
	if out := w.run(2, 1, "publish"); out != "heard 42\n" {
		t.Errorf("it said %q", out)
	}
	w.allRight(2)
}

func TestOpenMPIAbort(t *testing.T) {
	w := newWorld(t)
	w.run(2, 1, "abort")
	if w.aborted == nil || w.aborted.Rank != 1 || w.code != 7 {
		t.Errorf("aborted: %v with %d\n%s", w.aborted, w.code, w.out.String())
	}
}

func TestOpenMPIErrorText(t *testing.T) {
	w := newWorld(t)
	w.run(2, 1, "badsend")
	if w.aborted == nil {
		t.Error("not aborted")
	}
	if text := strings.Join(w.texts, ""); !strings.Contains(text, "MPI_ERR_RANK: invalid rank") {
		t.Errorf("shown: %q\n%s", text, w.out.String())
	}
}

func TestOpenMPILeave(t *testing.T) {
	w := newWorld(t)
	at, _ := program()
	ns, err := w.start(2, 1, Proc{}, "", []string{at, "leave"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		w.mu.Lock()
		code, ended := w.exits[Proc{ns, 1}]
		state := w.states[Proc{ns, 1}]
		w.mu.Unlock()
		if ended {
			if code != 3 || state != pmi.Initialized {
				t.Errorf("exit %d, %v", code, state)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("rank 1 has not left")
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.kill()
	w.ranks.Wait()
}

// TestOpenMPIHangRate is the measure of whether all this is right: none of so many runs on four hosts may go wrong.
func TestOpenMPIHangRate(t *testing.T) {
	runs := 2
	if os.Getenv("MPIRUN_SF_TEST_ALL") != "" {
		runs = 200
	}
	for i := range runs {
		if !t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newWorld(t)
			if out := w.run(4, 1, "alltoall", "100"); out != "alltoall right\n" {
				t.Errorf("it said %q", out)
			}
			w.allRight(4)
		}) {
			break
		}
	}
}
