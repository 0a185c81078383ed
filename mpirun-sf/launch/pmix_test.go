package launch

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
)

// newPMIxTrial is a job of a real program of Open MPI, whose first argument says what it does.
func newPMIxTrial(t *testing.T, what string, perNode ...int) *trial {
	t.Helper()
	if _, err := pmix.Helper(); err != nil {
		t.Skip(err)
	}
	program := filepath.Join(t.TempDir(), "mpi")
	if out, err := exec.Command("mpicc.openmpi", "-o", program, "../../pmi/pmix/testdata/mpi.c").CombinedOutput(); err != nil {
		t.Skipf("no program of Open MPI can be built: %v\n%s", err, out)
	}
	tr := newTrial(t, "", perNode...)
	tr.Wire = WirePMIx
	tr.Apps[0].Argv = []string{program, what}
	// In these tests clones have the machine's network and shared memory.
	tr.Apps[0].Env = append(tr.Apps[0].Env, "OMPI_MCA_btl=self,tcp")
	for i := range tr.Places {
		tr.Places[i].IP = "127.0.0.1"
	}
	return tr
}

func TestPMIx(t *testing.T) {
	for what, says := range map[string]string{"ring": "ring right\n", "publish": "heard 42\n"} {
		t.Run(what, func(t *testing.T) {
			tr := newPMIxTrial(t, what, 2)
			if err := tr.run(t, 20*time.Second); err != nil {
				t.Fatalf("%v\n%s\n%s", err, tr.errors.String(), tr.notices.String())
			}
			if got := tr.out.String(); got != says {
				t.Errorf("it said %q", got)
			}
		})
	}
}

func TestPMIxFails(t *testing.T) {
	for what, c := range map[string]struct {
		status int
		says   string
	}{
		"abort": {7, "rank 1 on clone-1 called MPI_Abort(comm, 7)"},
		"crash": {139, "rank 1 on clone-1 was killed by signal 11 (segmentation fault)"},
		"leave": {3, "rank 1 on clone-1 exited with status 3 without calling MPI_Finalize"},
	} {
		t.Run(what, func(t *testing.T) {
			tr := newPMIxTrial(t, what, 2)
			fails(t, tr.run(t, 20*time.Second), c.status, c.says)
			if what == "abort" && !strings.Contains(tr.errors.String(), "MPI_ABORT was invoked on rank 1") {
				t.Errorf("on standard error: %q", tr.errors.String())
			}
		})
	}
}

func TestPMIxSpawn(t *testing.T) {
	tr := newPMIxTrial(t, "spawn", 1)
	released := tr.spawnOn(t, 2)
	spawn := tr.Spawn
	tr.Spawn = func(ctx context.Context, apps []App) ([]Place, func(), error) {
		places, release, err := spawn(ctx, apps)
		for i := range places {
			places[i].IP = "127.0.0.1"
		}
		return places, release, err
	}
	if err := tr.run(t, 20*time.Second); err != nil {
		t.Fatalf("%v\n%s\n%s", err, tr.errors.String(), tr.notices.String())
	}
	if got := tr.out.String(); got != "children sum 21\n" {
		t.Errorf("it said %q", got)
	}
	awaitReleased(t, released)
}
