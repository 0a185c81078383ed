package launch

import (
	"testing"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		exit   agent.Exit
		state  pmi.State
		status int // 0: no failure
		ends   bool
		says   string
	}{
		"well":                       {agent.Exit{}, pmi.Finalized, 0, false, ""},
		"well, without MPI":          {agent.Exit{}, pmi.NotStarted, 0, false, ""},
		"a status":                   {agent.Exit{Status: 3}, pmi.Finalized, 3, false, "rank 2 on clone-1 exited with status 3"},
		"a status, without MPI":      {agent.Exit{Status: 3}, pmi.NotStarted, 3, true, "rank 2 on clone-1 exited with status 3"},
		"a status between":           {agent.Exit{Status: 3}, pmi.Initialized, 3, true, "rank 2 on clone-1 exited with status 3 without calling MPI_Finalize"},
		"well between":               {agent.Exit{}, pmi.Initialized, 1, true, "rank 2 on clone-1 exited with status 0 without calling MPI_Finalize"},
		"killed":                     {agent.Exit{Signal: 9}, pmi.Initialized, 137, true, "rank 2 on clone-1 was killed by signal 9 (killed)"},
		"killed after MPI_Finalize":  {agent.Exit{Signal: 11}, pmi.Finalized, 139, true, "rank 2 on clone-1 was killed by signal 11 (segmentation fault)"},
		"killed without MPI":         {agent.Exit{Signal: 15}, pmi.NotStarted, 143, true, "rank 2 on clone-1 was killed by signal 15 (SIGTERM)"},
		"lost":                       {agent.Exit{Error: "the clone is gone"}, pmi.Initialized, 1, true, "rank 2 on clone-1 was lost: the clone is gone"},
		"lost, whatever it had done": {agent.Exit{Error: "the clone is gone"}, pmi.Finalized, 1, true, "rank 2 on clone-1 was lost: the clone is gone"},
	} {
		f, ends := judge(2, "clone-1", c.exit, c.state)
		if c.status == 0 {
			if f != nil || ends {
				t.Errorf("%s: it is a failure (%v)", name, f)
			}
			continue
		}
		if f == nil || f.Status != c.status || ends != c.ends || f.Error() != c.says {
			t.Errorf("%s: %+v, ends the job: %v; want status %d, %v, %q", name, f, ends, c.status, c.ends, c.says)
		}
	}
}

func TestSignalName(t *testing.T) {
	for n, want := range map[int]string{
		11: "segmentation fault", 6: "aborted", 9: "killed", 15: "SIGTERM", 10: "SIGUSR1", 64: "unknown", 0: "unknown", -1: "unknown",
	} {
		if got := signalName(n); got != want {
			t.Errorf("signal %d is %q, want %q", n, got, want)
		}
	}
}

func TestAbortStatus(t *testing.T) {
	for code, want := range map[int]int{7: 7, 0: 1, 1: 1, 255: 255, 256: 1, -1: 255, 300: 44} {
		if got := abortStatus(code); got != want {
			t.Errorf("MPI_Abort(comm, %d) is status %d, want %d", code, got, want)
		}
	}
	if got := aborted(3, "no data"); got != "called MPI_Abort(comm, 3): no data" {
		t.Error(got)
	}
}

func TestFailureOfNobody(t *testing.T) {
	if got := (&Failure{Status: 1, Cause: "clone-2: killed"}).Error(); got != "clone-2: killed" {
		t.Error(got)
	}
}
