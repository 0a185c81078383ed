package pmi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// These tests launch real MPICH processes on this machine. All claim to be on one node, however many proxies serve them.

// compile builds testdata/ring.c, once for each test that runs.
func compile(t *testing.T) string {
	t.Helper()
	return build(t, "libmpich-dev", "mpicc.mpich", "ring.c")
}

// build compiles a program of testdata with a compiler and what more it needs, which a package brings.
func build(t *testing.T, pkg, compiler, source string, flags ...string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), strings.TrimSuffix(source, ".c"))
	args := append([]string{"-o", program, filepath.Join("testdata", source)}, flags...)
	if out, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v (apt-get install %s)\n%s", compiler, err, pkg, out)
	}
	return program
}

// real is a group of real processes.
type real struct {
	t      *testing.T
	ctx    context.Context
	names  *Names
	group  Group
	server *Server
	ranks  []*exec.Cmd
	out    []*bytes.Buffer
	ended  []chan error // ServeRank's errors
	serves []chan error
	up     atomic.Int64
	aborts chan string
	faults chan string
	spawns chan *SpawnRequest
	port   bool // port mode in place of PMI_FD
}

// newReal makes a group of so many ranks, of which nothing runs.
func newReal(t *testing.T, names *Names, group Group) *real {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	m := &real{
		t: t, ctx: ctx, names: names, group: group,
		aborts: make(chan string, group.Size), faults: make(chan string, group.Size), spawns: make(chan *SpawnRequest, group.Size),
	}
	m.server = NewServer(group, names, Events{
		Abort:    func(rank, code int, message string) { m.aborts <- fmt.Sprintf("rank %d aborts with %d", rank, code) },
		Protocol: func(rank int, err error) { m.faults <- fmt.Sprintf("rank %d: %v", rank, err) },
		Spawn:    func(r *SpawnRequest) { m.spawns <- r },
	})
	return m
}

// launch starts clones of ranksEach ranks of a program.
func launch(t *testing.T, clones, ranksEach int, program string, args ...string) *real {
	t.Helper()
	size := clones * ranksEach
	m := newReal(t, NewNames(), Group{Size: size, KVSName: "kvs_1_0", UniverseSize: size, Mapping: fmt.Sprintf("(vector,(0,1,%d))", size)})
	m.start(ranksEach, func(int) []string { return append([]string{program}, args...) })
	return m
}

// start runs the group on clones of ranksEach ranks.
func (m *real) start(ranksEach int, argv func(rank int) []string) {
	m.t.Helper()
	for first := 0; first < m.group.Size; first += ranksEach {
		var local []int
		for i := first; i < min(first+ranksEach, m.group.Size); i++ {
			local = append(local, i)
		}
		launcher, agent := net.Pipe()
		proxy := NewProxy(m.group, counted{agent, &m.up}, local)
		serve := make(chan error, 1)
		go func() { serve <- m.server.Serve(m.ctx, launcher, local) }()
		go func() { _ = proxy.Run(m.ctx) }()
		m.serves = append(m.serves, serve)
		connect := m.overFD
		if m.port {
			connect = m.overPort(proxy)
		}
		for _, rank := range local {
			connect(proxy, rank, argv(rank))
		}
	}
}

// overFD starts a rank that finds PMI by PMI_FD.
func (m *real) overFD(proxy *Proxy, rank int, argv []string) {
	m.t.Helper()
	ours, theirs := socketPair(m.t)
	defer theirs.Close()
	ended := make(chan error, 1)
	go func() { ended <- proxy.ServeRank(m.ctx, rank, ours) }()
	m.ended = append(m.ended, ended)
	env, err := proxy.Environ(rank, 3)
	if err != nil {
		m.t.Fatal(err)
	}
	m.run(argv, env, theirs)
}

