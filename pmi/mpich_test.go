package pmi

import (
	"bytes"
	"context"
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
	compiler, err := exec.LookPath("mpicc.mpich")
	if err != nil {
		t.Fatal("mpicc.mpich is not installed: apt-get install libmpich-dev")
	}
	program := filepath.Join(t.TempDir(), "ring")
	if out, err := exec.Command(compiler, "-o", program, filepath.Join("testdata", "ring.c")).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, out)
	}
	return program
}

// mpich is a job of real processes.
type mpich struct {
	t      *testing.T
	ctx    context.Context
	server *Server
	ranks  []*exec.Cmd
	out    []*bytes.Buffer
	ended  []chan error // ServeRank's errors
	serves []chan error
	up     atomic.Int64
	aborts chan string
	faults chan string
}

// launch starts clones of ranksEach ranks of a program.
func launch(t *testing.T, clones, ranksEach int, program string, args ...string) *mpich {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	size := clones * ranksEach
	group := Group{Size: size, KVSName: "kvs_1_0", UniverseSize: size, Mapping: Mapping([]int{size})}
	m := &mpich{t: t, ctx: ctx, aborts: make(chan string, size), faults: make(chan string, size)}
	m.server = NewServer(group, NewNames(), Events{
		Abort:    func(rank, code int, message string) { m.aborts <- fmt.Sprintf("rank %d aborts with %d", rank, code) },
		Protocol: func(rank int, err error) { m.faults <- fmt.Sprintf("rank %d: %v", rank, err) },
	})
	for c := range clones {
		var local []int
		for i := range ranksEach {
			local = append(local, c*ranksEach+i)
		}
		launcher, agent := net.Pipe()
		proxy := NewProxy(group, counted{agent, &m.up}, local)
		serve := make(chan error, 1)
		go func() { serve <- m.server.Serve(ctx, launcher, local) }()
		go func() { _ = proxy.Run(ctx) }()
		m.serves = append(m.serves, serve)
		for _, rank := range local {
			ours, theirs := socketPair(t)
			ended := make(chan error, 1)
			go func() { ended <- proxy.ServeRank(ctx, rank, ours) }()
			m.ended = append(m.ended, ended)

			cmd := exec.CommandContext(ctx, program, args...)
			out := &bytes.Buffer{}
			cmd.Stdout, cmd.Stderr = out, out
			cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
			env, err := proxy.Environ(rank, 3)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(os.Environ(), env...)
			cmd.Env = append(cmd.Env, "HWLOC_COMPONENTS=-gl,-opencl")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				t.Fatalf("start rank %d: %v", rank, err)
			}
			theirs.Close()
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			m.ranks, m.out = append(m.ranks, cmd), append(m.out, out)
		}
	}
	return m
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
func (m *mpich) wait() []string {
	m.t.Helper()
	var lines []string
	for rank, cmd := range m.ranks {
		if err := cmd.Wait(); err != nil {
			m.t.Errorf("rank %d: %v\n%s", rank, err, m.out[rank])
		}
		if err := within(m.t, m.ended[rank]); err != nil {
			m.t.Errorf("rank %d: %v", rank, err)
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
func (m *mpich) kill() {
	for rank, cmd := range m.ranks {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s, err := m.server.WaitClosed(m.ctx, rank); err != nil {
			m.t.Errorf("rank %d is %s, %v", rank, s, err)
		}
	}
}
