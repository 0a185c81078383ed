package difftest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// hostLimit is how long a job on several hosts may take, with Hydra's own way to log
// in to each.
const hostLimit = 90 * time.Second

// onHost runs mpiexec of a folder on the first host.
func onHost(t *testing.T, c *testcluster.Cluster, folder string, limit time.Duration, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	h := c.Host(0)
	cmd := h.Command(ctx, folder+"/mpiexec", args...)
	cmd.Dir = c.Dir()
	cmd.Env = append(environment(folder, h.Home), "XDG_CACHE_HOME="+h.Home)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Run() // its state says all
	if ctx.Err() != nil {
		t.Errorf("mpiexec %s took more than %v; stdout %q, stderr %q", strings.Join(args, " "), limit, out.String(), errs.String())
		return out.String(), errs.String(), -1
	}
	return lines(out.String()), errs.String(), cmd.ProcessState.ExitCode()
}

// Ranks on several hosts, which SSH reaches, are where Hydra has them, and end as
// there.
func TestHosts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("hosts are made of namespaces: run this as root (make test does)")
	}
	if testing.Short() {
		t.Skip("a minute of logins: MPIRUN_SF_TEST_ALL=1 (make test-all) runs it")
	}
	made := build(t)
	dir := t.TempDir()
	c := testcluster.ForTest(t, testcluster.Options{Hosts: 3, Dir: dir})
	for _, h := range c.Hosts() {
		if err := h.SSHD(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	machines := filepath.Join(dir, "machines")
	if err := os.WriteFile(machines, []byte("host1:2\nhost2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const where = `echo $PMI_RANK of $PMI_SIZE, $MPI_LOCALRANKID of $MPI_LOCALNRANKS on $(hostname) $MPIR_CVAR_CH3_INTERFACE_HOSTNAME $A`
	for _, args := range [][]string{
		{"-hosts", "host0,host1,host2", "-n", "5", "sh", "-c", where},
		{"-f", machines, "-genv", "A", "x y", "-n", "4", "sh", "-c", where},
		{"-hosts", "host1,host2", "-n", "2", "sh", "-c", "exit $((PMI_RANK+1))"},
		{"-print-all-exitcodes", "-hosts", "host1,host0", "-n", "3", "sh", "-c", "exit $PMI_RANK"},
	} {
		theirs, _, theirStatus := onHost(t, c, made.theirs, hostLimit, args...)
		ours, said, status := onHost(t, c, made.ours, hostLimit, args...)
		if ours != theirs || status != theirStatus || said != "" {
			t.Errorf("mpiexec %s\nHydra: %q, status %d\nours:  %q, status %d, and it said %q", strings.Join(args, " "), theirs, theirStatus, ours, status, said)
		}
	}
	// Hydra may hang in these, for Debian's MPICH does.
	for range rounds() {
		ours, said, status := onHost(t, c, made.ours, hostLimit, "-hosts", "host0,host1,host2", "-n", "6", made.ends, "where")
		if want := 6; status != 0 || strings.Count(ours, "of 6 is") != want || strings.Count(ours, "is 1 of 2") != 3 {
			t.Errorf("MPI on three hosts: status %d, %q, %q", status, ours, said)
		}
	}
	_, said, status := onHost(t, c, made.ours, hostLimit, "-hosts", "host1,host2", "-n", "2", made.ends, "abort", "9")
	if status != 9 {
		t.Errorf("MPI_Abort on another host: status %d, %q", status, said)
	}
	_, said, status = onHost(t, c, made.ours, hostLimit, "-hosts", "host1,nowhere", "-n", "2", "true")
	if status != 255 || !strings.Contains(said, "nowhere") {
		t.Errorf("a host that is none: status %d, %q", status, said)
	}
	testKill(t, c, made)
}

// testKill kills mpiexec: its ranks end, also on other hosts.
func testKill(t *testing.T, c *testcluster.Cluster, made tools) {
	h := c.Host(0)
	up := filepath.Join(c.Dir(), "up")
	cmd := h.Command(t.Context(), made.ours+"/mpiexec", "-hosts", "host0,host1", "-n", "2", "sh", "-c",
		fmt.Sprintf("trap '' HUP TERM; touch %s.$PMI_RANK; exec sleep 86399", up))
	cmd.Env = append(environment(made.ours, h.Home), "XDG_CACHE_HOME="+h.Home)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "ranks run", func() bool {
		found, _ := filepath.Glob(up + ".*")
		return len(found) == 2 && sleepers() == 2
	})
	cmd.Process.Kill()
	cmd.Wait()
	await(t, "the ranks of a killed mpiexec have ended", func() bool { return sleepers() == 0 })
}

// rounds is how often what may hang is tried.
func rounds() int {
	if os.Getenv("MPIRUN_SF_TEST_ALL") == "1" {
		return 50
	}
	return 2
}

// sleepers are the ranks that testKill starts.
func sleepers() int {
	out, _ := exec.Command("pgrep", "-fxc", "sleep 86399").Output()
	n := 0
	fmt.Sscan(string(out), &n)
	return n
}

// await waits until something is true.
func await(t *testing.T, what string, true func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !true(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 30 s until %s", what)
		}
	}
}
