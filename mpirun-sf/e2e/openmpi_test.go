package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// openMPI is the program, compiled with Open MPI.
func openMPI(t *testing.T) string {
	t.Helper()
	return compile(t, "mpicc.openmpi", "testdata/openmpi.c")
}

// saysHello checks what ranks say, one on each of so many clones.
func saysHello(t *testing.T, p place, output string, np int, more string) {
	t.Helper()
	clones := p.clones(t, output, np)
	sum := np * (np - 1) / 2
	for rank := range np {
		token := rank * (rank + 1) / 2
		if rank == 0 {
			token = sum // it has been all around
		}
		has(t, output, fmt.Sprintf("rank %d of %d on %s: sum %d, token %d, %s…", rank, np, clones[rank], sum, token, more))
	}
}

// TestOpenMPI: Open MPI's own launcher, with its daemons in the clones.
func TestOpenMPI(t *testing.T) {
	program := openMPI(t)
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "3", "-env", "MINE", "it's mine; yes", program).succeeds(t)
		saysHello(t, p, r.stdout, 3, fmt.Sprintf("uid %d, MINE=it's mine; yes, in ", os.Getuid()))
	})
	t.Run("as another user", func(t *testing.T) {
		t.Setenv("SHELL", "") // as where no shell started the job: Open MPI would warn of it
		os.Unsetenv("SHELL")
		dir := ownFolder(t)
		r := command{dir: dir, args: []string{"--via", "orted", "-np", "2", program}, env: append(bySudo(), "TMPDIR=/tmp")}.run(t).succeeds(t)
		saysHello(t, onHost, r.stdout, 2, fmt.Sprintf("uid %d, MINE=, in %s", uid, dir))
	})
	t.Run("several on a clone", func(t *testing.T) {
		if !full {
			t.Skip("each shape of clones boots a guest: MPIRUN_SF_TEST_ALL=1 takes the time")
		}
		r := mpirun(t, "--via", "orted", "-np", "5", "-ppn", "2", program).succeeds(t)
		for rank := range 5 {
			has(t, r.stdout, fmt.Sprintf("rank %d of 5 on clone-%d: sum 10, …", rank, rank/2+1))
		}
	})
	t.Run("parent ranks", func(t *testing.T) {
		slow(t)
		r := inside.run(t, "--parent-ranks", "-np", "2", program).succeeds(t)
		has(t, r.stdout, "rank 0 of 2 on parent: sum 1, token 1, …", "rank 1 of 2 on clone-…")
	})
}

// TestOpenMPIEnds: how jobs end, and that nothing of them is left.
func TestOpenMPIEnds(t *testing.T) {
	program := openMPI(t)
	nothingIsLeft(t)
	in := []place{onHost}
	if full {
		in = append(in, inside)
	}
	for _, p := range in {
		for _, c := range []struct {
			what   string
			status int
			words  []string
		}{
			{"abort", 7, []string{"MPI_ABORT was invoked on rank 1"}},
			{"crash", 139, []string{"rank 1", "signal 11"}},
			{"exit", 3, []string{"Exit code:    3"}},
		} {
			t.Run(string(p)+", "+c.what, func(t *testing.T) {
				if c.what != "abort" {
					slow(t) // the launcher's own tests have it
				}
				r := p.run(t, "-np", "2", program, c.what)
				if r.status != c.status {
					t.Errorf("the status is %d, want %d:\n%s", r.status, c.status, r.stderr)
				}
				for _, want := range c.words {
					if !strings.Contains(r.stderr, want) {
						t.Errorf("no %q on stderr:\n%s", want, r.stderr)
					}
				}
			})
		}
		asleep := func(t *testing.T) *running {
			run := p.start(t, command{args: []string{"--via", "orted", "-np", "2", program, "sleep"}})
			run.awaitOutput("sleeps", 2)
			return run
		}
		t.Run(string(p)+", interrupted", func(t *testing.T) {
			slow(t)
			run := asleep(t)
			run.cmd.Process.Signal(syscall.SIGINT)
			run.wait().fails(t, 130, "interrupted by SIGINT")
		})
	}
	t.Run("a lost clone", func(t *testing.T) {
		run := command{args: []string{"--via", "orted", "-np", "2", program, "sleep"}}.start(t)
		run.awaitOutput("sleeps", 2)
		all := processes()
		victim := slices.IndexFunc(all, func(p process) bool { return p.isQEMU("-name clone-2") })
		begin := time.Now()
		syscall.Kill(all[victim].pid, syscall.SIGKILL)
		run.wait().fails(t, 1, "clone-2", "QEMU ended")
		if took := time.Since(begin); took > promptly {
			t.Errorf("the job ended %v after its clone", took)
		}
	})
	t.Run("a killed launcher", func(t *testing.T) {
		run := command{args: []string{"--via", "orted", "-np", "2", program, "sleep"}}.start(t)
		run.awaitOutput("sleeps", 2)
		run.cmd.Process.Kill()
		run.wait()
	})
	t.Run("no such way", func(t *testing.T) {
		mpirun(t, "--via", "orted", example("hello")).oneLine(t, "--via orted", "programs of Open MPI")
		mpirun(t, "--via", "telepathy", program).oneLine(t, "--via telepathy: it is orted or pmix")
	})
}

