package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSpawnInside: ranks that a job in a virtual machine spawns get clones of the machine
// as it was before the job, and these are gone when the ranks are.
func TestSpawnInside(t *testing.T) {
	program := compile(t, "mpicc.mpich", "testdata/spawn.c")
	// One after the other: each group has new clones, of the one checkpoint.
	t.Run("twice", func(t *testing.T) {
		r := inside.run(t, "-v", "-np", "1", program, "2", "1").succeeds(t)
		has(t, r.stdout, "spawn 2: 2 children", "spawn 1: 1 children")
		inside.clones(t, r.stdout, 3)
		for _, part := range []string{"2 clones for spawned ranks ready in", "1 clone for spawned ranks ready in"} {
			if !strings.Contains(r.stderr, part) {
				t.Errorf("no %q in:\n%s", part, r.stderr)
			}
		}
	})
	t.Run("in free slots and beyond", func(t *testing.T) {
		slow(t)
		r := inside.run(t, "-np", "1", "-ppn", "2", program, "3").succeeds(t)
		has(t, r.stdout, "spawn 3: 3 children")
		inside.clones(t, r.stdout, 2)
	})
	// The machine runs the only rank: there was no other fork.
	t.Run("of the parent", func(t *testing.T) {
		r := inside.run(t, "--parent-ranks", "-np", "1", program, "1").succeeds(t)
		has(t, r.stdout, "spawn 1: 1 children")
		inside.clones(t, r.stdout, 1)
	})
	// Too many is an error of the call alone.
	t.Run("too many", func(t *testing.T) {
		r := inside.run(t, "--parent-ranks", "-np", "1", program, "60000", "60000").succeeds(t)
		if strings.Count(r.stdout, "spawn 60000: MPI_ERR_SPAWN") != 2 {
			t.Errorf("it printed\n%s", r.stdout)
		}
		if !strings.Contains(r.stderr, "MPI_Comm_spawn: 60000 ranks more need 60000 clones, and") {
			t.Errorf("no reason in:\n%s", r.stderr)
		}
	})
	t.Run("killed", func(t *testing.T) {
		// What a job reserves is in files that have the name of the machine's own job in theirs.
		job, _, _ := strings.Cut(machine.in(t, `t=$(sf request-ticket 1) && echo "$t" && sf kill "$t"`).succeeds(t).stdout, "-t")
		reserved := func() int {
			files, err := filepath.Glob("/run/mpirun-sf/jobs/" + job + ".*.job")
			if err != nil {
				t.Fatal(err)
			}
			return len(files)
		}
		before := reserved()
		run := command{args: []string{"vm", "exec", machine.name, "sh", "-c", fmt.Sprintf("cd %s; echo pid $$; exec mpirun-sf -np 1 %s 1 stay", t.TempDir(), program)}}.start(t)
		run.awaitOutput("spawn 1: 1 children", 1)
		if reserved() == before {
			t.Errorf("the job has no reservation: there are %d", before)
		}
		_, pid, _ := strings.Cut(run.stdout.String(), "pid ")
		pid, _, _ = strings.Cut(pid, "\n")
		machine.in(t, "kill -9 "+pid).succeeds(t)
		if r := run.wait(); r.status != 137 {
			t.Errorf("status %d:\n%s", r.status, r.stderr)
		}
		machine.settles(t)
		for deadline := time.Now().Add(promptly); reserved() != before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("of the job's reservations there still are %d, before it there were %d", reserved(), before)
			}
		}
	})
	// Nothing of all this goes on in the machine itself.
	if r := machine.in(t, "ps -A -o comm="); strings.Contains(r.stdout, "mpirun-sf") || strings.Contains(r.stdout, filepath.Base(program)) {
		t.Errorf("in the machine there still runs:\n%s", r.stdout)
	}
}
