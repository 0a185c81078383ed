package slurm

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// Limits of what is read, beyond what anybody has.
const (
	maxHosts = 65533   // of a job; Slurm's own limit
	maxCount = 65535   // tasks or CPUs of a host
	maxName  = 255     // bytes of a host's name
	maxMega  = 1 << 26 // MB of a host or CPU: so many CPUs times that is no overflow
)

// job is what the environment of a Slurm job tells.
type job struct {
	id    string
	hosts []allocator.Host
}

// readJob reads a job's environment. An error names the variable and what is in
// it.
func readJob(env func(string) string) (job, error) {
	j := job{id: env("SLURM_JOB_ID")}
	if _, err := strconv.ParseUint(j.id, 10, 32); err != nil {
		return job{}, variable("SLURM_JOB_ID", j.id, errors.New("it is not the number of a job"))
	}
	for _, name := range []string{"SLURM_HET_SIZE", "SLURM_PACK_SIZE"} {
		if size := env(name); size != "" && size != "1" {
			return job{}, variable(name, size, errors.New("a heterogeneous job is not supported: ask for one component, without \":\" in the options"))
		}
	}
	if n := env("SLURM_STEP_NUM_TASKS"); n != "" && n != "1" {
		return job{}, variable("SLURM_STEP_NUM_TASKS", n, errors.New("srun started the launcher as many times: start it once, without srun"))
	}
	list := env("SLURM_JOB_NODELIST")
	names, err := expand(list)
	if err != nil {
		return job{}, variable("SLURM_JOB_NODELIST", list, err)
	}
	n := len(names)
	slots, err := counts(env, "SLURM_TASKS_PER_NODE", n)
	if err != nil {
		return job{}, err
	}
	cpus, err := counts(env, "SLURM_JOB_CPUS_PER_NODE", n)
	if err != nil {
		return job{}, err
	}
	perNode, err := megabytes(env, "SLURM_MEM_PER_NODE")
	if err != nil {
		return job{}, err
	}
	perCPU, err := megabytes(env, "SLURM_MEM_PER_CPU")
	if err != nil {
		return job{}, err
	}
	for i, name := range names {
		h := allocator.Host{Name: name, Slots: slots[i], CPUs: cpus[i], Memory: perNode}
		if h.Memory == 0 {
			h.Memory = perCPU * int64(h.CPUs)
		}
		j.hosts = append(j.hosts, h)
	}
	return j, nil
}

func variable(name, value string, err error) error {
	const most = 200
	if len(value) > most {
		value = value[:most] + "..."
	}
	return fmt.Errorf("read Slurm's %s=%q: %w", name, value, err)
}

// counts reads a variable with a number for each of n hosts, as "2(x3),1"; it
// is all zeros if the variable is not there.
func counts(env func(string) string, name string, n int) ([]int, error) {
	value := env(name)
	if value == "" {
		return make([]int, n), nil
	}
	all, err := parseCounts(value)
	if err == nil && len(all) != n {
		err = fmt.Errorf("it is of %d hosts, and the job has %d", len(all), n)
	}
	if err != nil {
		return nil, variable(name, value, err)
	}
	return all, nil
}

// parseCounts expands "2(x3),1" to 2, 2, 2, 1.
func parseCounts(s string) ([]int, error) {
	var all []int
	for _, part := range strings.Split(s, ",") {
		times := 1
		if head, tail, ok := strings.Cut(part, "(x"); ok {
			tail, ok = strings.CutSuffix(tail, ")")
			n, err := number(tail, maxHosts)
			if !ok || err != nil || n == 0 {
				return nil, fmt.Errorf("%q is not a number and how often, as 2(x3)", part)
			}
			part, times = head, n
		}
		n, err := number(part, maxCount)
		if err != nil {
			return nil, err
		}
		if len(all)+times > maxHosts {
			return nil, fmt.Errorf("it is of more than %d hosts", maxHosts)
		}
		for range times {
			all = append(all, n)
		}
	}
	return all, nil
}

// megabytes reads an amount of memory, in bytes; 0 if it is not there, and if
// it is Slurm's 0, all that there is.
func megabytes(env func(string) string, name string) (int64, error) {
	value := env(name)
	if value == "" {
		return 0, nil
	}
	n, err := number(value, maxMega)
	if err != nil {
		return 0, variable(name, value, err)
	}
	return int64(n) << 20, nil
}

// number reads a decimal number, digits only.
func number(s string, most int) (int, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n > uint64(min(most, math.MaxInt)) {
		return 0, fmt.Errorf("%s is more than %d", s, most)
	}
	return int(n), nil
}
