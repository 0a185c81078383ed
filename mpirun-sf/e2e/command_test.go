package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// defaultLimit is how long a run may take. A first run on a shape of clones
// boots a guest, about 8 s on an idle machine without KVM.
const defaultLimit = 90 * time.Second

// A command is a run of the launcher to be.
type command struct {
	program string // instead of the launcher
	args    []string
	dir     string    // working directory; "" for a fresh one
	env     []string  // beside the usual
	stdin   io.Reader // nil for /dev/null
	stdout  io.Writer // nil: it is gathered
	limit   time.Duration
	attr    *syscall.SysProcAttr
	wrap    []string  // a program and arguments that the launcher is given to
	enter   *exec.Cmd // the same program and arguments, to be run on another host
	// beside says that another run goes on meanwhile.
	beside bool
}

// beside is the same command, while another goes on.
func beside(c command) command { c.beside = true; return c }

// result is how a run ended.
type result struct {
	stdout, stderr string
	status         int // as a shell would say it
	took           time.Duration
}

// notices are the lines of stderr that are the launcher's own, without prefix.
func (r result) notices() (lines []string) {
	for line := range strings.Lines(r.stderr) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "mpirun-sf: "); ok {
			lines = append(lines, rest)
		}
	}
	return lines
}

// running is a run under way.
type running struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr *buffer
	begin          time.Time
	done           chan struct{}
	result         result
	beside         bool
	settled        func() // waits for what goes after the launcher
}

// buffer gathers output that is looked at meanwhile.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// environ is what every run finds: the test's environment without sudo's
// marks, with our marker, and a cache and a temporary folder of the tests'.
func environ(more []string) []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "SUDO_") {
			env = append(env, e)
		}
	}
	return append(append(env, "XDG_CACHE_HOME="+cacheDir, "TMPDIR="+tempDir), more...)
}

func (c command) start(t *testing.T) *running {
	t.Helper()
	if c.dir == "" {
		c.dir = t.TempDir()
	}
	if c.limit == 0 {
		c.limit = defaultLimit
	}
	argv := slices.Concat(c.wrap, []string{cmp.Or(c.program, launcher)}, c.args)
	cmd := c.enter
	if cmd == nil {
		cmd = exec.Command(argv[0], argv[1:]...)
	}
	r := &running{t: t, cmd: cmd, stdout: &buffer{}, stderr: &buffer{}, done: make(chan struct{}), beside: c.beside}
	r.cmd.Dir, r.cmd.Env, r.cmd.Stdin, r.cmd.SysProcAttr = c.dir, environ(c.env), c.stdin, c.attr
	r.cmd.Stdout, r.cmd.Stderr = c.stdout, r.stderr
	if c.stdout == nil {
		r.cmd.Stdout = r.stdout
	}
	// Whoever holds the output open longer than this is a leftover.
	r.cmd.WaitDelay = 5 * time.Second
	r.begin = time.Now()
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(c.limit, func() {
		t.Errorf("%s did not end in %v", strings.Join(argv, " "), c.limit)
		r.cmd.Process.Kill()
	})
	go func() {
		defer close(r.done)
		err := r.cmd.Wait()
		late.Stop()
		r.result = result{r.stdout.String(), r.stderr.String(), 0, time.Since(r.begin)}
		if ws, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.result.status = 128 + int(ws.Signal())
		} else {
			r.result.status = r.cmd.ProcessState.ExitCode()
		}
		if errors.Is(err, exec.ErrWaitDelay) {
			t.Errorf("something still holds the launcher's output: %v", processes())
		}
	}()
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.done
	})
	return r
}

// wait waits for the run's end, and that nothing of it runs on.
func (r *running) wait() result {
	r.t.Helper()
	<-r.done
	if r.beside {
		return r.result
	}
	if left := awaitNoProcess(); len(left) > 0 {
		r.t.Errorf("still running after the launcher's end: %v", left)
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	if r.settled != nil {
		r.settled()
	}
	r.t.Logf("%s: status %d, %.2f s", strings.Join(r.cmd.Args[1:], " "), r.result.status, r.result.took.Seconds())
	return r.result
}

// await waits until what is true of a run that has not ended, and fails the
// test if that does not come to be.
func (r *running) await(what string, true func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(defaultLimit); !true(); time.Sleep(2 * time.Millisecond) {
		select {
		case <-r.done:
			r.t.Fatalf("ended before %s: status %d\nstdout:\n%s\nstderr:\n%s", what, r.result.status, r.result.stdout, r.result.stderr)
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %v for %s\nstdout:\n%s\nstderr:\n%s", defaultLimit, what, r.stdout, r.stderr)
		}
	}
}

// awaitOutput waits for n lines of stdout with that text.
func (r *running) awaitOutput(text string, n int) {
	r.t.Helper()
	r.await(text, func() bool { return strings.Count(r.stdout.String(), text) >= n })
}

func (c command) run(t *testing.T) result {
	t.Helper()
	return c.start(t).wait()
}

// mpirun runs the launcher in a fresh working directory.
func mpirun(t *testing.T, args ...string) result {
	t.Helper()
	return command{args: args}.run(t)
}

// example is the path of a compiled example.
func example(name string) string { return filepath.Join(examples, name) }

// succeeds checks that a job ended well and the launcher's own lines alone are
// on stderr.
func (r result) succeeds(t *testing.T) result {
	t.Helper()
	if r.status != 0 {
		t.Fatalf("exit status %d\nstdout:\n%s\nstderr:\n%s", r.status, r.stdout, r.stderr)
	}
	for line := range strings.Lines(r.stderr) {
		if !strings.HasPrefix(line, "mpirun-sf: ") {
			t.Errorf("a line on stderr that is nobody's: %q", line)
		}
	}
	return r
}

// fails checks that a job ended with that status (-1: any but 0) and an error
// that contains all of the words.
func (r result) fails(t *testing.T, status int, words ...string) result {
	t.Helper()
	if r.status != status && (status != -1 || r.status == 0) {
		t.Errorf("exit status %d, want %d\nstdout:\n%s\nstderr:\n%s", r.status, status, r.stdout, r.stderr)
	}
	if strings.Contains(r.stderr, "panic:") || strings.Contains(r.stderr, "goroutine ") {
		t.Errorf("a panic:\n%s", r.stderr)
	}
	notices := r.notices()
	if len(notices) == 0 {
		t.Fatalf("no error on stderr:\n%s", r.stderr)
	}
	last := notices[len(notices)-1]
	for _, w := range words {
		if !strings.Contains(last, w) {
			t.Errorf("the error does not say %q: %s", w, last)
		}
	}
	return r
}

// has checks that the output has each of the lines, once. One that ends in "…" is a beginning.
func has(t *testing.T, output string, lines ...string) {
	t.Helper()
	for _, want := range lines {
		n := 0
		for line := range strings.Lines(output) {
			if strings.TrimSuffix(line, "\n") == want || strings.HasSuffix(want, "…") && strings.HasPrefix(line, strings.TrimSuffix(want, "…")) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d lines %q instead of one in:\n%s", n, want, output)
		}
	}
}
