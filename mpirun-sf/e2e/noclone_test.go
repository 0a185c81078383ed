package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// Without clones nobody has to be root.
func TestNoCloneAsUser(t *testing.T) {
	openMPI := compile(t, "mpicc.openmpi", "../../examples/hello.c")
	dir := ownFolder(t) // the compiler's is beside it
	as := func(c command) result {
		c.dir, c.env = dir, []string{"HOME=/nonexistent", "TMPDIR=" + os.TempDir()}
		c.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
		return c.run(t)
	}
	for name, start := range map[string]func(args ...string) command{
		"mpirun-sf": func(args ...string) command {
			return command{args: append([]string{"--no-clone", "-np", "3"}, args...)}
		},
		"mpiexec": func(args ...string) command { return mpiexec(t, append([]string{"--no-clone", "-n", "3"}, args...)...) },
	} {
		t.Run(name, func(t *testing.T) {
			programs := []string{example("hello")}
			if name == "mpirun-sf" {
				programs = append(programs, openMPI)
			}
			for _, program := range programs {
				r := as(start(program)).succeeds(t)
				for rank := range 3 {
					if want := fmt.Sprintf("rank %d of 3 on ", rank); !strings.Contains(r.stdout, want) {
						t.Errorf("the output has no %q:\n%s", want, r.stdout)
					}
				}
			}
			r := as(start("sh", "-c", "echo $(id -u) $(id -g) $(pwd)")).succeeds(t)
			if want := strings.Repeat(fmt.Sprintf("%d %d %s\n", uid, gid, dir), 3); r.stdout != want {
				t.Errorf("the ranks are %q, want %q", r.stdout, want)
			}
			if r := as(start("sh", "-c", "exit 3")); r.status != 3 {
				t.Errorf("exit status %d, want 3\n%s", r.status, r.stderr)
			}
		})
	}
}

// A process that was started without mpiexec spawns ranks, and ends with them when they fail. Debian's MPICH cannot spawn: the
// build is that of TestMPICHsOwnTests.
func TestProcessWithoutMpiexec(t *testing.T) {
	builds, err := mpich.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	of, err := mpich.Open(builds)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("open the build of MPICH: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	program := compile(t, of.Compiler(), "testdata/singleton.c")
	folder := filepath.Dir(mpiexec(t).program)
	for _, c := range []struct {
		how  string
		well bool
		says string
	}{
		{"well", true, "the ranks sent 0 1\n"},
		{"crash", false, "EXIT STRING: Segmentation fault (signal 11)"},
		{"abort", false, "MPI_Abort(MPI_COMM_WORLD, 6)"},
		{"leave", true, "went on after MPI\n"},
	} {
		t.Run(c.how, func(t *testing.T) {
			r := command{program: program, args: []string{c.how}, env: []string{"PATH=" + folder + ":" + os.Getenv("PATH")}, limit: 30 * time.Second}.run(t)
			// Some notice by themselves that ranks are no more, before they are ended.
			if (r.status == 0) != c.well || !strings.Contains(r.stdout+r.stderr, c.says) {
				t.Errorf("exit status %d, and not %q in:\n%s%s", r.status, c.says, r.stdout, r.stderr)
			}
		})
	}
}
