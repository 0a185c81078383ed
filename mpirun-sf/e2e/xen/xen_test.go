package xen

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// envAll names the variable by which tests take their time.
const envAll = "MPIRUN_SF_TEST_ALL"

// envProduct names the variable with the folder of the launcher and the examples.
const envProduct = "MPIRUN_SF_XEN_PRODUCT"

// Limits, for a processor that is emulated.
const (
	runLimit  = 8 * time.Minute
	goneLimit = time.Minute
)

// memory is what a clone has: as little as the guest boots in.
const memory = "192M"

// product is the folder. Without one the test is skipped.
func product(t *testing.T) string {
	t.Helper()
	dir := os.Getenv(envProduct)
	if dir == "" {
		t.Skipf("%s names no folder with the launcher and the examples: make test-xen", envProduct)
	}
	return dir
}

// Kinds of guests, as the launcher calls them.
const (
	pvh = "xen"
	pv  = "xen-pv"
)

// command is the launcher on an example, in guests of a kind.
func command(ctx context.Context, t *testing.T, on, ranks, example string, args ...string) *exec.Cmd {
	t.Helper()
	dir := product(t)
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "mpirun-sf"),
		append([]string{"--hypervisor", on, "--memory", memory, "-np", ranks, filepath.Join(dir, example)}, args...)...)
	cmd.Dir = t.TempDir()
	return cmd
}

type result struct {
	stdout, stderr string
	status         int
}

// run runs an example on clones of a kind.
func run(t *testing.T, on, ranks, example string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := command(ctx, t, on, ranks, example, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin := time.Now()
	err := cmd.Run()
	t.Logf("%s on %s clones of %s took %v:\n%s%s", example, ranks, on, time.Since(begin).Round(time.Millisecond), &stdout, &stderr)
	r := result{stdout.String(), stderr.String(), 0}
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		r.status = ended.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return r
}

// domains are those that Xen has.
func domains(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("xl", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")[1:]
}

// makesPVH says whether this Xen makes PVH guests, which need virtualization by the processor.
func makesPVH(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command("xl", "info").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "xen_caps") {
			return strings.Contains(line, "hvm-")
		}
	}
	t.Fatalf("xl info does not say what guests Xen makes:\n%s", out)
	return false
}

// needsPVH skips a test of PVH guests where there are none.
func needsPVH(t *testing.T) {
	t.Helper()
	product(t)
	if !makesPVH(t) {
		t.Skip("Xen makes no PVH guests here (xl info): the processor has no virtualization")
	}
}

// devices are what there is in XenStore of domains' devices that are not the toolstack's.
func devices(t *testing.T) (all []string) {
	t.Helper()
	out, err := exec.Command("xenstore-ls", "-f", "/local/domain/0/backend").Output()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended { // there need not be any
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		path, _, _ := strings.Cut(line, " ")
		if strings.Count(path, "/") > 5 && strings.Contains(path, "/mpirun-sf-") {
			all = append(all, path)
		}
	}
	return all
}

// nothingLeft waits until there is no domain but this one, and nothing of others' devices.
func nothingLeft(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(goneLimit); ; time.Sleep(time.Second) {
		left, of := domains(t), devices(t)
		if len(left) == 1 && len(of) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v later there are left: %q, and of devices %q", goneLimit, left, of)
		}
	}
}

// hello runs ranks that say who they are, and checks that all have.
func hello(t *testing.T, on string, ranks int) result {
	t.Helper()
	r := run(t, on, strconv.Itoa(ranks), "hello")
	if r.status != 0 {
		t.Errorf("it ended with status %d", r.status)
	}
	for rank := range ranks {
		if want := fmt.Sprintf("hello from rank %d of %d on clone-%d: sum %d,", rank, ranks, rank+1, ranks*(ranks-1)/2); !strings.Contains(r.stdout, want) {
			t.Errorf("%q is not in what the ranks said", want)
		}
	}
	nothingLeft(t)
	return r
}

// booted says whether TestRanks has run, and so whether there is a checkpoint.
var booted bool

// TestRanks: ranks run in clones; and, for whoever takes the time, others of the checkpoint that the first have made, of which one
// fails: its status is the job's.
func TestRanks(t *testing.T) {
	needsPVH(t)
	if r := hello(t, pvh, 2); !strings.Contains(r.stderr, "booted") {
		t.Error("no guest was booted")
	}
	booted = true
	if os.Getenv(envAll) == "" {
		return
	}
	r := run(t, pvh, "3", "exit3")
	if r.status != 3 {
		t.Errorf("it ended with status %d, want 3", r.status)
	}
	for rank, status := range []int{0, 0, 3} {
		if want := fmt.Sprintf("rank %d of 3 exits %d\n", rank, status); !strings.Contains(r.stdout, want) {
			t.Errorf("%q is not in what the ranks said", want)
		}
	}
	if strings.Contains(r.stderr, "booted") {
		t.Error("a guest was booted a second time")
	}
	nothingLeft(t)
}

// TestRanksPV: ranks run in clones of a PV guest, which is booted from the same image and has a checkpoint of its own.
func TestRanksPV(t *testing.T) {
	if r := hello(t, pv, 2); !strings.Contains(r.stderr, "booted") {
		t.Error("no guest was booted: it ran on a checkpoint of a PVH one's")
	}
}

// TestPVOnly: where Xen makes no PVH guests, they are refused with what to do instead, and nobody has to ask for PV guests.
func TestPVOnly(t *testing.T) {
	dir := product(t)
	if makesPVH(t) {
		t.Skip("Xen makes PVH guests here (xl info); make test-xen ARGS='-pv-only -v ./mpirun-sf/e2e/xen' has a processor without virtualization")
	}
	if r := run(t, pvh, "2", "hello"); r.status == 0 || !strings.Contains(r.stderr, "choose "+pv) {
		t.Errorf("PVH guests: it ended with status %d", r.status)
	}
	said, err := exec.Command(filepath.Join(dir, "mpirun-sf"), "doctor", "--hypervisor", pvh).Output()
	if err == nil || !strings.Contains(string(said), "choose "+pv) {
		t.Errorf("the doctor finds nothing missing for PVH guests (%v):\n%s", err, said)
	}
	said, _ = exec.Command(filepath.Join(dir, "mpirun-sf"), "doctor").Output() // it may miss what is not Xen's
	if !strings.Contains(string(said), "ok       Xen ") {
		t.Errorf("the doctor, not told of a hypervisor, says\n%s", said)
	}
	hello(t, "auto", 2)
}

// TestKilled: when the launcher is killed while its ranks run, their domains end, too. They are of the checkpoint that TestRanks has made, and
// one more.
func TestKilled(t *testing.T) {
	needsPVH(t)
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := command(ctx, t, pvh, "3", "sleep", "1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &stderr, goneLimit
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Errorf("the ranks were not heard: %v\n%s", err, &stderr)
	}
	if d := domains(t); len(d) != 4 || len(devices(t)) == 0 {
		t.Errorf("while the ranks say %q, there are the domains %q", line, d)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if booted && strings.Contains(stderr.String(), "booted") {
		t.Error("a guest was booted a second time")
	}
	nothingLeft(t)
}
