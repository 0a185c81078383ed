package e2e

import (
	"errors"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// TestSpawnInside: ranks that a job in a virtual machine spawns get clones of the machine
// as it was before the job, and these are gone when the ranks are.
func TestSpawnInside(t *testing.T) {
	// It speaks PMI itself: MPI_Comm_spawn does not work with Debian's MPICH, whatever the
	// launcher.
	script := filepath.Join(t.TempDir(), "spawn.sh")
	if out, err := exec.Command("cp", "testdata/spawn.sh", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// One after the other: each group has new clones, of the one checkpoint.
	t.Run("twice", func(t *testing.T) {
		r := inside.run(t, "-v", "-np", "1", script, "2", "1").succeeds(t)
		has(t, r.stdout, "spawn 2: cmd=spawn_result rc=0…", "spawn 1: cmd=spawn_result rc=0…", "child 0 of 2 on …", "child 1 of 2 on …", "child 0 of 1 on …")
		inside.clones(t, r.stdout, 3)
		for _, part := range []string{"2 clones for spawned ranks ready in", "1 clone for spawned ranks ready in"} {
			if !strings.Contains(r.stderr, part) {
				t.Errorf("no %q in:\n%s", part, r.stderr)
			}
		}
	})
	t.Run("in free slots and beyond", func(t *testing.T) {
		slow(t)
		r := inside.run(t, "-np", "1", "-ppn", "2", script, "3").succeeds(t)
		has(t, r.stdout, "child 0 of 3 on …", "child 1 of 3 on …", "child 2 of 3 on …")
		inside.clones(t, r.stdout, 2)
	})
	// The machine runs the only rank: there was no other fork. That there is no room is
	// an error of the call alone.
	t.Run("of the parent", func(t *testing.T) {
		r := inside.run(t, "--parent-ranks", "-np", "1", script, "60000", "1").succeeds(t)
		has(t, r.stdout, "spawn 60000: cmd=spawn_result rc=-1 msg=60000_ranks_more_need_60000_clones,_and_…", "spawn 1: cmd=spawn_result rc=0…", "child 0 of 1 on …")
		if !strings.Contains(r.stderr, "rank 0 on parent: MPI_Comm_spawn: 60000 ranks more need 60000 clones, and") {
			t.Errorf("no reason in:\n%s", r.stderr)
		}
		inside.clones(t, r.stdout, 1)
	})
	t.Run("killed", func(t *testing.T) { killSpawner(t, script) })
	t.Run("MPICH", func(t *testing.T) {
		program, libraries := compileSpawning(t)
		run := inside.start(t, command{args: []string{"-np", "1", program, "2", "60000", "1"}, env: []string{"LD_LIBRARY_PATH=" + libraries}})
		r := run.wait().succeeds(t)
		has(t, r.stdout, "spawn 2: 2 children", "spawn 60000: another error", "spawn 1: 1 children")
	})
	// Nothing of all this goes on in the machine itself.
	if r := machine.in(t, "ps -A -o comm="); strings.Contains(r.stdout, "mpirun-sf") || strings.Contains(r.stdout, "spawn") {
		t.Errorf("in the machine there still runs:\n%s", r.stdout)
	}
}

// killSpawner kills the launcher in the machine when its job has clones of two tickets. The
// daemon, which is outside and lives on, keeps nothing of it.
func killSpawner(t *testing.T, script string) {
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
	run := command{args: []string{"vm", "exec", machine.name, "sh", "-c", "echo pid $$; exec mpirun-sf -np 1 " + script + " 1 stay"}}.start(t)
	run.awaitOutput("child 0 of 1 on", 1)
	if got := reserved(); got != before+2 {
		t.Errorf("there are %d reservations, before the job there were %d", got, before)
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
			t.Fatalf("there still are %d reservations, before the job there were %d", reserved(), before)
		}
	}
}

// compileSpawning compiles testdata/spawn.c with an MPICH that can spawn, and says where its
// library is, in a folder that the machine has. Where no test of MPICH's own has left one, it
// skips.
func compileSpawning(t *testing.T) (program, libraries string) {
	t.Helper()
	builds, err := mpich.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	b, err := mpich.Open(builds)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("open the build of MPICH's tests: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	libraries = t.TempDir()
	if out, err := exec.Command("cp", "-L", filepath.Join(b.Libraries(), "libmpich.so.12"), libraries).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return compile(t, b.Compiler(), "testdata/spawn.c", "-Wl,-rpath,"+libraries), libraries
}
