package slurm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
)

// What this test binary is when it is started again, by this variable.
const (
	role       = "MPIRUN_SF_SLURM_TEST"
	isCluster  = "cluster" // the machine of a cluster: TestCluster goes on in it
	isDetector = "detect"  // a program in a job, which prints what it detects
	isLauncher = "launch"  // a launcher that is to be killed: it starts program and waits
)

// limit is for what takes a second if nothing else runs.
const limit = 2 * time.Minute

// state is where the cluster's files are, in its own mount namespace.
const state = "/mnt"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case isDetector:
		a, found, err := Detect(os.Getenv)
		d := detected{Found: found}
		if err != nil {
			d.Error = err.Error()
		} else if found {
			d.ID, d.Self, d.Hosts = a.ID(), a.Self(), a.Hosts()
		}
		json.NewEncoder(os.Stdout).Encode(d)
		os.Exit(0)
	case isLauncher:
		launch()
		os.Exit(1)
	}
	os.Exit(m.Run())
}

type detected struct {
	Found    bool
	Error    string
	ID, Self string
	Hosts    []allocator.Host
}

// TestCluster runs a real cluster of two nodes, slurmctld and slurmd and all,
// on a machine of its own as far as the kernel has that: process, mount, network
// and UTS namespaces. When this test ends, in whatever way, so does all of it.
func TestCluster(t *testing.T) {
	if os.Getenv(role) == isCluster {
		inCluster(t)
		return
	}
	for _, tool := range []string{"slurmctld", "slurmd", "munged", "salloc", "srun", "sbatch", "scancel", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("this test needs %s: apt install slurmctld slurmd slurm-client munge util-linux", tool)
		}
	}
	args := []string{"-test.run=^TestCluster$", "-test.v", "-test.count=1", "-test.timeout=4m"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The first process has to be one that waits for orphans: Slurm takes a
	// step for alive while there is so much as a zombie of it.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `"$@" & wait "$!"`, "sh", self}, args...)...)
	cmd.Env = append(commandEnvironment(os.Environ()), role+"="+isCluster, "TMPDIR=/tmp", "SLURM_CONF="+state+"/slurm.conf")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// The kernel kills it when the thread ends that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	t.Logf("in the cluster:\n%s", out.Bytes())
	if err != nil || bytes.Contains(out.Bytes(), []byte("no tests to run")) {
		t.Errorf("the tests in the cluster failed: %v", err)
	}
}

// configuration has two nodes that share this machine, and more CPUs than it may
// have. Its jobs get memory by their CPUs.
const configuration = `
ClusterName=test
SlurmctldHost=n1(10.0.0.1)
AuthType=auth/munge
AuthInfo=socket=/mnt/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/mnt/state
SlurmdSpoolDir=/mnt/spool.%n
SlurmctldPidFile=/mnt/slurmctld.pid
SlurmdPidFile=/mnt/slurmd.%n.pid
SlurmctldLogFile=/mnt/slurmctld.log
SlurmdLogFile=/mnt/slurmd.%n.log
SlurmctldPort=6817
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
InactiveLimit=0
KillWait=2
NodeName=n[1-2] NodeHostname=n1 NodeAddr=10.0.0.1 Port=[7001-7002] CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`

// cluster is what runs in the namespaces, and the test binary where every
// process of it can see it.
type cluster struct {
	binary string
}

func inCluster(t *testing.T) {
	c := newCluster(t)
	t.Run("conforms", func(t *testing.T) { allocatortest.Conform(t, c.allocate(t, 2, "-N2")) })
	t.Run("conforms where the program is not", c.conformsElsewhere)
	t.Run("detects salloc", c.detectsSalloc)
	t.Run("detects sbatch", c.detectsSbatch)
	t.Run("refuses a heterogeneous job", c.refusesHeterogeneous)
	t.Run("gives the allocation back", c.givesBack)
	t.Run("withdraws its request", c.withdraws)
	t.Run("gives up with salloc's own words", c.refused)
	t.Run("lost with the job", c.lost)
	t.Run("killed launcher", c.killed)
	t.Run("killed launcher and salloc", c.killedWithSalloc)
	t.Run("killed launcher that waits", c.killedWaiting)
	c.clean(t)
}

