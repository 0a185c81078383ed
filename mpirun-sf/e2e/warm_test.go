package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// warm are clones that are there, and idle, and run one job after the other.
type warm struct {
	daemon *sfld.Client
	ticket ticket.Ticket
	run    func(ctx context.Context, n int) (output string, err error)
}

// warmClones makes clones by the launcher's own packages, for jobs of that
// program with ppn ranks on each.
func warmClones(t *testing.T, clones, ppn int, program string) warm {
	t.Helper()
	nothingIsLeft(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), defaultLimit)
	defer cancel()
	dir := t.TempDir()
	daemon, err := sfld.Start(ctx, launcher, sfld.Options{Job: strings.ToLower(marker[len(marker)-12:]), Cache: cacheDir + "/mpirun-sf"}, func(sfld.Notice) {})
	must(err)
	t.Cleanup(func() { must(daemon.Close()) })
	memory := int64(ppn) * 512 << 20
	granted, err := daemon.RequestTicket(ctx, sfld.RequestArgs{Clones: clones, VCPUs: ppn, Memory: memory})
	must(err)
	tk := granted.Ticket
	if len(tk.Clones) != clones {
		t.Fatalf("this machine has memory for %d clones of %d MB only", len(tk.Clones), memory>>20)
	}
	p, err := daemon.Prepare(ctx, sfld.PrepareArgs{Program: program, VCPUs: ppn, Memory: memory, Expect: clones})
	must(err)
	folder, err := daemon.Share(ctx, sfld.ShareArgs{Folder: dir, Target: dir})
	must(err)
	staged, err := daemon.Stage(ctx, program)
	must(err)
	_, err = daemon.Clone(ctx, tk, defaultLimit)
	must(err)
	places, err := launch.Connect(ctx, daemon.Attach, tk, clones*ppn, []share.Mounting{folder, staged.Mounting},
		agent.Place{From: staged.Paths[0], At: program})
	must(err)
	return warm{daemon, tk, func(ctx context.Context, n int) (string, error) {
		var stdout, stderr bytes.Buffer
		job := launch.Job{
			Name: fmt.Sprintf("run%d", n), UCX: p.UCX,
			Apps:   []launch.App{{Argv: []string{program}, Env: append(os.Environ(), "HWLOC_COMPONENTS=-gl,-opencl"), Dir: dir, Ranks: clones * ppn}},
			Places: places, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
			StartLimit: hangLimit, Notice: func(string) {},
		}
		err := job.Run(ctx)
		if err != nil && stderr.Len() > 0 {
			err = fmt.Errorf("%w; stderr: %s", err, &stderr)
		}
		return stdout.String(), err
	}}
}

// TestOneCloneIsOneClone: a ticket that is used again makes no second clone of
// the same identity, and does no harm to the first.
func TestOneCloneIsOneClone(t *testing.T) {
	w := warmClones(t, 2, 1, example("ring"))
	if _, err := w.daemon.Clone(t.Context(), w.ticket, hangLimit); err == nil {
		t.Error("a ticket was used twice")
	} else {
		t.Logf("says: %v", err)
	}
	n := 0
	for _, p := range processes() {
		if p.isQEMU("clone-") {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d hypervisors run instead of 2", n)
	}
	if out, err := w.run(t.Context(), 1); err != nil || !strings.Contains(out, "ring of 2 ranks") {
		t.Errorf("the clones do not run a job any more: %q, %v", out, err)
	}
}
