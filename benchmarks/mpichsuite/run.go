package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// side is a launcher, and where it runs the ranks.
type side struct {
	name    string
	about   string   // for the document
	command []string // the launcher, and what it is always given
	ranks   string   // its option for the number of ranks
	own     string   // what its own lines begin with: runtests leaves out those of launchers, too
	options bool     // it has mpiexec's other options
	env     []string // more variables
	stretch float64  // how much longer than the testlist says a run may take
}

// outcome is what came of running an entry on a side.
type outcome struct {
	Passed  bool    `json:"passed"`
	Wrong   string  `json:"wrong,omitempty"` // what was wrong with the first run that did not pass
	Runs    int     `json:"runs"`
	Failed  int     `json:"failed"`  // of these
	Seconds float64 `json:"seconds"` // of the longest
}

const (
	// graceOfLauncher is how much longer than MPIEXEC_TIMEOUT, after which a launcher ends its job, one may take.
	graceOfLauncher = 30 * time.Second
	// endLimit is how long one may take to end when it is told to.
	endLimit = 20 * time.Second
	// mostOutput of a run is kept.
	mostOutput = 1 << 20
)

// run runs an entry some times.
func (s side) run(ctx context.Context, of *mpich.Build, e entry, runs int) (o outcome, err error) {
	for range runs {
		began := time.Now()
		wrong, err := s.once(ctx, of, e)
		if err != nil {
			return o, err
		}
		o.Runs, o.Seconds = o.Runs+1, max(o.Seconds, time.Since(began).Round(10*time.Millisecond).Seconds())
		if wrong != "" {
			if o.Failed++; o.Failed == 1 {
				o.Wrong = wrong
			}
		}
	}
	o.Passed = o.Failed == 0
	return o, nil
}

// once runs an entry and returns what is wrong with what came of it, or "".
func (s side) once(ctx context.Context, of *mpich.Build, e entry) (wrong string, err error) {
	argv := slices.Concat(s.command, []string{s.ranks, fmt.Sprint(e.Ranks)})
	if s.options {
		argv = append(argv, e.Options...)
	}
	argv = append(append(argv, "./"+e.Program), e.Args...)
	limit := time.Duration(float64(e.Limit) * s.stretch)
	limited, cancel := context.WithTimeout(ctx, limit+graceOfLauncher)
	defer cancel()
	limited, stop := context.WithCancelCause(limited)
	defer stop(nil)
	out := &capped{limit: mostOutput}
	if e.Folder == mpich.BindingFolder {
		script, err := s.bindingScript(of)
		if err != nil {
			return "", err
		}
		argv = []string{"sh", "-c", script}
		// It would go on with its 400 launches, each of which takes a while on clones.
		out.took = func(lines string) {
			if _, found := stray(s.linesOf(lines)); found {
				stop(errDecided)
			}
		}
	}
	cmd := exec.CommandContext(limited, argv[0], argv[1:]...)
	cmd.Dir = of.Folder(e.Folder)
	cmd.Env = slices.Concat(os.Environ(), s.env, e.Env, []string{fmt.Sprintf("MPIEXEC_TIMEOUT=%d", int(limit.Seconds()))})
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own, so that nothing of it stays.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(unix.SIGTERM) }, endLimit
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("run %s on %s: %w", e.name(), s.name, err)
	}
	err = cmd.Wait()
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case context.Cause(limited) == errDecided:
	case limited.Err() != nil:
		return fmt.Sprintf("it did not end in %v, and its launcher did not end it either", limit), nil
	case errors.Is(err, exec.ErrWaitDelay):
		return "something that it left behind held its output", nil
	case err != nil && !errors.As(err, &exit):
		return "", fmt.Errorf("run %s on %s: %w", e.name(), s.name, err)
	}
	return rules[e.Rule](s.linesOf(out.kept.String()), statusOf(cmd.ProcessState)), nil
}

// linesOf are the lines of a run's output that are not the launcher's own.
func (s side) linesOf(output string) (lines []string) {
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\r\n")
		if s.own == "" || !strings.HasPrefix(line, s.own) {
			lines = append(lines, line)
		}
	}
	return lines
}

// statusOf is an exit status as a shell says it.
func statusOf(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}

// bindingScript is the script of the folder about bindings, with this side's launcher instead of the build's own.
func (s side) bindingScript(of *mpich.Build) (string, error) {
	b, err := os.ReadFile(filepath.Join(of.Folder(mpich.BindingFolder), bindingProgram))
	if err != nil {
		return "", err
	}
	// The first word of the line that runs it is the launcher that configure found.
	found := bindingLine.FindStringSubmatchIndex(string(b))
	if found == nil {
		return "", fmt.Errorf("%s runs no launcher in the way that was known", bindingProgram)
	}
	return string(b[:found[2]]) + strings.Join(s.command, " ") + string(b[found[3]:]), nil
}

// errDecided ends a run that has already gone wrong.
var errDecided = errors.New("what it wrote is enough")

// capped keeps the first bytes of what is written to it.
type capped struct {
	kept  bytes.Buffer // not embedded: io.Copy would fill it by itself
	limit int
	took  func(lines string) // if set, is told of the whole lines so far
}

func (c *capped) Write(b []byte) (int, error) {
	c.kept.Write(b[:min(len(b), max(0, c.limit-c.kept.Len()))])
	if c.took != nil {
		all := c.kept.String()
		c.took(all[:strings.LastIndexByte(all, '\n')+1])
	}
	return len(b), nil
}
