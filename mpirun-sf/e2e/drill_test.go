package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// The failure drill: what hosts and networks do to a job. Each failure ends in a
// right result, or in one clear error that names the host, before drillLimit is
// over; and in both cases nothing of the job is left on any host that lives.

// drillLimit is how long after a failure the job may end. A host that is silent has
// to be waited for, for it might be a network that is busy.
const drillLimit = 60 * time.Second

// imageOnce is for the one run that makes the image, if no other test has.
var imageOnce sync.Once

// drillFarm makes hosts of its own for a test that breaks some.
func drillFarm(t *testing.T) *farm {
	t.Helper()
	// The image and the checkpoint are no part of what is drilled.
	imageOnce.Do(func() { mpirun(t, "-q", "-np", "2", example("hello")).succeeds(t) })
	f, err := newFarm(t.TempDir(), farmSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// on are our processes of a host, those in job namespaces below it too.
func (f *farm) on(host int) (out []process) {
	namespace, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", f.Host(host).PID()))
	for _, p := range allProcesses() {
		if is, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.pid)); is == namespace && namespace != "" {
			out = append(out, p)
		}
	}
	return out
}

// daemon is the daemon of a job on a host that is not the launcher's: the process
// that was started there (outer), or the first one of the job's namespaces.
func (f *farm) daemon(t *testing.T, host int, outer bool) int {
	t.Helper()
	all := f.on(host)
	for _, p := range all {
		if !p.is("sfld") {
			continue
		}
		child := false
		for _, q := range all {
			child = child || q.pid == p.parent && q.is("sfld")
		}
		if child != outer {
			return p.pid
		}
	}
	t.Fatalf("%s has no daemon: %v", f.Host(host).Name, all)
	return 0
}

// sleepers starts a job of a rank on each host, which do nothing until they are killed.
func (f *farm) sleepers(t *testing.T, more ...string) *running {
	t.Helper()
	run := f.start(t, command{args: f.over(farmSize, append(more, "-np", "3", example("sleep"), "600"))})
	run.awaitOutput("sleeps 600 seconds", 3)
	return run
}

// endsInTime waits for a job's end and that nothing is left of it.
func (r *running) endsInTime(t *testing.T, limit time.Duration) result {
	t.Helper()
	begin := time.Now()
	late := time.AfterFunc(limit, func() {
		t.Errorf("the job goes on %v after the failure; so far:\n%s", limit, r.stderr)
		r.cmd.Process.Kill()
	})
	defer late.Stop()
	<-r.done
	t.Logf("ended after %.1f s with status %d:\n%s", time.Since(begin).Seconds(), r.result.status, r.result.stderr)
	return r.wait()
}

// untidy is a run whose daemon is killed, so that its reservation stays; it counts for
// nothing, and goes with the next job.
func (r *running) untidy() *running {
	r.settled = nil
	return r
}

// works checks that the farm runs jobs, as after a failure it should, and that
// nothing is left then of any.
func (f *farm) works(t *testing.T) {
	t.Helper()
	r := f.start(t, command{args: f.over(farmSize, []string{"-np", "3", example("ring")})}).wait().succeeds(t)
	has(t, r.stdout, "ring of 3 ranks, 10 laps: token 60, as expected")
}

