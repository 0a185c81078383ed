package slurm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/step"
)

// kept are those of Slurm's variables that say where the cluster is and who
// asks. Any other changes what a command does, or tells what its arguments do.
var kept = []string{"SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}

// commandEnvironment is what srun and salloc get of an environment.
func commandEnvironment(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return strings.HasPrefix(name, "SRUN_") || strings.HasPrefix(name, "SLURM_") && !slices.Contains(kept, name)
	})
}

// srun is the command for a step on one host.
func srun(id, host string, environ []string) *exec.Cmd {
	cmd := exec.Command("srun", append([]string{
		"--jobid=" + id,
		"--job-name=mpirun-sf",
		"--nodes=1",
		"--ntasks=1",
		"--nodelist=" + host,
		"--overlap",
		"--mem=0",
		"--cpu-bind=none",
		"--mpi=none",
		"--unbuffered",
		"--quiet",
		"--chdir=/",
		"--export=PATH,HOME,USER,LOGNAME,LANG,TMPDIR",
	}, step.Shell()...)...)
	cmd.Env = commandEnvironment(environ)
	return cmd
}

var (
	// noise is what srun says besides of what the program did.
	noise = regexp.MustCompile(`(?m)^srun: (error: [^ ]+: task 0: .*|cluster configuration lacks support for cpu binding)(\n|$)`)
	// lost says that the step did not end by itself.
	lost = regexp.MustCompile(`CANCELLED AT|DUE TO (TIME LIMIT|NODE FAILURE|PREEMPTION)|Node failure on|has been revoked|has expired|` +
		`already completing or completed|Invalid job id specified|Job step aborted|step has been terminated|Socket timed out|Force Terminated`)
)

// runs is whether Slurm still has that job run, as far as it answers.
func runs(id string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "squeue", "--noheader", "--jobs="+id, "--format=%T")
	cmd.Env = commandEnvironment(os.Environ())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return !strings.Contains(string(out), "Invalid job id")
	}
	state := strings.TrimSpace(string(out))
	return state == "RUNNING" || state == "SUSPENDED"
}

// explain makes an error of how srun ended, for a step of that job.
func explain(id string, exit *allocator.ExitError) error {
	plain := *exit
	plain.Stderr = strings.TrimSpace(noise.ReplaceAllString(exit.Stderr, ""))
	said := strings.ReplaceAll(plain.Stderr, "\n", "; ")
	switch {
	case strings.Contains(plain.Stderr, "unrecognized option"):
		return fmt.Errorf("this srun is too old, 20.11 or later is needed: %w", &plain)
	case lost.MatchString(plain.Stderr):
		return fmt.Errorf("its step was ended by Slurm: %w: %s", allocator.ErrLost, said)
	// What ends a job ends its programs by signals, and srun may say nothing.
	case (exit.Status > 128 || exit.Signal != "") && !runs(id):
		return fmt.Errorf("job %s of Slurm has ended: %w", id, allocator.ErrLost)
	}
	return &plain
}
