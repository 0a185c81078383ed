package allocatortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// limit is for a wait that ends in milliseconds if all is well, on a machine
// that has much else to do.
const limit = 2 * time.Minute

// program is what runs on the hosts: a script, so that it is small, and copied
// as any other executable is.
const program = `#!/bin/sh
what=$1
shift
case $what in
echo) exec cat ;;
pid) echo $$; exec cat ;;
user) id -u ;;
args) printf '%s\0' "$@" ;;
burst) head -c 50000 /dev/zero ;;
fail) echo first >&2; echo "the reason" >&2; exit "$1" ;;
killed) kill -KILL $$ ;;
deaf) echo $$; exec sleep 1000 ;;
*) echo "what is $what?" >&2; exit 99 ;;
esac
`

// Conform tests what the comments of [allocator.Allocation] and
// [allocator.Process] promise, on hosts that are this machine: it looks at
// their processes by number. It ends with a.Close.
func Conform(t *testing.T, a allocator.Allocation) {
	hosts := a.Hosts()
	if len(hosts) == 0 {
		t.Fatal("the allocation has no hosts")
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	c := conformance{Allocation: a, h: hosts[0], path: path}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"hosts are the caller's own", c.hosts},
		{"echo a megabyte", c.echo},
		{"runs as root", c.user},
		{"arguments arrive as they are", c.arguments},
		{"output waits for who reads it", c.burst},
		{"closing ends it", c.close},
		{"closing ends what does not listen", c.deaf},
		{"closing ends a read and a write", c.blocked},
		{"ends by itself", c.status},
		{"killed there", c.killed},
		{"program that does not exist", c.noProgram},
		{"program that cannot run", c.badProgram},
		{"host that is not of the job", c.noHost},
		{"context that has ended", c.cancelled},
		{"context has no meaning after the start", c.detached},
		{"many at once on one host", c.many},
		{"on all hosts", c.all},
		{"closing the allocation ends all", c.closeAll}, // the last
	} {
		t.Run(test.name, test.run)
	}
}

type conformance struct {
	allocator.Allocation
	h    allocator.Host
	path string
}

func (c *conformance) start(t *testing.T, args ...string) allocator.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	p, err := c.Start(ctx, c.h, c.path, args...)
	if err != nil {
		t.Fatalf("start %q: %v", args, err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// within fails the test if do does not return.
func within(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("waited %v for %s", limit, what)
	}
}

func wait(t *testing.T, p allocator.Process) (err error) {
	t.Helper()
	within(t, "the end of a process", func() { err = p.Wait() })
	return err
}

// readAll reads to the end of the output.
func readAll(t *testing.T, p allocator.Process) (out []byte) {
	t.Helper()
	within(t, "the output of a process", func() {
		var err error
		if out, err = io.ReadAll(p); err != nil {
			t.Errorf("read: %v", err)
		}
	})
	return out
}

// pid reads the number that a process prints first.
func pid(t *testing.T, p allocator.Process) (n int) {
	t.Helper()
	within(t, "a process's number", func() {
		if _, err := fmt.Fscanln(p, &n); err != nil {
			t.Errorf("read its number: %v", err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return n
}

// gone waits until a process is no more, or has only to be waited for.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, after, ok := bytes.Cut(stat, []byte(") ")); err != nil || ok && bytes.HasPrefix(after, []byte("Z")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d still runs: %s", pid, stat)
		}
	}
}

// ofHost checks that an error names the host, and once.
func ofHost(t *testing.T, err error, host string) {
	t.Helper()
	var of *allocator.HostError
	if !errors.As(err, &of) || of.Host != host {
		t.Errorf("%v (%T) is not a HostError of %s", err, err, host)
	} else if strings.HasPrefix(of.Err.Error(), host+":") {
		t.Errorf("%q names the host twice", err)
	}
}

func (c *conformance) hosts(t *testing.T) {
	mine := c.Hosts()
	mine[0].Name = "changed"
	if c.Hosts()[0] != c.h {
		t.Errorf("a caller changed the allocation's hosts: %v", c.Hosts())
	}
	seen := map[string]bool{}
	for _, h := range c.Hosts() {
		if h.Name == "" || seen[h.Name] || h.Slots < 0 || h.Memory < 0 || h.CPUs < 0 {
			t.Errorf("%+v is no host, or is there twice", h)
		}
		seen[h.Name] = true
	}
}

// failure starts what must not run, and returns the error.
func (c *conformance) failure(t *testing.T, h allocator.Host, path string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	p, err := c.Start(ctx, h, path, "echo")
	if err == nil {
		err = wait(t, p)
		p.Close()
	}
	if err == nil {
		t.Fatalf("%s on %s ran", path, h.Name)
	}
	ofHost(t, err, h.Name)
	return err
}

func (c *conformance) noProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	if err := c.failure(t, c.h, path); !strings.Contains(err.Error(), path) {
		t.Errorf("%v does not name %s", err, path)
	}
}

func (c *conformance) badProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(path, []byte("#!/there/is/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Log(c.failure(t, c.h, path))
}

func (c *conformance) noHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := c.Start(ctx, allocator.Host{Name: "nowhere.invalid"}, c.path, "echo")
	if err == nil {
		t.Fatal("it runs on a host that is not of the job")
	}
	ofHost(t, err, "nowhere.invalid")
}

func (c *conformance) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Start(ctx, c.h, c.path, "echo")
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v is not that the context has ended", err)
	}
	ofHost(t, err, c.h.Name)
}

