package gridengine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
)

// Where TestCluster goes on, by the variable role: on the cluster's machine, in
// a job there, in a job of a parallel environment without control_slaves, and as
// a launcher in a job that is to be killed.
const (
	role        = "MPIRUN_SF_GRIDENGINE_TEST"
	isCluster   = "cluster"
	isJob       = "job"
	isNoControl = "no control"
	isLauncher  = "launcher"
)

// limit is for what takes seconds if nothing else runs.
const limit = 2 * time.Minute

// state is where the cluster's files are, in its own mount namespace.
const state = "/mnt"

// packages are unpacked where they are not installed: installing them would set
// up a mail server and start daemons.
var packages = []string{"gridengine-client", "gridengine-common", "gridengine-exec", "gridengine-master", "libjemalloc2"}

// TestCluster runs a real cluster of two hosts, sge_qmaster and sge_execd and
// all, on machines of their own as far as the kernel has that. When this test
// ends, in whatever way, so does all of it.
func TestCluster(t *testing.T) {
	switch os.Getenv(role) {
	case isCluster:
		inCluster(t)
		return
	case isJob:
		inJob(t)
		return
	case isNoControl:
		inJobWithoutControl(t)
		return
	case isLauncher:
		launch(t)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The first process has to be one that waits for orphans.
	cmd := exec.Command("/bin/sh", "-c", `"$@" & wait "$!"`, "sh", self, "-test.run=^TestCluster$", "-test.v", "-test.count=1", "-test.timeout=8m")
	cmd.Args = append(cmd.Args, short()...)
	cmd.Env = append(os.Environ(), role+"="+isCluster, "TMPDIR=/tmp", "UNPACKED="+unpack(t))
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

func short() []string {
	if testing.Short() {
		return []string{"-test.short"}
	}
	return nil
}

// unpack gets the packages, and returns the folder that they are in; empty if
// they are installed.
func unpack(t *testing.T) string {
	if _, err := os.Stat("/usr/lib/gridengine/sge_qmaster"); err == nil {
		return ""
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	download := func() ([]byte, error) {
		cmd := exec.Command("apt-get", append([]string{"-qq", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root", "download"}, packages...)...)
		cmd.Dir = dir
		return cmd.CombinedOutput()
	}
	out, err := download()
	if err != nil { // it may never have been told what there is
		if out, err := exec.Command("apt-get", "-qq", "update").CombinedOutput(); err != nil {
			t.Fatalf("this test needs the packages %v: %v: %s", packages, err, out)
		}
		out, err = download()
	}
	if err != nil {
		t.Fatalf("this test needs the packages %v: %v: %s", packages, err, out)
	}
	found, _ := filepath.Glob(dir + "/*.deb")
	for _, deb := range found {
		if out, err := exec.Command("dpkg", "--extract", deb, dir).CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v: %s", deb, err, out)
		}
	}
	return dir
}

// setup makes the cluster's two hosts and starts it. It runs as root of the
// namespaces, with the test binary copied to /mnt.
const setup = `
set -e
export SGE_ROOT=/mnt/root SGE_CELL=default SGE_QMASTER_PORT=6444 SGE_EXECD_PORT=6445 PATH=/usr/lib/gridengine:$PATH
share=/usr/share/gridengine
mkdir -p $SGE_ROOT/default/common $SGE_ROOT/bin $SGE_ROOT/lib $SGE_ROOT/utilbin spool/qmaster/job_scripts spool/execd spooldb tmp1 tmp2
chmod 1777 tmp1 tmp2
for dir in bin lib utilbin; do ln -s /usr/lib/gridengine $SGE_ROOT/$dir/lx-amd64; done
ln -s $share/util $SGE_ROOT/util
printf '127.0.0.1 localhost\n10.0.0.1 n1\n10.0.0.2 n2\n' >hosts
mount --bind hosts /etc/hosts
hostname n1
ip link set lo up
ip link add v1 type veth peer name v2
ip address add 10.0.0.1/24 dev v1
ip link set v1 up
mkfifo ready
unshare --net --uts --mount sh -c 'hostname n2; mount --bind /mnt/tmp2 /tmp; echo $$ >/mnt/ready; exec sleep infinity' &
read -r pid <ready
ip link set v2 netns $pid
n2="nsenter --net --uts --mount --target $pid"
$n2 ip link set lo up
$n2 ip address add 10.0.0.2/24 dev v2
$n2 ip link set v2 up
echo n1 >$SGE_ROOT/default/common/act_qmaster
sed 's,/var/spool/gridengine,/mnt/spool,; s,/mnt/spool/spooldb,/mnt/spooldb,; s,sgeadmin,root,; s,/usr/sbin,/usr/lib/gridengine,' \
	$share/default-bootstrap >$SGE_ROOT/default/common/bootstrap
sed 's,/var/spool/gridengine,/mnt/spool,; s,min_uid .*,min_uid 0,; s,min_gid .*,min_gid 0,; s,load_report_time .*,load_report_time 00:00:02,' \
	$share/default-configuration >configuration
spoolinit berkeleydb libspoolb /mnt/spooldb init
spooldefaults configuration configuration
spooldefaults complexes $share/util/resources/centry
spooldefaults usersets $share/util/resources/usersets
spooldefaults managers root
again() { for i in $(seq 300); do "$@" >said 2>&1 && return; sleep 0.2; done; echo "$* failed:"; cat said; exit 1; }
sge_qmaster
again qconf -sconf
again qconf -ah n2
again qconf -as n1
for pe in controlled uncontrolled; do
	control=TRUE
	[ $pe = controlled ] || control=FALSE
	printf '%s\n' "pe_name $pe" 'slots 100' 'user_lists NONE' 'xuser_lists NONE' 'start_proc_args NONE' 'stop_proc_args NONE' \
		'allocation_rule 10' "control_slaves $control" 'job_is_first_task FALSE' 'urgency_slots min' 'accounting_summary FALSE' 'qsort_args NONE' >pe
	qconf -Ap pe
done
qconf -ssconf | sed 's/^schedule_interval .*/schedule_interval 0:0:1/; s/^flush_submit_sec .*/flush_submit_sec 1/; s/^flush_finish_sec .*/flush_finish_sec 1/' >sconf
qconf -Msconf sconf
sge_execd
$n2 sge_execd
again sh -c 'test "$(qconf -sel | wc -l)" = 2'
printf 'group_name @hosts\nhostlist n1 n2\n' >group
qconf -Ahgrp group
qconf -sq | sed 's,^qname .*,qname all.q,; s,^hostlist .*,hostlist @hosts,; s,^pe_list .*,pe_list controlled uncontrolled,
	s,^slots .*,slots 20,; s,^load_thresholds .*,load_thresholds NONE,; s,^shell .*,shell /bin/sh,' >queue
qconf -Aq queue
for pe in controlled uncontrolled; do
	# -V is not given: a job has the environment of a login.
	role=job
	[ $pe = controlled ] || role="no control"
	timeout 400 qsub -b y -sync y -o /mnt/out.$pe -j y -l h_vmem=100G -pe $pe 20 \
		-v "$ROLE=$role,SGE_QMASTER_PORT=$SGE_QMASTER_PORT,SGE_EXECD_PORT=$SGE_EXECD_PORT" \
		/mnt/gridengine.test -test.run='^TestCluster$' -test.v -test.count=1 -test.timeout=6m $SHORT || failed=yes
	cat /mnt/out.$pe
done
[ -z "$failed" ]
`

func inCluster(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("proc", "/proc", "proc", 0, ""))
	if dir := os.Getenv("UNPACKED"); dir != "" {
		must(unix.Mount("overlay", "/usr", "overlay", 0, "lowerdir="+dir+"/usr:/usr"))
	}
	must(unix.Mount("tmpfs", state, "tmpfs", 0, "mode=0755"))
	self, err := os.ReadFile("/proc/self/exe")
	must(err)
	must(os.WriteFile(state+"/gridengine.test", self, 0o755))
	must(os.Chdir(state))
	must(unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777"))
	cmd := exec.Command("/bin/sh", "-c", setup)
	cmd.Env = append(os.Environ(), "ROLE="+role, "SHORT="+strings.Join(short(), " "))
	log, err := os.Create(state + "/log")
	must(err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	said, _ := os.ReadFile(state + "/log")
	t.Logf("%s", said)
	if err != nil || bytes.Count(said, []byte("\nPASS")) != 2 {
		messages, _ := filepath.Glob(state + "/spool/*/messages")
		more, _ := filepath.Glob(state + "/spool/execd/*/messages")
		for _, path := range slices.Concat(messages, more) {
			text, _ := os.ReadFile(path)
			t.Logf("%s:\n%s", path, text)
		}
		t.Errorf("the tests in the jobs failed: %v", err)
	}
	// The second host's, which sent programs had to go to.
	for _, pattern := range []string{"/tmp/mpirun-sf*", state + "/tmp2/mpirun-sf*", state + "/tmp2/*/mpirun-sf*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func detect(t *testing.T) *Allocation {
	t.Helper()
	a, found, err := Detect(os.Getenv)
	if !found || err != nil {
		t.Fatalf("in a job: %v, %v", found, err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// inJob is on the first host that the job got, whichever that is.
func inJob(t *testing.T) {
	a := detect(t)
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	hosts := a.Hosts()
	if len(hosts) != 2 || hosts[0].Name != name || a.Self() != name || a.ID() != os.Getenv("JOB_ID") {
		t.Errorf("hosts %+v, job %s, on %q", hosts, a.ID(), a.Self())
	}
	for _, h := range hosts {
		if h.Slots != 10 || h.CPUs != 10 || h.Memory != 1000<<30 {
			t.Errorf("it is %+v, want 10 slots of 100 GB", h)
		}
	}
	t.Run("conforms", func(t *testing.T) { allocatortest.Conform(t, a) })
	t.Run("conforms where the program is not", func(t *testing.T) {
		a := detect(t)
		slices.Reverse(a.List)
		allocatortest.Conform(t, a)
	})
	t.Run("killed launcher", killed)
}

// killed kills a launcher by SIGKILL, and expects its program to end. That the
// job lives on shows this test, which is in it.
func killed(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCluster$", "-test.count=1")
	cmd.Env = append(os.Environ(), role+"="+isLauncher)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, err = fmt.Fscanln(out, &pid)
	cmd.Process.Kill()
	cmd.Wait()
	if err != nil {
		t.Fatalf("the launcher did not tell the program's number: %v", err)
	}
	for deadline := time.Now().Add(limit); unix.Kill(pid, 0) == nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program still runs")
		}
	}
	time.Sleep(3 * time.Second) // in which a job that has lost a task is killed
}

// launch starts a program on the second host, prints its number and waits.
func launch(t *testing.T) {
	a := detect(t)
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho $$; exec cat\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := a.Start(t.Context(), a.Hosts()[1], path)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(os.Stdout, p)
}

func inJobWithoutControl(t *testing.T) {
	a := detect(t)
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := a.Start(t.Context(), a.Hosts()[1], path)
	var of *allocator.HostError
	if !errors.As(err, &of) || of.Host != a.Hosts()[1].Name || !strings.Contains(err.Error(), "control_slaves") {
		t.Errorf("%v does not tell of control_slaves", err)
	}
}
