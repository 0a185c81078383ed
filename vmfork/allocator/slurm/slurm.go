package slurm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

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
	if a.List[0].Memory == 0 {
		askMemory(a.List, j.id)
	}
	a.Command = func(h allocator.Host) *exec.Cmd { return srun(j.id, h.Name, os.Environ()) }
	a.Explain = func(exit *allocator.ExitError) error { return explain(j.id, exit) }
	if name, err := os.Hostname(); err == nil {
		a.self = a.named(name)
		if short, _, ok := strings.Cut(name, "."); ok && a.self == "" {
			a.self = a.named(short)
		}
	}
	return a, nil
}

// askLimit is for slurmctld's answer.
const askLimit = 5 * time.Second

// askMemory asks Slurm how much memory the job has, which salloc tells only if
// the user said so, and not if it is the cluster's default. Without an answer it
// stays unknown: then the host says what is free.
func askMemory(hosts []allocator.Host, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "scontrol", "--oneliner", "show", "job", id)
	cmd.Env = commandEnvironment(os.Environ())
	out, err := cmd.Output()
	if err != nil {
		return
	}
	perNode, perCPU := parseMemory(string(out))
	for i := range hosts {
		if hosts[i].Memory = perNode; perNode == 0 {
			hosts[i].Memory = perCPU * int64(hosts[i].CPUs)
		}
	}
}

// parseMemory finds MinMemoryNode=2G or MinMemoryCPU=100M in what scontrol says
// of a job: bytes, 0 if it is not there or no amount.
func parseMemory(job string) (perNode, perCPU int64) {
	for _, field := range strings.Fields(job) {
		name, value, _ := strings.Cut(field, "=")
		if name != "MinMemoryNode" && name != "MinMemoryCPU" || value == "" {
			continue
		}
		shift := strings.IndexByte("KMGTP", value[len(value)-1])
		whole, fraction, _ := strings.Cut(strings.TrimRight(value, "KMGTP"), ".")
		n, err := number(whole, 1<<20)
		if err != nil || strings.Trim(fraction, "0123456789") != "" || len(fraction) > 6 {
			continue
		}
		unit := int64(1) << 20 // without a letter
		if shift >= 0 {
			unit = 1 << (10 * (shift + 1))
		}
		amount := int64(n) * unit
		if f, err := strconv.ParseFloat("0."+fraction+"0", 64); err == nil {
			amount += int64(f * float64(unit))
		}
		if amount > maxMega<<20 || amount/unit < int64(n) {
			continue
		}
		if name == "MinMemoryNode" {
			perNode = amount
		} else {
			perCPU = amount
		}
	}
	return perNode, perCPU
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
