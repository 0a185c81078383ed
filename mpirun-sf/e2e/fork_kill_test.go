package e2e

import (
	"testing"
	"time"
)

// TestKillLauncherInFork: SIGKILL of the launcher, for which nobody can prepare, at
// moments of a fork. All that belongs to the machine goes with it.
func TestKillLauncherInFork(t *testing.T) {
	delays := []time.Duration{60 * time.Millisecond}
	if full {
		delays = nil
		for d := time.Duration(0); d < 600*time.Millisecond; d += 20 * time.Millisecond {
			delays = append(delays, d)
		}
	}
	for _, delay := range delays {
		t.Run(delay.String(), func(t *testing.T) {
			nothingIsLeft(t)
			run := command{args: []string{"vm", "run", "--name", vmNameOf("doomed"), "--memory", "256M", "--cpus", "2", "--", "sh", "-c", `
while :; do
	t=$(sf request-ticket 2); echo forks
	id=$(sf clone $t)
	[ $id -gt 0 ] && sleep 100
	echo forked; sleep 0.3; sf kill $t
done`}}.start(t)
			// The second one, for then there is a generation to go on from.
			run.awaitOutput("forks\n", 2)
			time.Sleep(delay)
			run.cmd.Process.Kill()
			if r := run.wait(); r.status != 137 {
				t.Errorf("status %d:\n%s%s", r.status, r.stdout, r.stderr)
			}
		})
	}
	// The next of that name finds nothing in its way, and leaves nothing at all.
	mpirun(t, "vm", "run", "--name", vmNameOf("doomed"), "--memory", "256M", "--cpus", "2", "--", "true").succeeds(t)
}
