package slurm

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/step"
)

// Allocation is a Slurm job.
type Allocation struct {
	step.Allocation
	id   string
	self string
	held *holder // nil if the launcher was started in the job
}

var _ allocator.Allocation = (*Allocation)(nil)

// Detect finds the job that the launcher runs in, by its environment: false if
// there is none. There is one, but of no use, if there is an error.
func Detect(env func(string) string) (*Allocation, bool, error) {
	if env("SLURM_JOB_ID") == "" {
		return nil, false, nil
	}
	a, err := newAllocation(env)
	if err != nil {
		return nil, true, err
	}
	// A process of a job knows its node by Slurm's name for it; on the machine
	// that called salloc there is no such name.
	if name := env("SLURMD_NODENAME"); name != "" {
		a.self = a.named(name)
	}
	return a, true, nil
}

func newAllocation(env func(string) string) (*Allocation, error) {
	j, err := readJob(env)
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("srun"); err != nil {
		return nil, fmt.Errorf("start daemons in Slurm's job %s: %w", j.id, err)
	}
	a := &Allocation{id: j.id}
	a.List = j.hosts
	a.Command = func(h allocator.Host) *exec.Cmd { return srun(j.id, h.Name, os.Environ()) }
	a.Explain = explain
	if name, err := os.Hostname(); err == nil {
		a.self = a.named(name)
		if short, _, ok := strings.Cut(name, "."); ok && a.self == "" {
			a.self = a.named(short)
		}
	}
	return a, nil
}

func (a *Allocation) named(name string) string {
	for _, h := range a.List {
		if h.Name == name {
			return name
		}
	}
	return ""
}

// ID is the job's number.
func (a *Allocation) ID() string { return a.id }

// Self is the name of the host that this process runs on, or empty if it is
// none of the job's: the machine that a user calls salloc on is none.
func (a *Allocation) Self() string { return a.self }

// Close ends what was started, and an allocation from [Allocate].
func (a *Allocation) Close() error {
	err := a.Allocation.Close()
	if a.held != nil {
		if e := a.held.release(); err == nil {
			err = e
		}
	}
	return err
}