func newCluster(t *testing.T) *cluster {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("proc", "/proc", "proc", 0, ""))
	must(unix.Mount("tmpfs", state, "tmpfs", 0, "mode=0755"))
	c := &cluster{binary: state + "/slurm.test"}
	self, err := os.ReadFile("/proc/self/exe")
	must(err)
	must(os.WriteFile(c.binary, self, 0o755))
	must(unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777"))
	must(os.Chdir("/"))
	must(unix.Sethostname([]byte("n1")))
	must(os.WriteFile(state+"/hosts", []byte("127.0.0.1 localhost\n10.0.0.1 n1 n2\n"), 0o644))
	must(unix.Mount(state+"/hosts", "/etc/hosts", "", unix.MS_BIND, ""))
	// Slurm finds no address by any name where there is loopback alone.
	for _, args := range []string{"link set lo up", "link add network type bridge", "address add 10.0.0.1/24 dev network", "link set network up"} {
		must(exec.Command("ip", strings.Fields(args)...).Run())
	}
	for _, dir := range []string{"state", "spool.n1", "spool.n2", "tmp2"} {
		must(os.Mkdir(filepath.Join(state, dir), 0o755))
	}
	key := make([]byte, 128)
	rand.Read(key)
	must(os.WriteFile(state+"/munge.key", key, 0o600))
	must(os.WriteFile(state+"/slurm.conf", []byte(configuration), 0o644))
	c.daemon(t, "munged", "--foreground", "--force", "--key-file="+state+"/munge.key", "--socket="+state+"/munge.socket",
		"--pid-file="+state+"/munged.pid", "--log-file="+state+"/munged.log", "--seed-file="+state+"/munged.seed")
	c.until(t, "munged", func() error { return exec.Command("munge", "--no-input", "--socket="+state+"/munge.socket").Run() })
	c.daemon(t, "slurmctld", "-D")
	c.daemon(t, "slurmd", "-D", "-N", "n1")
	// The second has another /tmp, where no program is that is not sent.
	c.daemon(t, "unshare", "--mount", "sh", "-c", "mount --bind "+state+"/tmp2 /tmp && exec slurmd -D -N n2")
	c.until(t, "two idle nodes", func() error {
		out, err := exec.Command("sinfo", "--noheader", "--format=%t %D").CombinedOutput()
		if err == nil && strings.TrimSpace(string(out)) != "idle 2" {
			err = errors.New("not yet")
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return c
}

// daemon starts one, which ends with the namespace.
func (c *cluster) daemon(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.Create(filepath.Join(state, strings.ReplaceAll(name+args[len(args)-1], "/", "_")+".out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.Close()
	go cmd.Wait()
	t.Cleanup(func() {
		if out, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("%s %v printed:\n%s", name, args, out)
		}
	})
}

// until waits for something to be so.
func (c *cluster) until(t *testing.T, what string, check func() error) {
	t.Helper()
	err := check()
	for deadline := time.Now().Add(limit); err != nil; err = check() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// jobs are those that Slurm has, with their states.
func jobs() (string, error) {
	out, err := exec.Command("squeue", "--noheader", "--format=%i %t").CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (c *cluster) noJobs(t *testing.T) {
	t.Helper()
	c.until(t, "the end of all jobs", func() error {
		if left, err := jobs(); err != nil || left != "" {
			return fmt.Errorf("jobs %q, %v", left, err)
		}
		return nil
	})
}

// allocate gets an allocation, which the test gives back.
func (c *cluster) allocate(t *testing.T, ranks int, options ...string) *Allocation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	a, err := Allocate(ctx, Request{Ranks: ranks, Options: options, Progress: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		c.noJobs(t)
	})
	return a
}

func (c *cluster) conformsElsewhere(t *testing.T) {
	a := c.allocate(t, 1, "-w", "n2")
	if hosts := a.Hosts(); len(hosts) != 1 || hosts[0].Name != "n2" {
		t.Fatalf("the hosts are %v", hosts)
	}
	allocatortest.Conform(t, a)
}

var hostsOfTwo = []allocator.Host{
	{Name: "n1", Slots: 2, CPUs: 2, Memory: 200 << 20},
	{Name: "n2", Slots: 1, CPUs: 1, Memory: 100 << 20},
}

func (c *cluster) checkDetected(t *testing.T, out []byte, self string) {
	t.Helper()
	var got detected
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("it printed %q: %v", out, err)
	}
	want := detected{Found: true, ID: got.ID, Self: self, Hosts: hostsOfTwo}
	if got.ID == "" || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func (c *cluster) detectsSalloc(t *testing.T) {
	cmd := exec.Command("salloc", "-N2", "-n3", c.binary)
	cmd.Env = append(os.Environ(), role+"="+isDetector)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	c.checkDetected(t, out, "n1") // by the machine's name
}

func (c *cluster) detectsSbatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	cmd := exec.Command("sbatch", "--wait", "-N2", "-n3", "--output="+path, "--wrap="+role+"="+isDetector+" "+c.binary)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c.checkDetected(t, out, "n1") // by Slurm's name
}

func (c *cluster) refusesHeterogeneous(t *testing.T) {
	cmd := exec.Command("salloc", "-n1", ":", "-n1", c.binary)
	cmd.Env = append(os.Environ(), role+"="+isDetector)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("SLURM_HET_SIZE")) || !bytes.Contains(out, []byte("heterogeneous")) {
		t.Errorf("it detected %s", out)
	}
	c.noJobs(t)
}

func (c *cluster) givesBack(t *testing.T) {
	a := c.allocate(t, 3, "-N2")
	if hosts := a.Hosts(); !reflect.DeepEqual(hosts, hostsOfTwo) {
		t.Errorf("the hosts are %+v, want %+v", hosts, hostsOfTwo)
	}
	if got, err := jobs(); got != a.ID()+" R" {
		t.Errorf("the jobs are %q, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	c.noJobs(t)
	if err := a.Close(); err != nil {
		t.Errorf("closing it again: %v", err)
	}
}

func (c *cluster) withdraws(t *testing.T) {
	c.allocate(t, 2, "-N2", "--exclusive")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, context.DeadlineExceeded)
	defer cancel()
	var lines []string
	_, err := Allocate(ctx, Request{Ranks: 1, Progress: func(line string) { lines = append(lines, line) }})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 ranks") {
		t.Errorf("%v is not that it waited for too long", err)
	}
	if said := strings.Join(lines, "\n"); !strings.Contains(said, "queued and waiting for resources") {
		t.Errorf("while it waited it told %q", said)
	}
	c.until(t, "the end of the request", func() error {
		if got, err := jobs(); err != nil || strings.Contains(got, "\n") {
			return fmt.Errorf("jobs %q, %v", got, err)
		}
		return nil
	})
}

func (c *cluster) refused(t *testing.T) {
	for _, test := range []struct{ option, want string }{
		{"--partition=none", "invalid partition"},
		{"--no-such-option", "unrecognized option"},
		{"debug", "debug"},
		{"--version", "without an allocation"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, err := Allocate(ctx, Request{Ranks: 1, Options: []string{test.option}})
		cancel()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v does not say %q", test.option, err, test.want)
		}
	}
	c.noJobs(t)
}

// program makes one that waits for the end of its input, or for nothing.
func (c *cluster) program(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *cluster) lost(t *testing.T) {
	a := c.allocate(t, 2, "-N2")
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	path := c.program(t, "cat")
	p, err := a.Start(ctx, a.Hosts()[1], path)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("scancel", a.ID()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := p.Wait(); !errors.Is(err, allocator.ErrLost) || !strings.HasPrefix(err.Error(), "n2: ") {
		t.Errorf("%v is not that n2 was lost", err)
	} else {
		t.Log(err)
	}
	c.noJobs(t)
	if _, err = a.Start(ctx, a.Hosts()[0], path); !errors.Is(err, allocator.ErrLost) {
		t.Errorf("%v is not that the job is over", err)
	}
}

// launch is a launcher that is to be killed: it prints what it has, and waits.
func launch() {
	a, err := Allocate(context.Background(), Request{Ranks: 2, Options: []string{"-N2"}, Progress: func(line string) { fmt.Println(line) }})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, h := range a.Hosts() {
		p, err := a.Start(context.Background(), h, os.Args[1])
		if err != nil {
			fmt.Println(err)
			return
		}
		go io.Copy(os.Stdout, p)
	}
	select {}
}

// launcher starts one, and returns when it has printed so many lines with that
// in them.
func (c *cluster) launcher(t *testing.T, program, what string, n int) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(c.binary, program)
	cmd.Env = append(os.Environ(), role+"="+isLauncher)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	c.until(t, what, func() error {
		if b, err := os.ReadFile(path); err != nil || bytes.Count(b, []byte(what)) < n {
			return fmt.Errorf("it printed %q, %v", b, err)
		}
		return nil
	})
	return cmd
}

func (c *cluster) killed(t *testing.T) {
	cmd := c.launcher(t, c.program(t, "echo runs; exec cat"), "runs", 2)
	if got, err := jobs(); !strings.HasSuffix(got, " R") {
		t.Errorf("the jobs are %q, %v", got, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	c.noJobs(t)
}

// killedWithSalloc leaves the holder alone to give the allocation back.
func (c *cluster) killedWithSalloc(t *testing.T) {
	cmd := c.launcher(t, c.program(t, "echo runs; exec cat"), "runs", 2)
	if out, err := exec.Command("pkill", "-KILL", "-x", "salloc").CombinedOutput(); err != nil { // in this namespace
		t.Fatalf("%v: %s", err, out)
	}
	cmd.Process.Kill()
	cmd.Wait()
	c.noJobs(t)
}

func (c *cluster) killedWaiting(t *testing.T) {
	c.allocate(t, 2, "-N2", "--exclusive")
	cmd := c.launcher(t, "/bin/true", "queued and waiting", 1)
	cmd.Process.Kill()
	cmd.Wait()
	c.until(t, "the end of the request", func() error {
		if got, err := jobs(); err != nil || strings.Contains(got, "\n") {
			return fmt.Errorf("jobs %q, %v", got, err)
		}
		return nil
	})
}

// clean checks that nothing is left of what ran on the nodes.
func (c *cluster) clean(t *testing.T) {
	c.noJobs(t)
	for _, dir := range []string{"/tmp", state + "/tmp2"} {
		if left, err := filepath.Glob(dir + "/mpirun-sf*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	c.until(t, "the end of all steps", func() error {
		if out, err := exec.Command("pgrep", "-a", "slurmstepd|srun|salloc").Output(); err == nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
