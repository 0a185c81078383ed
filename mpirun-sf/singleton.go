package main

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpich-shim"
	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
)

// serveSingleton is for a process that was started without mpiexec, and needs one to
// spawn ranks. These run beside it: it has no way into clones.
func (m *mpiexec) serveSingleton(ctx context.Context) error {
	tui.level = quiet
	m.NoClone, m.AutoCleanup = true, true
	dir, err := workingDirectory()
	if err != nil {
		return err
	}
	j := newJob(options{noClone: true, np: 1, ppn: 1, dir: dir, startLimit: 2 * time.Minute})
	j.rules, m.job = m, j
	m.Apps = []mpichshim.App{{Argv: []string{"a process without mpiexec"}, Ranks: 1, Dir: dir}}
	j.apps = []launch.App{{Argv: m.Apps[0].Argv, Env: m.Environ(m.Apps[0], os.Environ()), Dir: dir, Ranks: 1}}
	m.printer = mpichshim.NewPrinter(m.Command, m.stdout, m.stderr)
	m.ends.AutoCleanup = true
	j.hosts = m.hostNames()
	err = j.run(ctx, newBare(j, m.Command))
	if left := m.running != nil && len(m.running.Exits) > 0 && m.running.Exits[0] != nil; err != nil && !left {
		m.endSingleton()
	}
	return err
}

// leaveLimit is how long a process that needed mpiexec may take to end by itself, when its
// job has failed: it does if it has called MPI_Abort.
const leaveLimit = time.Second

// endSingleton ends the process that needed mpiexec, as all others of a job that failed: it
// may wait for ranks that are no more, or for this launcher. It has started this one. (The process id that MPICH 4.0
// gives is mpiexec's own.)
func (m *mpiexec) endSingleton() {
	parent := os.Getppid()
	if parent <= 1 || m.Singleton.PID != os.Getpid() && m.Singleton.PID != parent {
		return
	}
	for end := time.Now().Add(leaveLimit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if os.Getppid() != parent {
			return
		}
	}
	syscall.Kill(parent, syscall.SIGKILL)
}