func (c *conformance) detached(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	p, err := c.Start(ctx, c.h, c.path, "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	cancel()
	time.Sleep(50 * time.Millisecond) // for what should not happen
	if _, err := p.Write([]byte("still here\n")); err != nil {
		t.Fatalf("write: %v", err)
	}
	var line [11]byte
	within(t, "the echo", func() {
		if _, err := io.ReadFull(p, line[:]); err != nil || string(line[:]) != "still here\n" {
			t.Errorf("read %q, %v", line, err)
		}
	})
}

func (c *conformance) many(t *testing.T) {
	const n = 4
	var all sync.WaitGroup
	pids := make(chan int, n)
	for range n {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			p, err := c.Start(ctx, c.h, c.path, "pid")
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Close()
			var one int
			if _, err := fmt.Fscanln(p, &one); err != nil {
				t.Error(err)
			}
			pids <- one
		})
	}
	within(t, "all of them", all.Wait)
	close(pids)
	seen := map[int]bool{}
	for one := range pids {
		seen[one] = true
		gone(t, one)
	}
	if len(seen) != n {
		t.Errorf("%d processes, want %d", len(seen), n)
	}
}

func (c *conformance) all(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	hosts := c.Hosts()
	processes, err := allocator.StartAll(ctx, c, hosts, c.path,
		func(h allocator.Host) []string { return []string{"echo", h.Name} },
		func(ctx context.Context, h allocator.Host, p allocator.Process) error {
			line := h.Name + "\n"
			if _, err := p.Write([]byte(line)); err != nil {
				return err
			}
			got := make([]byte, len(line))
			if _, err := io.ReadFull(p, got); err != nil || string(got) != line {
				return fmt.Errorf("read %q: %w", got, err)
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if len(processes) != len(hosts) {
		t.Errorf("%d processes on %d hosts", len(processes), len(hosts))
	}
	for _, p := range processes {
		p.Close()
	}
}

func (c *conformance) closeAll(t *testing.T) {
	p := c.start(t, "pid")
	n := pid(t, p)
	within(t, "the allocation's end", func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	wait(t, p)
	gone(t, n)
	_, err := c.Start(t.Context(), c.h, c.path, "echo")
	if err == nil {
		t.Fatal("something runs in an allocation that is closed")
	}
	ofHost(t, err, c.h.Name)
	if err := c.Close(); err != nil {
		t.Errorf("closing it again: %v", err)
	}
}
