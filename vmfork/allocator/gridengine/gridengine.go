package gridengine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/step"
)

// Allocation is a Grid Engine job.
type Allocation struct {
	step.Allocation
	id   string
	self string
}

var _ allocator.Allocation = (*Allocation)(nil)

// Detect finds the job that the launcher runs in, by its environment: false if
// there is none, or it has no parallel environment and so no host but this.
// There is one, but of no use, if there is an error.
func Detect(env func(string) string) (*Allocation, bool, error) {
	id, path := env("JOB_ID"), env("PE_HOSTFILE")
	if id == "" || path == "" {
		return nil, false, nil
	}
	if _, err := strconv.ParseUint(id, 10, 32); err != nil {
		return nil, true, fmt.Errorf("read Grid Engine's JOB_ID=%.100q: it is not the number of a job", id)
	}
	hosts, err := readHosts(path)
	if err != nil {
		return nil, true, err
	}
	qrsh, err := tool(env, "qrsh")
	if err != nil {
		return nil, true, fmt.Errorf("start daemons in Grid Engine's job %s: %w", id, err)
	}
	askMemory(env, hosts, id)
	a := &Allocation{id: id}
	a.List = hosts
	a.Command = func(h allocator.Host) *exec.Cmd { return inherit(qrsh, h.Name, os.Environ()) }
	a.Explain = explain
	if name, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(name, ".")
		for _, h := range hosts {
			if of, _, _ := strings.Cut(h.Name, "."); h.Name == name || of == short && a.self == "" {
				a.self = h.Name
			}
		}
	}
	return a, true, nil
}

// ID is the job's number.
func (a *Allocation) ID() string { return a.id }

// Self is the name of the host that this process runs on, or empty if it is
// none of the job's.
func (a *Allocation) Self() string { return a.self }

// tool finds one of Grid Engine's commands: on PATH, or where the job's
// environment says that they are, for a login shell may have set another PATH.
func tool(env func(string) string, name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, arch := range []string{env("SGE_ARCH"), env("ARC")} {
		if root := env("SGE_ROOT"); filepath.IsAbs(root) && arch != "" {
			if path, e := exec.LookPath(filepath.Join(root, "bin", arch, name)); e == nil {
				return path, nil
			}
		}
	}
	return "", err
}

// askLimit is for qmaster's answer.
const askLimit = 5 * time.Second

// askMemory asks how much memory the job has. Without an answer it stays
// unknown: then the host says what is free.
func askMemory(env func(string) string, hosts []allocator.Host, id string) {
	qstat, err := tool(env, "qstat")
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, qstat, "-j", id).Output()
	if err != nil {
		return
	}
	perSlot := parseMemory(string(out))
	for i := range hosts {
		hosts[i].Memory = perSlot * int64(hosts[i].Slots)
	}
}

// inherit is the command for a task on one host.
func inherit(qrsh, host string, environ []string) *exec.Cmd {
	cmd := exec.Command(qrsh, "-inherit", host, step.ShellLine())
	// It would run something else around the command.
	cmd.Env = slices.DeleteFunc(slices.Clone(environ), func(entry string) bool { return strings.HasPrefix(entry, "QRSH_WRAPPER=") })
	return cmd
}

// explain makes an error of how qrsh ended.
func explain(exit *allocator.ExitError) error {
	said := strings.ReplaceAll(exit.Stderr, "\n", "; ")
	switch {
	case strings.Contains(said, "didn't accept task"):
		return fmt.Errorf("no task of this job is accepted there by Grid Engine: its parallel environment needs control_slaves TRUE (qconf -mp), "+
			"and a slot of this host has to be free for each daemon: %w", exit)
	case strings.Contains(said, "can't resolve host name"):
		return fmt.Errorf("this host is unknown to Grid Engine: %w", exit)
	case strings.Contains(said, "commlib error"), strings.Contains(said, "unable to send message to"):
		return fmt.Errorf("%w: qrsh: %s", allocator.ErrLost, said)
	}
	return exit
}
