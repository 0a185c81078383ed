// Package jobs runs a launcher as a user does, and tells a job that hangs from one that fails.
package jobs

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

// endLimit is how long a launcher may take to end when it is told to.
const endLimit = 20 * time.Second

// HangLimit is after which time a job that takes seconds is said to hang. It is long, for ranks that spin while they wait
// for each other on virtual CPUs that share cores only become slow when something else wants these, too: a job of 5 s takes
// a minute then.
const HangLimit = 5 * time.Minute

// Job is a job that has ended, or was ended because it hung.
type Job struct {
	Args  []string      // of the launcher
	Took  time.Duration // from the command to its end
	Wrote string        // on standard output
	Said  string        // on standard error
	Hung  bool

	limit time.Duration
}

// Run runs the launcher that prepare returns. It has to be made with the context that prepare gets. A job that does not end within limit has
// hung: the launcher is told to end it, and there is no error.
func Run(ctx context.Context, limit time.Duration, prepare func(context.Context) *exec.Cmd) (j Job, err error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := prepare(limited)
	var wrote, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &wrote, &said
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(unix.SIGTERM) }, endLimit
	began := time.Now()
	err = cmd.Run()
	j = Job{cmd.Args[1:], time.Since(began), wrote.String(), said.String(), false, limit}
	switch {
	case ctx.Err() != nil:
		return j, ctx.Err()
	case limited.Err() != nil:
		j.Hung = true
		return j, nil
	case err != nil:
		return j, fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), strings.Join(j.Args, " "), err, lastLine(j.Said))
	}
	return j, nil
}

// Ended is an error for a job that hung.
func (j Job) Ended() error {
	if j.Hung {
		return fmt.Errorf("%s did not end within %v: %s", strings.Join(j.Args, " "), j.limit, lastLine(j.Said))
	}
	return nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// Endings are how many jobs ended.
type Endings struct {
	hangs, failures, seconds []float64
}

// Add counts a job, and what Run returned with it.
func (e *Endings) Add(j Job, err error) {
	hang, failure := 0.0, 0.0
	switch {
	case j.Hung:
		hang = 1
	case err != nil:
		failure = 1
	default:
		e.seconds = append(e.seconds, j.Took.Seconds())
	}
	e.hangs, e.failures = append(e.hangs, hang), append(e.failures, failure)
}

// String is "200 jobs: 0 have hung, 1 has failed".
func (e *Endings) String() string {
	return fmt.Sprintf("%d jobs: %.0f hung, %.0f failed", len(e.hangs), sum(e.hangs), sum(e.failures))
}

// HangRate is the share of jobs that hung. of says which jobs: "of MPICH jobs on 4 clones".
func (e *Endings) HangRate(of string, limit time.Duration) figures.Figure {
	return rate(e.hangs, fmt.Sprintf("%s that did not end within %v", of, limit))
}

// FailureRate is the share of jobs that ended with an error.
func (e *Endings) FailureRate(of string) figures.Figure {
	return rate(e.failures, of+" that ended with an error")
}

// Took is how long those took that ended well.
func (e *Endings) Took() figures.Figure {
	return figures.Median("s", "a job of these, from the command to its end", e.seconds)
}

func rate(values []float64, of string) figures.Figure {
	f := figures.Median("ratio", of, values)
	f.Value = sum(values) / float64(max(1, len(values)))
	return f
}

func sum(values []float64) (n float64) {
	for _, v := range values {
		n += v
	}
	return n
}

// Join adds the jobs of others.
func (e *Endings) Join(of Endings) {
	e.hangs, e.failures, e.seconds = append(e.hangs, of.hangs...), append(e.failures, of.failures...), append(e.seconds, of.seconds...)
}
