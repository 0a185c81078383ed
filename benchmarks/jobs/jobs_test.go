package jobs

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// shell is a launcher that is a script.
func shell(script string) func(context.Context) *exec.Cmd {
	return func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, "sh", "-c", script) }
}

func TestAJobThatHangsIsNoFailure(t *testing.T) {
	var e Endings
	j, err := Run(t.Context(), time.Minute, shell("echo out; echo one >&2; echo two >&2"))
	if err != nil || j.Hung || j.Wrote != "out\n" || j.Said != "one\ntwo\n" {
		t.Errorf("%+v, %v", j, err)
	}
	e.Add(j, err)
	j, err = Run(t.Context(), time.Minute, shell("echo one >&2; echo why >&2; exit 3"))
	if err == nil || j.Hung || !strings.HasSuffix(err.Error(), "exit status 3: why") {
		t.Errorf("%+v, %v", j, err)
	}
	e.Add(j, err)
	began := time.Now()
	j, err = Run(t.Context(), 50*time.Millisecond, shell("exec sleep 100"))
	if err != nil || !j.Hung || time.Since(began) > 10*time.Second {
		t.Errorf("%+v, %v", j, err)
	}
	e.Add(j, err)
	if e.String() != "3 jobs: 1 hung, 1 failed" {
		t.Error(e.String())
	}
	if f := e.HangRate("of jobs", time.Minute); f.Value != 1.0/3 || f.Runs != 3 || f.Of != "of jobs that did not end within 1m0s" {
		t.Errorf("%+v", f)
	}
	if f := e.FailureRate("of jobs"); f.Value != 1.0/3 {
		t.Errorf("%+v", f)
	}
	if f := e.Took(); f.Runs != 1 {
		t.Errorf("%+v", f)
	}
	if err := j.Ended(); err == nil || err.Error() != "-c exec sleep 100 did not end within 50ms: " {
		t.Error(err)
	}
}

func TestAJobEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if j, err := Run(ctx, time.Minute, shell("exec sleep 100")); err == nil || j.Hung {
		t.Errorf("%+v, %v", j, err)
	}
}
