package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mpiexec is a run of the launcher under the name of MPICH's.
func mpiexec(t *testing.T, args ...string) command {
	t.Helper()
	link := filepath.Join(filepath.Dir(launcher), "mpiexec")
	if err := os.Symlink(filepath.Base(launcher), link); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return command{program: link, args: args}
}

// ends checks the exit status, of which mpiexec says nothing.
func (r result) ends(t *testing.T, status int) result {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d\nstdout:\n%s\nstderr:\n%s", r.status, status, r.stdout, r.stderr)
	}
	return r
}

// What mpiexec is told means the same on clones as with Hydra; that it is so without
// clones is tested command line by command line, in mpich-shim/difftest.
func TestMpiexecOnClones(t *testing.T) {
	t.Run("two programs", func(t *testing.T) {
		r := mpiexec(t, "-l", "-genv", "A", "1", "-n", "1", "sh", "-c", "echo $A $PMI_RANK of $PMI_SIZE $B", ":", "-n", "1", "-env", "B", "2",
			"sh", "-c", "echo $A $PMI_RANK of $PMI_SIZE $B; exit 5").run(t).ends(t, 5)
		has(t, r.stdout, "[0] 1 0 of 2", "[1] 1 1 of 2 2")
		if r.stderr != "" {
			t.Errorf("it said %q, and Hydra says nothing", r.stderr)
		}
	})
	t.Run("MPI", func(t *testing.T) {
		r := mpiexec(t, "-n", "2", "-print-all-exitcodes", example("hello")).run(t).succeeds(t)
		if strings.Count(r.stdout, " of 2") != 2 || !strings.Contains(r.stdout, "Exit codes: [clone-1] 0\n[clone-2] 0\n") {
			t.Errorf("it wrote %q", r.stdout)
		}
	})
	t.Run("a signal", func(t *testing.T) {
		r := mpiexec(t, "-n", "2", example("crash")).run(t).ends(t, 11)
		for _, want := range []string{"=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n", " RUNNING AT clone-2\n", "=   EXIT CODE: 11\n", "(signal 11)\n"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("it wrote %q, without %q", r.stdout, want)
			}
		}
	})
	t.Run("an interrupt", func(t *testing.T) {
		run := mpiexec(t, "-n", "2", example("sleep"), "60").start(t)
		run.awaitOutput("sleeps", 2)
		run.cmd.Process.Signal(syscall.SIGINT)
		run.awaitOutput("got SIGINT", 2)
		run.cmd.Process.Signal(syscall.SIGINT)
		if r := run.wait(); r.status == 0 || !strings.Contains(r.stdout, "Press Ctrl-C again to force abort\n") {
			t.Errorf("it wrote %q", r.stdout)
		}
	})
	t.Run("what has no effect", func(t *testing.T) {
		r := mpiexec(t, "-v", "-bind-to", "core", "-iface", "eth7", "-n", "1", example("hello")).run(t).succeeds(t)
		for _, want := range []string{"-bind-to has no effect", "-iface has no effect"} {
			if !strings.Contains(r.stderr, want) {
				t.Errorf("it said %q, and not %q", r.stderr, want)
			}
		}
	})
}
