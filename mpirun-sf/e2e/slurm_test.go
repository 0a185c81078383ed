package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// slurmConfiguration is of two nodes, host1 and host2; the controller is on host0.
const slurmConfiguration = `
ClusterName=test
SlurmctldHost=host0(%[2]s)
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=%[1]s
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=%[1]s/slurmctld.log
SlurmdLogFile=%[1]s/slurmd.%%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=host1 NodeAddr=%[3]s CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=host2 NodeAddr=%[4]s CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`

// withSlurm starts a real Slurm on a farm, whose configuration is the result.
func withSlurm(t *testing.T, f *farm) (configuration string) {
	t.Helper()
	for _, tool := range []string{"slurmctld", "slurmd", "salloc", "munged"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("this test needs Slurm: apt install slurmctld slurmd slurm-client munge (%v)", err)
		}
	}
	dir := t.TempDir()
	configuration = filepath.Join(dir, "slurm.conf")
	text := fmt.Sprintf(slurmConfiguration, dir, f.Host(0).Address, f.Host(1).Address, f.Host(2).Address)
	key := make([]byte, 128)
	rand.Read(key)
	for path, content := range map[string][]byte{configuration: []byte(text), filepath.Join(dir, "key"): key} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// All of them end with their host.
	for n, daemon := range []string{"exec slurmctld -D", "mkdir -p /run/slurmd && exec slurmd -D -N host1", "mkdir -p /run/slurmd && exec slurmd -D -N host2"} {
		script := fmt.Sprintf(`cp %s/key /run/munge.key && munged --force --key-file=/run/munge.key --socket=/run/munge.socket \
			--pid-file=/run/munged.pid --log-file=/run/munged.log --seed-file=/run/munged.seed && `, dir) + daemon
		cmd := f.Host(n).Command(context.Background(), "sh", "-c", script)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SLURM_CONF=" + configuration} // without the mark of what a job leaves
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	idle := func() bool {
		cmd := f.Host(0).Command(t.Context(), "sinfo", "-h", "-o", "%D %t")
		cmd.Env = append(f.Host(0).Environ(), "SLURM_CONF="+configuration)
		out, _ := cmd.Output()
		return strings.TrimSpace(string(out)) == "2 idle"
	}
	for end := time.Now().Add(time.Minute); !idle(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "slurmctld.log"))
			t.Fatalf("after a minute Slurm's nodes are not idle; its controller says:\n%s", log)
		}
	}
	return configuration
}

// TestSlurm runs jobs under a real Slurm: in an allocation, in a batch job, and
// with one that the launcher asks for.
func TestSlurm(t *testing.T) {
	f, err := newFarm(t.TempDir(), farmSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	configuration := withSlurm(t, f)
	h := f.Host(0)
	start := func(t *testing.T, name string, args ...string) *running {
		t.Helper()
		return command{
			enter: h.Command(context.Background(), name, args...), args: args, dir: t.TempDir(),
			env: slices.Concat(f.folders(0), []string{"HOME=" + h.Home, "SLURM_CONF=" + configuration}),
		}.start(t)
	}
	// Two hosts carry the ranks' clones, and one of them has an odd one more.
	spread := func(t *testing.T, output string) {
		t.Helper()
		for rank := range 3 {
			if want := fmt.Sprintf("rank %d of 3 on clone-%d", rank, rank+1); !strings.Contains(output, want) {
				t.Errorf("the output has no %q:\n%s", want, output)
			}
		}
	}
	t.Run("in an allocation", func(t *testing.T) {
		r := start(t, "salloc", "-Q", "-N2", "-n3", launcher, "-v", "-np", "3", example("hello")).wait().succeeds(t)
		spread(t, r.stdout)
		for _, host := range []string{"host1", "host2"} {
			if !strings.Contains(r.stderr, host+": ") {
				t.Errorf("nothing is said of %s:\n%s", host, r.stderr)
			}
		}
	})
	t.Run("in a batch job", func(t *testing.T) {
		dir := t.TempDir()
		out, script := filepath.Join(dir, "out"), filepath.Join(dir, "job.sh")
		text := fmt.Sprintf("#!/bin/sh\ncd %s\nexec %s -np 3 %s\n", dir, launcher, example("hello"))
		if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		r := start(t, "sbatch", "-W", "-N2", "-n3", "-o", out, script).wait()
		printed, _ := os.ReadFile(out)
		if r.status != 0 {
			t.Fatalf("the batch job ended with status %d:\n%s%s", r.status, r.stderr, printed)
		}
		spread(t, string(printed))
	})
	t.Run("that the launcher asks for", func(t *testing.T) {
		r := start(t, launcher, "-q", "--slurm", "--slurm-options", "-N2", "-np", "3", example("hello")).wait().succeeds(t)
		spread(t, r.stdout)
	})
	t.Run("without clones", func(t *testing.T) {
		for _, argv := range [][]string{{launcher, "-q", "--no-clone", "-np", "3"}, {mpiexec(t).program, "--no-clone", "-n", "3"}} {
			r := start(t, "salloc", slices.Concat([]string{"-Q", "-N2", "-n3"}, argv, []string{example("hello")})...).wait().succeeds(t)
			for rank, host := range []string{"host1", "host1", "host2"} {
				if want := fmt.Sprintf("rank %d of 3 on %s", rank, host); !strings.Contains(r.stdout, want) {
					t.Errorf("%s: the output has no %q:\n%s", argv[0], want, r.stdout)
				}
			}
		}
	})
	t.Run("with too few slots", func(t *testing.T) {
		start(t, "salloc", "-Q", "-N2", "-n2", launcher, "-np", "3", example("hello")).wait().fails(t, 1, "2 hosts with 2 slots", "-np 3", "--oversubscribe")
	})
}
