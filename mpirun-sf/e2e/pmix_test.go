package e2e

import (
	"strings"
	"testing"
)

// TestPMIx: programs of Open MPI without its launcher and daemons.
func TestPMIx(t *testing.T) {
	program := compile(t, "mpicc.openmpi", "../../pmi/pmix/testdata/mpi.c")
	nothingIsLeft(t)
	via := func(t *testing.T, args ...string) result {
		return mpirun(t, append([]string{"--via", "pmix"}, args...)...)
	}
	t.Run("ring", func(t *testing.T) {
		has(t, via(t, "-np", "2", program, "ring").succeeds(t).stdout, "ring right")
	})
	t.Run("spawn", func(t *testing.T) {
		has(t, via(t, "-np", "1", program, "spawn").succeeds(t).stdout, "children sum 21")
	})
	t.Run("names", func(t *testing.T) {
		slow(t)
		has(t, via(t, "-np", "2", program, "publish").succeeds(t).stdout, "heard 42")
	})
	t.Run("status", func(t *testing.T) {
		slow(t)
		via(t, "-np", "2", program, "status", "3").fails(t, 3, "exited with status 3")
	})
	t.Run("abort", func(t *testing.T) {
		via(t, "-np", "2", program, "abort").fails(t, 7, "rank 1 on clone-2 called MPI_Abort(comm, 7)")
	})
	t.Run("error", func(t *testing.T) {
		slow(t)
		r := via(t, "-np", "2", program, "badsend")
		if r.status == 0 || !strings.Contains(r.stderr, "MPI_ERR_RANK: invalid rank") {
			t.Errorf("status %d:\n%s", r.status, r.stderr)
		}
	})
	t.Run("crash", func(t *testing.T) {
		via(t, "-np", "2", program, "crash").fails(t, 139, "rank 1 on clone-2 was killed by signal 11")
	})
	t.Run("leave", func(t *testing.T) {
		slow(t)
		via(t, "-np", "2", program, "leave").fails(t, 3, "without calling MPI_Finalize")
	})
	t.Run("inside", func(t *testing.T) {
		has(t, inside.run(t, "--via", "pmix", "-np", "2", program, "ring").succeeds(t).stdout, "ring right")
		has(t, inside.run(t, "--via", "pmix", "-np", "1", program, "spawn").succeeds(t).stdout, "children sum 21")
	})
	t.Run("several on a clone", func(t *testing.T) {
		if !full {
			t.Skip("each shape of clones boots a guest: MPIRUN_SF_TEST_ALL=1 takes the time")
		}
		has(t, via(t, "-np", "4", "-ppn", "2", program, "alltoall", "5000").succeeds(t).stdout, "alltoall right")
	})
}
