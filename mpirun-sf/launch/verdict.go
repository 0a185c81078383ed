package launch

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// Failure is why a job failed: the first rank that did.
type Failure struct {
	Rank   int
	Clone  string
	Status int    // the job's exit status
	Cause  string // "was killed by signal 11 (segmentation fault)"
	Abort  *int   // the code of its MPI_Abort, nil if that is not why
}

func (f *Failure) Error() string {
	if f.Clone == "" {
		return f.Cause
	}
	return fmt.Sprintf("rank %d on %s %s", f.Rank, f.Clone, f.Cause)
}

// judge says whether a rank's end is a failure, and whether it ends the job: it
// does when others may wait for it.
func judge(rank int, clone string, e agent.Exit, s pmi.State) (f *Failure, endsJob bool) {
	f = &Failure{Rank: rank, Clone: clone}
	switch {
	case e.Error != "":
		f.Status, f.Cause = 1, "was lost: "+e.Error
		return f, true
	case e.Signal != 0:
		f.Status = 128 + e.Signal
		f.Cause = fmt.Sprintf("was killed by signal %d (%s)", e.Signal, signalName(e.Signal))
		return f, true
	case s == pmi.Initialized:
		f.Status, f.Cause = e.Status, fmt.Sprintf("exited with status %d without calling MPI_Finalize", e.Status)
		if e.Status == 0 {
			f.Status = 1
		}
		return f, true
	case e.Status != 0:
		f.Status, f.Cause = e.Status, fmt.Sprintf("exited with status %d", e.Status)
		// After MPI_Finalize nobody waits for it any more.
		return f, s != pmi.Finalized
	}
	return nil, false
}

var signalWords = map[unix.Signal]string{
	unix.SIGSEGV: "segmentation fault", unix.SIGBUS: "bus error", unix.SIGABRT: "aborted",
	unix.SIGFPE: "arithmetic error", unix.SIGILL: "illegal instruction", unix.SIGKILL: "killed",
}

func signalName(n int) string {
	if w := signalWords[unix.Signal(n)]; w != "" {
		return w
	}
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return "unknown"
}
