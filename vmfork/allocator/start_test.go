package allocator_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
)

func hosts(n int) (all []allocator.Host) {
	for i := range n {
		all = append(all, allocator.Host{Name: fmt.Sprintf("h%d", i+1)})
	}
	return all
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func named(h allocator.Host) []string { return []string{h.Name} }

func TestStartAll(t *testing.T) {
	a := allocatortest.New(hosts(40)...)
	defer a.Close()
	var now, most atomic.Int32
	processes, err := allocator.StartAll(t.Context(), a, a.Hosts(), script(t, "echo I am $1; exec cat"), named,
		func(_ context.Context, h allocator.Host, p allocator.Process) error {
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer now.Add(-1)
			line, err := bufio.NewReader(p).ReadString('\n')
			if line != "I am "+h.Name+"\n" {
				return fmt.Errorf("it said %q: %w", line, err)
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if len(processes) != 40 || most.Load() > allocator.StartLimit {
		t.Errorf("%d processes, %d at once", len(processes), most.Load())
	}
	for i, p := range processes {
		p.Close()
		if err := p.Wait(); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

func TestStartAllTellsAllThatIsWrong(t *testing.T) {
	a := allocatortest.New(hosts(5)...)
	defer a.Close()
	var good allocator.Process
	path := script(t, `case $1 in h2) echo "no qemu here" >&2; exit 3;; h4) echo;; esac; exec cat`)
	_, err := allocator.StartAll(t.Context(), a, append(a.Hosts(), allocator.Host{Name: "h9"}), path, named,
		func(_ context.Context, h allocator.Host, p allocator.Process) error {
			switch h.Name {
			case "h1":
				good = p
				return nil
			case "h2": // the reason is what it said, not that it ended
				_, err := io.ReadFull(p, make([]byte, 10))
				return fmt.Errorf("read its hello: %w", err)
			case "h3", "h4":
				return errors.New("no qemu-system-x86_64 (apt-get install qemu-system-x86)\nno /dev/fuse")
			}
			return nil
		})
	const want = `4 of 6 hosts cannot be used:
  h2: it ended with status 3: no qemu here
  h3, h4: no qemu-system-x86_64 (apt-get install qemu-system-x86)
    no /dev/fuse
  h9: it is not a host of this job`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	var all *allocator.HostErrors
	var exit *allocator.ExitError
	if !errors.As(err, &all) || len(all.Errors) != 4 || !errors.As(err, &exit) || exit.Status != 3 {
		t.Errorf("%T", err)
	}
	if good == nil {
		t.Fatal("h1 was not met")
	}
	if _, err := good.Write([]byte("x")); err == nil {
		t.Error("the good one still runs")
	}
}

func TestStartAllThatIsCancelled(t *testing.T) {
	a := allocatortest.New(hosts(3)...)
	defer a.Close()
	why := errors.New("the user wants no more")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := allocator.StartAll(ctx, a, a.Hosts(), script(t, "exec cat"), named,
		func(ctx context.Context, _ allocator.Host, _ allocator.Process) error {
			cancel(why)
			<-ctx.Done()
			return ctx.Err()
		})
	if !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
}

func TestErrorsOfOneHost(t *testing.T) {
	if err := allocator.CollectErrors(hosts(2), make([]error, 2)); err != nil {
		t.Errorf("no errors became %v", err)
	}
	err := allocator.CollectErrors(hosts(1), []error{&allocator.HostError{Host: "h1", Err: io.ErrUnexpectedEOF}})
	if err == nil || err.Error() != "h1: unexpected EOF" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

// What a host said is not to move the user's terminal.
func TestErrorsAreHarmless(t *testing.T) {
	bad := &allocator.HostError{Host: "h1", Err: errors.New("no\x1b]0;title\a\r\tqemu\u009b\n\xffhere")}
	const want = "h1: no]0;title qemu\n?here"
	if got := bad.Error(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	err := allocator.CollectErrors(hosts(2), []error{bad, nil})
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\a\r\u009b") {
		t.Errorf("%q", err)
	}
}

func TestTail(t *testing.T) {
	var seen []string
	tail := allocator.NewTail(func(line string) { seen = append(seen, line) })
	for i := range 20 {
		fmt.Fprintf(tail, "li")
		fmt.Fprintf(tail, "ne %d\r\n\n", i)
	}
	fmt.Fprintf(tail, "\x1b[31m\a%s\xff", strings.Repeat("long", 1000))
	got := strings.Split(tail.String(), "\n")
	if len(got) != 11 || got[0] != "line 10" || got[9] != "line 19" || len(seen) != 20 {
		t.Errorf("%d lines, %d were told: %q", len(got), len(seen), got)
	}
	if last := got[len(got)-1]; len(last) > 500 || !strings.HasPrefix(last, "[31mlonglong") {
		t.Errorf("the last is %q", last)
	}
}