// allocation is a script that has mpirun-sf make clones, and then starts Open
// MPI's launcher on them, as the launcher's own plugin does.
const allocation = `cd "$1" && mkfifo in && "$2" ompi allocate -np 2 "$3" <in | {
	exec 9>in
	program=$3
	set --
	while read -r kind name value; do
		case $kind in
		host) hosts=$hosts,$name:${value%% *} ;;
		mca) set -- "$@" --mca "$name" "$value" ;;
		env) export "$name=$value" ;;
		ready) break ;;
		*) echo "$kind $name $value"; exit 1 ;;
		esac
	done
	orterun --allow-run-as-root "$@" --host "${hosts#,}" -np 2 "$program"
	echo "status $?"
	exec 9>&-
	cat
}
rm in`

// TestOpenMPIAllocate: the other way round, Open MPI's launcher starts mpirun-sf.
func TestOpenMPIAllocate(t *testing.T) {
	program := openMPI(t)
	nothingIsLeft(t)
	t.Run("host", func(t *testing.T) {
		slow(t) // the plugin is tested with it
		dir := t.TempDir()
		r := command{program: "sh", args: []string{"-c", allocation, "sh", dir, launcher, program}, dir: dir}.run(t).succeeds(t)
		saysHello(t, onHost, r.stdout, 2, "uid 0, MINE=, in "+dir)
		has(t, r.stdout, "status 0")
	})
	t.Run("inside", func(t *testing.T) {
		slow(t) // the plugin is tested with it
		dir := t.TempDir()
		script := filepath.Join(dir, "allocate")
		if err := os.WriteFile(script, []byte(allocation), 0o755); err != nil {
			t.Fatal(err)
		}
		// The FIFO needs a file system of the machine's own.
		r := machine.in(t, "mkdir /root/allocate && sh "+script+" /root/allocate mpirun-sf "+program+"; status=$?; rm -r /root/allocate; exit $status").succeeds(t)
		machine.settles(t)
		saysHello(t, inside, r.stdout, 2, "uid 0, MINE=, in /root/allocate")
		has(t, r.stdout, "status 0")
	})
	t.Run("errors", func(t *testing.T) {
		for name, c := range map[string]struct {
			args  []string
			words string
		}{
			"no program":      {nil, "error no program was given"},
			"another program": {[]string{example("hello")}, "error ompi allocate: "},
			"no such program": {[]string{"./no-such"}, "error /"},
		} {
			r := mpirun(t, append([]string{"ompi", "allocate", "-np", "2"}, c.args...)...)
			if r.status != 1 || !strings.HasPrefix(r.stdout, c.words) || strings.Count(r.stdout, "\n") != 1 {
				t.Errorf("%s: status %d, %q", name, r.status, r.stdout)
			}
		}
	})
}