// TestDrillKillDaemon: SIGKILL of a daemon, and of the process that started it.
// memtap is in it, and the hypervisors of the host end with it.
func TestDrillKillDaemon(t *testing.T) {
	f := drillFarm(t)
	for name, outer := range map[string]bool{"daemon": false, "daemon's parent": true} {
		t.Run(name, func(t *testing.T) {
			run := f.sleepers(t).untidy()
			if err := syscall.Kill(f.daemon(t, 1, outer), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			run.endsInTime(t, drillLimit).fails(t, -1, "host1")
		})
	}
	t.Run("head", func(t *testing.T) {
		run := f.sleepers(t).untidy()
		for _, p := range f.on(0) {
			if p.is("sfld") {
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		run.endsInTime(t, drillLimit).fails(t, -1)
	})
	t.Run("launcher", func(t *testing.T) {
		run := f.sleepers(t)
		run.cmd.Process.Kill()
		run.endsInTime(t, drillLimit)
	})
	f.works(t)
}

// TestDrillKillHypervisor: of a clone on another host.
func TestDrillKillHypervisor(t *testing.T) {
	f := drillFarm(t)
	run := f.sleepers(t)
	for _, p := range f.on(2) {
		if p.isQEMU("-name clone-3") {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	run.endsInTime(t, drillLimit).fails(t, -1, "clone-3")
	f.works(t)
}

// TestDrillKillSSH: the connection that a daemon hangs on. Its host's server of SSH
// lives on.
func TestDrillKillSSH(t *testing.T) {
	slow(t)
	f := drillFarm(t)
	run := f.sleepers(t)
	if out, err := f.Host(1).Command(t.Context(), "pkill", "-KILL", "-f", "^sshd: root").CombinedOutput(); err != nil {
		t.Fatalf("kill the session on host1: %v: %s", err, out)
	}
	run.endsInTime(t, drillLimit).fails(t, -1, "host1")
	f.works(t)
}

// TestDrillLoseHost: a host loses its power while ranks run, and while clones start.
func TestDrillLoseHost(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, f *farm) *running{
		"ranks run": func(t *testing.T, f *farm) *running { return f.sleepers(t) },
		"clones start": func(t *testing.T, f *farm) *running {
			run := f.start(t, command{args: f.over(farmSize, []string{"-v", "-np", "3", example("sleep"), "600"})})
			run.await("the folders", func() bool { return strings.Contains(run.stderr.String(), "folders served") })
			return run
		},
		"hosts join": func(t *testing.T, f *farm) *running {
			run := f.start(t, command{args: f.over(farmSize, []string{"-v", "-np", "3", example("sleep"), "600"})})
			run.await("a daemon", func() bool { return len(f.on(1)) > 0 })
			return run
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := drillFarm(t)
			run := start(t, f)
			if err := f.Kill(1); err != nil {
				t.Fatal(err)
			}
			run.endsInTime(t, drillLimit).fails(t, -1, "host1")
		})
	}
}

// TestDrillLoseHead: the host of the launcher and of the job's coordinator, with
// everything on it. The others find out by themselves.
func TestDrillLoseHead(t *testing.T) {
	slow(t)
	t.Run("power", func(t *testing.T) {
		f := drillFarm(t)
		run := f.sleepers(t)
		if err := f.Kill(0); err != nil {
			t.Fatal(err)
		}
		<-run.done
		f.forgets(t, 1, 2)
	})
	t.Run("processes", func(t *testing.T) {
		f := drillFarm(t)
		run := f.sleepers(t).untidy()
		for _, p := range f.on(0) {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		run.endsInTime(t, drillLimit)
		f.works(t)
	})
}

// forgets waits until nothing is left of jobs on hosts that nobody tells that they
// have ended. Their sessions of SSH, which are not ours, may wait longer.
func (f *farm) forgets(t *testing.T, numbers ...int) {
	t.Helper()
	begin := time.Now()
	for _, n := range numbers {
		for len(f.on(n)) > 0 {
			if time.Since(begin) > drillLimit {
				t.Errorf("left on host%d after %v: %v", n, drillLimit, f.on(n))
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	t.Logf("nothing runs after %.1f s", time.Since(begin).Seconds())
	if out, err := f.Host(numbers[0]).Command(t.Context(), "pkill", "-KILL", "-f", "^sshd: root").CombinedOutput(); err != nil && len(out) > 0 {
		t.Errorf("end sessions of SSH: %v: %s", err, out)
	}
	for _, n := range numbers[1:] {
		_ = f.Host(n).Command(t.Context(), "pkill", "-KILL", "-f", "^sshd: root").Run()
	}
	f.settles(t)
}

// TestDrillCutForASecond: the network fails for a second, and nothing else does.
func TestDrillCutForASecond(t *testing.T) {
	slow(t)
	f := drillFarm(t)
	for _, host := range []int{0, 2} {
		t.Run(f.Host(host).Name, func(t *testing.T) {
			// It lasts for some seconds, and speaks all the time.
			run := f.start(t, command{limit: 3 * defaultLimit, args: f.over(farmSize, []string{"-v", "-np", "3", example("ring"), "400"})})
			run.await("ranks", func() bool { return strings.Contains(run.stderr.String(), "folders mounted") })
			time.Sleep(time.Second)
			if err := f.Cut(host); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if err := f.Heal(host); err != nil {
				t.Fatal(err)
			}
			r := run.endsInTime(t, 3*defaultLimit).succeeds(t)
			has(t, r.stdout, "ring of 3 ranks, 400 laps: token 2400, as expected")
		})
	}
	t.Run("clones start", func(t *testing.T) {
		run := f.start(t, command{args: f.over(farmSize, []string{"-v", "-np", "3", example("ring")})})
		run.await("the folders", func() bool { return strings.Contains(run.stderr.String(), "folders served") })
		if err := f.Cut(2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := f.Heal(2); err != nil {
			t.Fatal(err)
		}
		r := run.endsInTime(t, defaultLimit).succeeds(t)
		has(t, r.stdout, "ring of 3 ranks, 10 laps: token 60, as expected")
	})
}

// TestDrillCutForEver: the network between a host and all others is gone, while the
// host lives. Both sides find out.
func TestDrillCutForEver(t *testing.T) {
	slow(t)
	for _, host := range []int{2, 0} {
		t.Run(hostName(host), func(t *testing.T) {
			f := drillFarm(t)
			run := f.sleepers(t)
			if err := f.Cut(host); err != nil {
				t.Fatal(err)
			}
			// What is left behind the cut is looked at below.
			run.settled = nil
			run.beside = true
			if host == 0 {
				run.endsInTime(t, drillLimit).fails(t, -1, "host")
				f.forgets(t, 1, 2)
			} else {
				run.endsInTime(t, drillLimit).fails(t, -1, hostName(host))
				f.forgets(t, host)
			}
			if left := awaitNoProcess(); len(left) > 0 {
				t.Errorf("still running: %v", left)
			}
			if err := f.Heal(host); err != nil {
				t.Fatal(err)
			}
			f.works(t)
		})
	}
}

func hostName(host int) string { return fmt.Sprintf("host%d", host) }

// TestDrillCutBetween: two hosts reach the launcher's, but not each other.
func TestDrillCutBetween(t *testing.T) {
	slow(t)
	f := drillFarm(t)
	run := f.sleepers(t)
	if err := f.CutBetween(1, 2); err != nil {
		t.Fatal(err)
	}
	run.endsInTime(t, drillLimit).fails(t, -1, "host1", "host2")
	if err := f.HealBetween(1, 2); err != nil {
		t.Fatal(err)
	}
	f.works(t)
}

// TestDrillLoss: every tenth packet is lost, of all hosts, in all modes of
// distribution; a short test takes the mode that is chosen by itself.
func TestDrillLoss(t *testing.T) {
	slow(t)
	f := drillFarm(t)
	for host := range farmSize {
		// Half of it on either end of a packet's way.
		if err := f.SetLoss(host, testcluster.Loss{Sent: 0.05, Received: 0.05}); err != nil {
			t.Fatal(err)
		}
	}
	modes := []string{"auto"}
	if full {
		modes = append(modes, "unicast", "tree", "multicast")
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			begin := time.Now()
			r := f.start(t, command{limit: 4 * time.Minute, args: f.over(farmSize, []string{"-v", "--distribution", mode, "-np", "3", example("ring")})}).wait()
			if r.status != 0 { // a host may be taken for one that does not answer
				r.fails(t, -1, "host")
			} else {
				has(t, r.stdout, "ring of 3 ranks, 10 laps: token 60, as expected")
			}
			t.Logf("%.1f s:\n%s", time.Since(begin).Seconds(), r.stderr)
		})
	}
}

// TestDrillFullDisk: a host's disk has no room for what the clones fetch, or for
// what they write.
func TestDrillFullDisk(t *testing.T) {
	f := drillFarm(t)
	cache := filepath.Join(f.cache(1), "mpirun-sf")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	limited := func(size string) (whole func()) {
		out, err := f.Host(1).Command(t.Context(), "mount", "-t", "tmpfs", "-o", "mode=700,size="+size, "tmpfs", cache).CombinedOutput()
		if err != nil {
			t.Fatalf("make a small disk: %v: %s", err, out)
		}
		f.before[1] = f.has(1)
		return func() {
			if out, err := f.Host(1).Command(t.Context(), "umount", cache).CombinedOutput(); err != nil {
				t.Fatalf("take the small disk away: %v: %s", err, out)
			}
			f.before[1] = f.has(1)
		}
	}
	t.Run("clones start", func(t *testing.T) {
		defer limited("64k")()
		run := f.start(t, command{args: f.over(farmSize, []string{"-np", "3", example("ring")})})
		run.endsInTime(t, defaultLimit).fails(t, -1, "host1", "no space left")
	})
	t.Run("ranks write", func(t *testing.T) {
		defer limited("150m")()
		run := f.start(t, command{args: f.over(farmSize, []string{"-np", "3", compile(t, "gcc", "testdata/fill.c"), "/var/tmp/file", "200"})})
		run.awaitOutput("filling", 3)
		// Whether its program hears of it, or the clone cannot go on.
		run.endsInTime(t, defaultLimit).fails(t, -1, "clone-2")
	})
	f.works(t)
}

// TestDrillUnreachable: a host that cannot be logged in to, or not reached.
func TestDrillUnreachable(t *testing.T) {
	f := drillFarm(t)
	job := func() *running {
		return f.start(t, command{args: f.over(farmSize, []string{"-np", "3", example("ring")})})
	}
	t.Run("no such host", func(t *testing.T) {
		f.start(t, command{args: []string{"--hosts", "host0:1,host1:1,host9", "-np", "3", example("ring")}}).endsInTime(t, drillLimit).fails(t, -1, "host9")
	})
	t.Run("cut off", func(t *testing.T) {
		if err := f.Cut(2); err != nil {
			t.Fatal(err)
		}
		job().endsInTime(t, drillLimit).fails(t, -1, "host2")
		if err := f.Heal(2); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("no key", func(t *testing.T) {
		keys := filepath.Join(f.Host(2).Home, ".ssh/authorized_keys")
		if err := os.Rename(keys, keys+".not"); err != nil {
			t.Fatal(err)
		}
		job().endsInTime(t, drillLimit).fails(t, -1, "host2")
		if err := os.Rename(keys+".not", keys); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("no server", func(t *testing.T) {
		if out, err := f.Host(2).Command(t.Context(), "pkill", "-KILL", "sshd").CombinedOutput(); err != nil {
			t.Fatalf("kill the server: %v: %s", err, out)
		}
		f.before[2] = f.has(2)
		job().endsInTime(t, drillLimit).fails(t, -1, "host2")
	})
}
