package sfld

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// runDir is where the jobs of a machine meet: reservations, and the empty
// folder over which each job mounts its own.
const runDir = "/run/mpirun-sf"

// jobDir is a job's folder, a tmpfs that only the job sees.
const jobDir = runDir + "/job"

// isolate prepares cmd to be the first process of a job.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // a Ctrl-C at the launcher's terminal is the launcher's
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
	}
}

// sweepLimit is how long hypervisors may take to end what a daemon has left that was killed.
const sweepLimit = 30 * time.Second

// sweep is called where a job's first process has ended, whose end is that of all that it had started, but not of
// machines that are no processes. Who sweeps next finds what this one does not.
func sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), sweepLimit)
	defer cancel()
	if err := hypervisor.Sweep(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "mpirun-sf: %v\n", err)
	}
}

// jobsDir is where jobs keep their reservations of memory.
const jobsDir = runDir + "/jobs"

// settle makes the new namespaces the job's own.
func settle() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("begin a job: the host daemon is not the first process of a PID namespace; it is started by mpirun-sf, not by hand")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("begin a job: make its mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("begin a job: mount /proc: %w", err)
	}
	// Modes mean what they say, whatever umask the user has.
	unix.Umask(0o022)
	// The server of a program's copy, which runs as the user, has to get
	// there. What else is in the folder only root can open, and nobody outside
	// of the job sees it at all.
	if err := os.MkdirAll(jobDir, 0o755); err != nil {
		return fmt.Errorf("begin a job: %w", err)
	}
	if err := os.Chmod(runDir, 0o755); err != nil { // whatever the umask, or an older version, made it
		return fmt.Errorf("begin a job: %w", err)
	}
	if err := unix.Mount("mpirun-sf", jobDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
		return fmt.Errorf("begin a job: mount its folder: %w", err)
	}
	return nil
}
