package rig

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// bootLimit is how long the machine of these tests may take to be heard on a
// busy host.
const bootLimit = 2 * time.Minute

func machine(t *testing.T) *Image {
	t.Helper()
	cache, err := guest.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := guest.FindKernel(t.Context(), cache.Dir, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	image, err := Build(t.Context(), t.TempDir(), Machine{Kernel: kernel, With: []string{"/usr/bin/cat", "/usr/bin/mkdir", "/usr/bin/sleep"}, CPUs: 2, Memory: 512 << 20}, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(image.Release)
	return image
}

// Commands run one after the other and see what the one before left; output,
// status and files come back; and the machine is gone when it was closed.
func TestRig(t *testing.T) {
	image := machine(t)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	r, err := image.Boot(ctx, "rig")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	t.Logf("booted in %v", time.Since(begin).Round(time.Millisecond))
	isMended(t, r)
	into := t.TempDir()
	run := func(c Command) (string, string, Result, error) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		res, err := r.Run(ctx, c, &stdout, &stderr, into)
		return stdout.String(), stderr.String(), res, err
	}
	out, complaint, res, err := run(Command{Args: []string{"sh", "-c", `
		echo "$GREETING from $$ in $PWD"; echo bad >&2
		mkdir -p /tmp/results/below; echo kept >/tmp/results/below/file
		(sleep 0.2 &) 
		exit 7`}, Env: []string{"GREETING=hello"}, Dir: "/tmp", Bring: []string{"/tmp/results", "/tmp/nothing"}})
	if err != nil || res.Status != 7 || !strings.HasPrefix(out, "hello from ") || !strings.HasSuffix(out, " in /tmp\n") || complaint != "bad\n" {
		t.Errorf("%q, %q, status %d (%v)", out, complaint, res.Status, err)
	}
	if b, err := os.ReadFile(filepath.Join(into, "results/below/file")); err != nil || string(b) != "kept\n" {
		t.Errorf("brought %q (%v)", b, err)
	}
	if out, _, res, err = run(Command{Args: []string{"cat", "/tmp/results/below/file"}}); err != nil || res.Status != 0 || out != "kept\n" {
		t.Errorf("the next command: %q, status %d (%v)", out, res.Status, err)
	}
	if _, _, res, err = run(Command{Args: []string{"sh", "-c", "kill -TERM $$"}}); err != nil || res.Status != 128+15 {
		t.Errorf("who dies of a signal: status %d (%v)", res.Status, err)
	}
	if _, _, _, err = run(Command{Args: []string{"/no/such/program"}}); err == nil || !strings.Contains(err.Error(), "run program in the rig: ") {
		t.Errorf("a program that is not there: %v", err)
	}
	// More than a port holds, both ways.
	if out, _, _, err = run(Command{Args: []string{"sh", "-c", `s=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do s=$s$s; done; echo $s; echo $s`}}); err != nil || len(out) != 2*(16<<13+1) {
		t.Errorf("%d bytes of output (%v)", len(out), err)
	}
	r.Close()
	r.Close()
	if _, _, _, err = run(Command{Args: []string{"sh"}}); err == nil {
		t.Error("a rig that is closed runs a command")
	}
}

// A machine that panics, and a command that does not end, are errors that name
// what was waited for.
func TestRigThatFails(t *testing.T) {
	if testing.Short() {
		t.Skip("two boots more: not with -short")
	}
	image := machine(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	r, err := image.Boot(ctx, "failing")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	_, err = r.Run(ctx, Command{Args: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}}, &out, &out, "")
	if err == nil || !strings.Contains(err.Error(), "the machine ended while it waited for it to end") || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("a machine that panics: %v", err)
	}
	if r, err = image.Boot(ctx, "slow"); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	short, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	_, err = r.Run(short, Command{Args: []string{"sleep", "1000"}}, &out, &out, "")
	if err == nil || !strings.Contains(err.Error(), "wait for it to end") {
		t.Errorf("a command that does not end: %v", err)
	}
}

// Where clocks count instructions, the time stamp counter has the rate of those and
// not of the host's, and what is idle passes as it is told to.
func TestClock(t *testing.T) {
	for own, want := range map[int]bool{0: false, 1: true} {
		i := Image{machine: Machine{CPUs: 1, Memory: 512 << 20, OwnTime: own}, image: &guest.Image{}}
		args := strings.Join(i.args("rig", "/console"), " ")
		if !strings.Contains(args, "tsc=reliable") || strings.Contains(args, "tsc_early_khz=1000000 ") != want || strings.Contains(args, "-icount shift=1,sleep=off") != want {
			t.Errorf("with a time of its own %d: %s", own, args)
		}
		i.machine.Waits = true
		if args = strings.Join(i.args("rig", "/console"), " "); strings.Contains(args, ",sleep=on") != want || strings.Contains(args, ",sleep=off") {
			t.Errorf("with a time of its own %d that waits: %s", own, args)
		}
	}
}