// overPort returns what starts a rank that finds PMI by PMI_PORT. IDs are not ranks.
func (m *real) overPort(proxy *Proxy) func(proxy *Proxy, rank int, argv []string) {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	const firstID = 4711
	served := make(chan error, 1)
	go func() {
		served <- ServePort(m.ctx, l, func(id int, conn net.Conn) (*Proxy, int, error) {
			if !conn.RemoteAddr().(*net.TCPAddr).IP.IsLoopback() {
				return nil, 0, errors.New("not from here")
			}
			return proxy, id - firstID, nil
		}, func(err error) { m.faults <- err.Error() })
	}()
	m.t.Cleanup(func() {
		l.Close()
		if err := within(m.t, served); err != nil {
			m.t.Error(err)
		}
	})
	return func(proxy *Proxy, rank int, argv []string) {
		env, err := proxy.PortEnviron(rank, l.Addr().String(), firstID+rank)
		if err != nil {
			m.t.Fatal(err)
		}
		m.run(argv, env)
	}
}

// run starts a process.
func (m *real) run(argv, env []string, files ...*os.File) {
	m.t.Helper()
	cmd := exec.CommandContext(m.ctx, argv[0], argv[1:]...)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = files // descriptor 3
	cmd.Env = append(append(os.Environ(), env...), "HWLOC_COMPONENTS=-gl,-opencl")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start %s: %v", argv[0], err)
	}
	m.t.Cleanup(func() { _ = cmd.Process.Kill() })
	m.ranks, m.out = append(m.ranks, cmd), append(m.out, out)
}

// socketPair returns the agent's and the rank's end of a PMI connection.
func socketPair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("make a socket pair: %v", err)
	}
	file := os.NewFile(uintptr(fds[0]), "PMI, agent's end")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn, os.NewFile(uintptr(fds[1]), "PMI, rank's end")
}

// wait ends a job that must end well, and returns what the ranks printed, sorted.
func (m *real) wait() []string {
	m.t.Helper()
	var lines []string
	for rank, cmd := range m.ranks {
		if err := cmd.Wait(); err != nil {
			m.t.Errorf("rank %d: %v\n%s", rank, err, m.out[rank])
		}
		if !m.port {
			if err := within(m.t, m.ended[rank]); err != nil {
				m.t.Errorf("rank %d: %v", rank, err)
			}
		}
		if s, err := m.server.WaitClosed(m.ctx, rank); err != nil || s != Finalized {
			m.t.Errorf("rank %d ended as %s, %v", rank, s, err)
		}
		lines = append(lines, strings.Split(strings.TrimSpace(m.out[rank].String()), "\n")...)
	}
	for _, c := range m.serves {
		if err := within(m.t, c); err != nil {
			m.t.Error(err)
		}
	}
	select {
	case fault := <-m.faults:
		m.t.Errorf("reported: %s", fault)
	default:
	}
	slices.Sort(lines)
	return lines
}

