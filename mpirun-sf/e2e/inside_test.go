package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestParentRanks: the machine runs the first ranks, its clones the others.
func TestParentRanks(t *testing.T) {
	for _, c := range []struct {
		np, ppn, parent int // parent: ranks on it
	}{{1, 1, 1}, {3, 1, 1}, {4, 2, 2}} {
		t.Run(fmt.Sprintf("%d by %d", c.np, c.ppn), func(t *testing.T) {
			r := inside.run(t, "--parent-ranks", "-np", fmt.Sprint(c.np), "-ppn", fmt.Sprint(c.ppn), example("hello")).succeeds(t)
			clones := inside.clones(t, r.stdout, (c.np-c.parent)/c.ppn)
			for rank := range c.np {
				on := "parent"
				if rank >= c.parent {
					on = clones[(rank-c.parent)/c.ppn]
				}
				has(t, r.stdout, fmt.Sprintf("hello from rank %d of %d on %s: sum %d, allreduce …", rank, c.np, on, c.np*(c.np-1)/2))
			}
		})
	}
	t.Run("on the host", func(t *testing.T) {
		mpirun(t, "--parent-ranks", "-np", "2", example("hello")).oneLine(t, "--parent-ranks is for mpirun-sf inside a virtual machine")
	})
	t.Run("that fail", func(t *testing.T) {
		inside.run(t, "--parent-ranks", "-np", "4", "-ppn", "2", example("abort")).fails(t, 7, "rank 1 on parent", "MPI_Abort(comm, 7)")
		inside.run(t, "--parent-ranks", "-np", "2", example("crash")).fails(t, 139, "rank 1 on clone-", "signal 11")
	})
	t.Run("ended by force", func(t *testing.T) {
		run := inside.start(t, command{args: []string{"--parent-ranks", "-np", "2", example("sleep"), "60"}})
		run.awaitOutput("sleeps 60 seconds", 2)
		run.cmd.Process.Signal(syscall.SIGINT)
		run.awaitOutput("got SIGINT", 2)
		run.cmd.Process.Signal(syscall.SIGINT)
		run.wait().fails(t, 130, "interrupted")
	})
	// Nothing of all this goes on in the machine itself.
	if r := machine.in(t, "ps -A -o comm="); strings.Contains(r.stdout, "mpirun-sf") || strings.Contains(r.stdout, "sleep") || strings.Contains(r.stdout, "hello") {
		t.Errorf("in the machine there still runs:\n%s", r.stdout)
	}
}

// TestStateBuiltBefore: what was there before the call is there in every rank,
// and what a rank changes of it is its own.
func TestStateBuiltBefore(t *testing.T) {
	probe := compile(t, "gcc", "testdata/probe.c")
	machine.in(t, `mkdir /root/built && cd /root/built && echo on disk >on-disk && seq 2000000 >large && cat large >/dev/null &&
		echo in memory >/dev/shm/built && cp `+probe+` probe`).succeeds(t)
	r := machine.in(t, `cd /root/built && MINE='built up' mpirun-sf -np 2 ./probe file:on-disk cached:large file:/dev/shm/built env:MINE cwd create:by-rank
		status=$?; ls; exit $status`).succeeds(t)
	machine.settles(t)
	for rank := range 2 {
		for question, answer := range map[string]string{
			"file:on-disk": "on disk", "cached:large": "whole", "file:/dev/shm/built": "in memory", "env:MINE": "built up",
			"cwd": "/root/built", "create:by-rank": "created",
		} {
			has(t, r.stdout, fmt.Sprintf("%d %s = %s", rank, question, answer))
		}
	}
	if !strings.HasSuffix(r.stdout, "\nlarge\non-disk\nprobe\n") {
		t.Errorf("the machine's own folder holds what a rank made in its clone:\n%s", r.stdout)
	}
	machine.in(t, "rm -r /root/built /dev/shm/built").succeeds(t)
}

// TestOptionsInside: what was decided when the machine was started.
func TestOptionsInside(t *testing.T) {
	r := inside.run(t, "--memory", "128M", "--window", "64K", "--accel", "tcg", "--strict", "-np", "1", example("nompi")).succeeds(t)
	for _, name := range []string{"memory", "window", "accel", "strict"} {
		if !strings.Contains(r.stderr, "--"+name+" has no meaning inside a virtual machine") {
			t.Errorf("no notice of --%s:\n%s", name, r.stderr)
		}
	}
	for name, c := range map[string]struct {
		args  []string
		words []string
	}{
		"image":           {[]string{"--image", "own.raw", example("nompi")}, []string{"--image", "mpirun-sf vm run"}},
		"share":           {[]string{"--share", "/root", example("nompi")}, []string{"--share", "mpirun-sf vm run"}},
		"too many clones": {[]string{"-np", "10000", example("nompi")}, []string{"of this machine can be made, for -np 10000 10000 are needed", "--oversubscribe"}},
		"no such program": {[]string{"./no-such"}, []string{"no-such does not exist"}},
		"vm run":          {[]string{"vm", "run", "true"}, []string{"inside a virtual machine"}},
	} {
		t.Run(name, func(t *testing.T) {
			inside.run(t, c.args...).oneLine(t, c.words...)
		})
	}
}

// TestTicketKilled: the host ends the clones under a job's ranks.
func TestTicketKilled(t *testing.T) {
	run := inside.start(t, command{args: []string{"-np", "2", example("sleep"), "60"}})
	run.awaitOutput("sleeps 60 seconds", 2)
	list := beside(command{args: []string{"vm", "ls"}}).run(t).succeeds(t)
	ticket := ""
	for line := range strings.Lines(list.stdout) {
		if f := strings.Fields(line); len(f) == 7 && f[0] == machine.name && f[5] != "-" {
			ticket = f[5]
		}
	}
	beside(command{args: []string{"vm", "kill", "--vm", machine.name, ticket}}).run(t).succeeds(t)
	begin := time.Now()
	run.wait().fails(t, 1, "killed")
	if took := time.Since(begin); took > promptly {
		t.Errorf("the job ended %v after its clones", took)
	}
}

// TestJobInClone: a clone is a machine like another, and is forked by the jobs in it.
func TestJobInClone(t *testing.T) {
	dir := t.TempDir()
	r := machine.in(t, fmt.Sprintf(`cd %s && echo before >/root/before
		t=$(sf request-ticket 1) && id=$(sf clone "$t") || exit
		if [ "$id" -gt 0 ]; then
			for program in hello nompi; do mpirun-sf -q -np 2 --parent-ranks %s/$program >$program.out 2>$program.err; echo "status $?" >>$program.out; done
			cat /root/before >state.out
			sf exit
		fi
		sf join "$t" && rm /root/before`, dir, examples)).succeeds(t)
	machine.settles(t)
	has(t, r.stdout, "1 0")
	out := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	hello := out("hello.out")
	if out("hello.err") != "" || out("nompi.err") != "" {
		t.Errorf("on stderr:\n%s%s", out("hello.err"), out("nompi.err"))
	}
	clones := inside.clones(t, hello, 2)
	has(t, hello, fmt.Sprintf("hello from rank 0 of 2 on %s: sum 1, allreduce …", clones[0]), fmt.Sprintf("hello from rank 1 of 2 on %s: sum 1, allreduce …", clones[1]), "status 0")
	has(t, out("nompi.out"), fmt.Sprintf("no MPI here: %s, PMI_RANK 0 of PMI_SIZE 2", clones[0]), "status 0")
	has(t, out("state.out"), "before")
}
