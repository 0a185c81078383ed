package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

const (
	hydraHosts = 4
	hydraRanks = 2 // on each
	// hydraStart is how long the machines may take to be there, without KVM too.
	hydraStart = 5 * time.Minute
)

// hydra measures a launch without clones beside one by MPICH's launcher, on the same machines and with the same MPICH: on
// virtual machines that are there already, and on hosts that are namespaces of this machine.
func (b *bench) hydra(ctx context.Context) error {
	build, err := b.nemesis(ctx)
	if err != nil {
		return err
	}
	dir, err := b.compile(ctx, build.Compiler(), "hydra", "hello")
	if err != nil {
		return err
	}
	plan := launchPlan{
		Hosts: hydraHosts, Ranks: hydraRanks, Rounds: b.rounds, Hello: filepath.Join(dir, "hello"),
		Hydra: build.Hydra(), Proxy: filepath.Join(filepath.Dir(build.Hydra()), "hydra_pmi_proxy"),
	}
	took, err := b.onHosts(ctx, plan)
	if err != nil {
		return err
	}
	b.recordLaunch("_on_hosts", "hosts that are namespaces of this machine", took)
	if took, err = b.onMachines(ctx, plan); err != nil {
		return err
	}
	b.recordLaunch("", "warm virtual machines", took)
	return nil
}

// onHosts launches on hosts of a test cluster, from another one.
func (b *bench) onHosts(ctx context.Context, plan launchPlan) (took launchTimes, err error) {
	c, err := testcluster.New(ctx, testcluster.Options{Hosts: 1 + plan.Hosts})
	if err != nil {
		return took, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var names []string
	for _, h := range c.Hosts() {
		if err := h.SSHD(ctx); err != nil {
			return took, err
		}
		if h != c.Host(0) {
			names = append(names, h.Name)
		}
	}
	return plan.launch(ctx, b.Binary, names, func(ctx context.Context, argv ...string) *exec.Cmd {
		h := c.Host(0)
		cmd := h.Command(ctx, argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = filepath.Dir(plan.Hello), h.Environ()
		return cmd
	})
}

// onMachines launches on virtual machines that are idle and warm. They are clones of one from which both launchers log in to
// them. This program runs there, too, and measures (warm.go).
func (b *bench) onMachines(ctx context.Context, plan launchPlan) (took launchTimes, err error) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return took, fmt.Errorf("read this program: %w", err)
	}
	program := filepath.Join(filepath.Dir(plan.Hello), "bench-mpi")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		return took, err
	}
	// All programs are on the machines' own disks, and so in their memory.
	with := append([]string{program, plan.Hello, plan.Hydra, plan.Proxy}, existing(opensshFiles...)...)
	for _, p := range []struct {
		program, pkg string
		found        *string
	}{{"sshd", "openssh-server", &plan.SSHD}, {"ssh", "openssh-client", nil}} {
		path, err := findProgram(p.program)
		if err != nil {
			return took, fmt.Errorf("%w: apt install %s", err, p.pkg)
		}
		if p.found != nil {
			*p.found = path
		}
		with = append(with, path)
	}
	argv := []string{"vm", "run", "-q", "--name", fmt.Sprintf("bench-%d", os.Getpid()), "--memory", "512M", "--cpus", "1", "--start-timeout", hydraStart.String()}
	for _, path := range with {
		argv = append(argv, "--with", path)
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return took, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 2*hydraStart+time.Duration(2*(plan.Rounds+1))*limit, errors.New("the virtual machine in which hydra is measured did not come to its end"))
	defer cancel()
	cmd := exec.CommandContext(ctx, b.Binary, append(argv, "--", program, warmArgument, string(text))...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(unix.SIGTERM) }, limit
	// The working directory is shared with the machines.
	if cmd.Dir, err = os.MkdirTemp(b.Tmp, "shared-"); err != nil {
		return took, err
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return took, fmt.Errorf("measure hydra in a virtual machine: %w", err)
	}
	if err := json.Unmarshal(out.Bytes(), &took); err != nil || len(took.Ours) != plan.Rounds || len(took.Hydra) != plan.Rounds {
		return took, fmt.Errorf("measure hydra in a virtual machine: it answered %q", out.String())
	}
	return took, nil
}

// opensshFiles are what newer servers of OpenSSH run besides sshd.
var opensshFiles = []string{"/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth"}

// existing are those files that there are.
func existing(paths ...string) (found []string) {
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// findProgram finds one that may be in a folder for root only.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		for _, p := range existing("/usr/sbin/"+name, "/sbin/"+name) {
			return p, nil
		}
	}
	return path, err
}