func TestMPICH(t *testing.T) {
	program := compile(t)
	for _, test := range []struct{ clones, ranksEach int }{{1, 1}, {1, 4}, {2, 2}, {3, 1}} {
		t.Run(fmt.Sprintf("%dx%d", test.clones, test.ranksEach), func(t *testing.T) {
			m := launch(t, test.clones, test.ranksEach, program)
			size := test.clones * test.ranksEach
			var want []string
			for r := range size {
				want = append(want, fmt.Sprintf("rank %d of %d token %d sum %d appnum 0", r, size, r*(r+1)/2, size*(size-1)/2))
			}
			if got := m.wait(); !slices.Equal(got, want) {
				t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			t.Logf("%d messages from %d proxies", m.up.Load(), test.clones)
		})
	}
}

func TestMPICHAborts(t *testing.T) {
	m := launch(t, 2, 2, compile(t), "abort", "2", "7")
	select {
	case got := <-m.aborts:
		if got != "rank 2 aborts with 7" {
			t.Error(got)
		}
	case <-m.ctx.Done():
		t.Fatalf("no abort came: %s", m.out[2])
	}
	m.kill()
	for rank := range m.ranks {
		if s := m.server.RankState(rank); s != Initialized {
			t.Errorf("rank %d ended as %s", rank, s)
		}
	}
}

func TestMPICHLeavesWithoutFinalize(t *testing.T) {
	m := launch(t, 2, 1, compile(t), "leave", "1", "0")
	if err := m.ranks[1].Wait(); err != nil {
		t.Errorf("rank 1: %v", err)
	}
	if s, err := m.server.WaitClosed(m.ctx, 1); err != nil || s != Initialized {
		t.Errorf("rank 1 is %s, %v", s, err)
	}
	m.kill()
}

// A name that one clone's rank publishes is found by another's, and one that nobody did is an MPI error.
func TestMPICHNames(t *testing.T) {
	got := launch(t, 2, 1, compile(t), "names").wait()
	got = slices.DeleteFunc(got, func(line string) bool { return strings.HasPrefix(line, "rank ") })
	want := []string{"lookup of another failed", "lookup of another failed", "lookup tag#0$port#99$", "unpublish done"}
	if !slices.Equal(got, want) {
		t.Errorf("printed %q, want %q", got, want)
	}
}

// kill ends what runs, as a launcher does.
func (m *real) kill() {
	for rank, cmd := range m.ranks {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s, err := m.server.WaitClosed(m.ctx, rank); err != nil {
			m.t.Errorf("rank %d is %s, %v", rank, s, err)
		}
	}
}

func TestMPICHOverPorts(t *testing.T) {
	program := compile(t)
	m := newReal(t, NewNames(), Group{Size: 4, KVSName: "kvs_1_0", Apps: []int{1, 3}, Mapping: "(vector,(0,1,4))"})
	m.port = true
	m.start(2, func(int) []string { return []string{program} })
	want := []string{
		"rank 0 of 4 token 0 sum 6 appnum 0", "rank 1 of 4 token 1 sum 6 appnum 1",
		"rank 2 of 4 token 3 sum 6 appnum 1", "rank 3 of 4 token 6 sum 6 appnum 1",
	}
	if got := m.wait(); !slices.Equal(got, want) {
		t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A program that was started without a launcher starts one when it needs one: the mpiexec that it finds on its path.
func TestMPICHSingleton(t *testing.T) {
	program := compile(t)
	dir := t.TempDir()
	called := filepath.Join(dir, "called")
	if err := syscall.Mkfifo(called, 0o600); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho \"$@\" >" + called + "\n"
	if err := os.WriteFile(filepath.Join(dir, "mpiexec"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	m := newReal(t, NewNames(), Group{Size: 1, KVSName: "kvs_single", UniverseSize: 77})
	m.run([]string{program, "universe"}, []string{"PATH=" + dir + ":" + os.Getenv("PATH")})

	arguments := make(chan string, 1)
	go func() {
		line, err := os.ReadFile(called) // waits for the writer
		if err != nil {
			t.Error(err)
		}
		arguments <- string(line)
	}()
	var fields []string
	select {
	case line := <-arguments:
		fields = strings.Fields(line)
	case <-time.After(20 * time.Second):
		_ = os.WriteFile(called, nil, 0) // frees the reader
		t.Fatalf("mpiexec was not started: %s", m.out[0])
	}
	if len(fields) != 5 || fields[0] != "-pmi_args" { // the last is no help: MPICH 4.0 writes mpiexec's own PID
		t.Fatalf("mpiexec %q", fields)
	}
	if err := Singleton(m.ctx, fields[1], m.server); err != nil {
		t.Error(err)
	}
	if err := m.ranks[0].Wait(); err != nil {
		t.Errorf("%v\n%s", err, m.out[0])
	}
	if got := m.out[0].String(); !strings.Contains(got, "universe 77\n") {
		t.Errorf("printed %q", got)
	}
	if s := m.server.RankState(0); s != Finalized {
		t.Errorf("it ended as %s", s)
	}
}
