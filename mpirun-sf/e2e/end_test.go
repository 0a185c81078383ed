package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// promptly is how long after its cause a job's end may come on a machine that
// is busy; on an idle one it is a second.
const promptly = 5 * time.Second

// TestCrash: the others wait in a barrier for the rank that died.
func TestCrash(t *testing.T) { everywhere(t, testCrash) }

func testCrash(t *testing.T, p place) {
	run := p.start(t, command{args: []string{"-np", "2", example("crash")}})
	run.awaitOutput("follows a null pointer", 1)
	begin := time.Now()
	r := run.wait()
	r.fails(t, 139, "rank 1 on "+p.clone(2), "signal 11", "segmentation fault")
	if took := time.Since(begin); took > promptly {
		t.Errorf("the job ended %v after the crash", took)
	}
	has(t, r.stdout, "rank 1 of 2 follows a null pointer")
}

// TestAbort: rank 1 calls MPI_Abort(comm, 7) while the others wait.
func TestAbort(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "2", example("abort"))
		r.fails(t, 7, "rank 1 on "+p.clone(2), "MPI_Abort(comm, 7)")
		has(t, r.stdout, "rank 1 of 2 aborts")
	})
}

// TestExitStatus: one rank's status is the job's; the other ranks end in peace.
func TestExitStatus(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "4", example("exit3"))
		r.fails(t, 3, "rank 2 on "+p.clone(3), "status 3")
		for rank := range 4 {
			has(t, r.stdout, fmt.Sprintf("rank %d of 4 exits %d", rank, map[bool]int{true: 3}[rank == 2]))
		}
	})
}

// TestCloneLost: a clone's hypervisor dies under its rank.
func TestCloneLost(t *testing.T) { everywhere(t, testCloneLost) }

func testCloneLost(t *testing.T, p place) {
	probe := compile(t, "gcc", "testdata/probe.c")
	run := p.start(t, command{args: []string{"-np", "2", probe, "hostname", "arg:here", "sleep:60000"}})
	run.awaitOutput("= here", 2)
	lost := p.clones(t, run.stdout.String(), 2)[1]
	for _, q := range allProcesses() {
		if q.isQEMU("-name "+lost+" ") && (p == inside) == descends(allProcesses(), q, machine.pid()) {
			syscall.Kill(q.pid, syscall.SIGKILL)
		}
	}
	begin := time.Now()
	run.wait().fails(t, -1, lost)
	if took := time.Since(begin); took > promptly {
		t.Errorf("the job ended %v after the clone", took)
	}
}

// TestSignals: what the launcher is sent reaches the ranks, those that listen
// and those that die of it.
func TestSignals(t *testing.T) { everywhere(t, testSignals) }

func testSignals(t *testing.T, p place) {
	probe := compile(t, "gcc", "testdata/probe.c")
	t.Run("forwarded", func(t *testing.T) {
		run := p.start(t, command{args: []string{"-np", "2", probe, "signals:60"}, attr: &syscall.SysProcAttr{Setpgid: true}})
		run.awaitOutput("= listening", 2)
		for name, sig := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGQUIT": syscall.SIGQUIT, "SIGUSR1": syscall.SIGUSR1, "SIGINT": syscall.SIGINT} {
			// To the group, as a terminal does.
			syscall.Kill(-run.cmd.Process.Pid, sig)
			run.awaitOutput("= "+name, 2)
		}
		begin := time.Now()
		syscall.Kill(-run.cmd.Process.Pid, syscall.SIGINT)
		r := run.wait()
		r.fails(t, 130, "interrupted", "by force")
		if took := time.Since(begin); took > promptly {
			t.Errorf("the job ended %v after the second Ctrl-C", took)
		}
		if !strings.Contains(r.stderr, "Ctrl-C again") {
			t.Errorf("the first Ctrl-C does not tell of the second:\n%s", r.stderr)
		}
	})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT} {
		t.Run(fmt.Sprintf("dying of %d", sig), func(t *testing.T) {
			run := p.start(t, command{args: []string{"-np", "2", probe, "arg:here", "sleep:60000"}})
			run.awaitOutput("= here", 2)
			begin := time.Now()
			run.cmd.Process.Signal(sig)
			run.wait().fails(t, 128+int(sig), "on clone-", fmt.Sprintf("signal %d", sig))
			if took := time.Since(begin); took > promptly {
				t.Errorf("the job ended %v after the signal", took)
			}
		})
	}
	t.Run("before there are ranks", func(t *testing.T) {
		run := p.start(t, command{args: []string{"-v", "-np", "2", example("hello")}})
		run.await("the ticket", func() bool { return strings.Contains(run.stderr.String(), "ticket for") })
		begin := time.Now()
		run.cmd.Process.Signal(syscall.SIGINT)
		if r := run.wait(); r.status != 130 {
			t.Errorf("exit status %d, want 130:\n%s", r.status, r.stderr)
		}
		if took := time.Since(begin); took > promptly {
			t.Errorf("the job ended %v after Ctrl-C", took)
		}
	})
}
