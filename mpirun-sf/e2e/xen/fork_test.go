package xen

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fork is a machine's life: it forks itself twice, and so does its second clone once, whose clone says
// by its status what the machine drew before all forks.
const fork = `
mark=$((RANDOM % 50))
for round in 1 2; do
	t=$(sf request-ticket 1) && id=$(sf clone "$t") || exit 77
	((id > 0 && round == 1)) && sf exit 11
	if ((id > 0)); then
		u=$(sf request-ticket 1) && below=$(sf clone "$u") || exit 78
		((below > 0)) && sf exit $mark
		[[ $(sf join "$u") == *" $mark" ]] || exit 79
		sf exit 12
	fi
	echo "round $round:" $(sf join "$t")
done`

// TestFork: a machine that runs is forked, and forked again, and so is its clone.
func TestFork(t *testing.T) {
	dir := product(t)
	on := pvh
	if !makesPVH(t) {
		on = pv
	}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "mpirun-sf"), "vm", "run", "--hypervisor", on, "--memory", memory, "--cpus", "1", "--", "bash", "-c", fork)
	cmd.Dir = t.TempDir()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	t.Logf("it took %v:\n%s%s", time.Since(begin).Round(time.Millisecond), &stdout, &stderr)
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"round 1: 1 11\n", "round 2: 1 12\n"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is not in what the machine said", want)
		}
	}
	nothingLeft(t)
}
