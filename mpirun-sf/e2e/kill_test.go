package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// killCase is who dies when. A moment is one in the life of a job.
type killCase struct {
	phase  string
	args   []string
	fresh  bool // with an empty cache
	moment func(r *running, cache string) bool
}

var killCases = []killCase{
	{"building the image", []string{"-np", "2", "HELLO"}, true, func(_ *running, cache string) bool {
		return there(cache, "mpirun-sf/images/tmp-*")
	}},
	{"booting", []string{"-np", "2", "--memory", "200M", "HELLO"}, false, func(_ *running, cache string) bool {
		// The guest has begun to use its memory.
		ram, _ := filepath.Glob(filepath.Join(cache, "mpirun-sf/images/*/checkpoint-tmp-*/memory"))
		var st syscall.Stat_t
		return len(ram) == 1 && syscall.Stat(ram[0], &st) == nil && st.Blocks*512 > 30<<20
	}},
	{"cloning", []string{"-v", "-np", "2", "HELLO"}, false, func(r *running, _ string) bool {
		return strings.Contains(r.stderr.String(), "folders served")
	}},
	{"ranks start", []string{"-v", "-np", "2", "HELLO"}, false, func(r *running, _ string) bool {
		return strings.Contains(r.stderr.String(), "folders mounted")
	}},
	{"ranks run", []string{"-np", "2", "SLEEP", "60"}, false, func(r *running, _ string) bool {
		return strings.Count(r.stdout.String(), "sleeps 60 seconds") == 2
	}},
}

func there(dir, pattern string) bool {
	found, _ := filepath.Glob(filepath.Join(dir, pattern))
	return len(found) > 0
}

// TestKillLauncherAtEachPhase: SIGKILL, for which nobody can prepare, of the
// launcher, of its daemon, and of both in one moment. Afterwards the machine is
// as it was before; what needs a living process to be removed, a reservation
// and a half-made checkpoint when both are gone, goes with the next job.
func TestKillLauncherAtEachPhase(t *testing.T) {
	for _, c := range killCases {
		victims := []string{"launcher", "daemon", "both"}
		if !full && c.phase != "ranks run" {
			victims = victims[:1]
		}
		for _, victim := range victims {
			t.Run(c.phase+", "+victim, func(t *testing.T) { killAt(t, c, victim) })
		}
	}
}

func killAt(t *testing.T, c killCase, victim string) {
	// The cache is warm for all that the phase does not make itself.
	mpirun(t, "-np", "2", example("hello")).succeeds(t)
	nothingIsLeft(t)
	cache := cacheDir
	if c.fresh {
		_, images := newCache(t)
		cache = filepath.Dir(filepath.Dir(images))
	}
	args := make([]string, len(c.args))
	for i, a := range c.args {
		args[i] = strings.NewReplacer("HELLO", example("hello"), "SLEEP", example("sleep")).Replace(a)
	}
	run := command{args: args, env: []string{"XDG_CACHE_HOME=" + cache}}.start(t)
	run.await(c.phase, func() bool { return c.moment(run, cache) })
	daemon := 0
	for _, p := range processes() {
		if p.is("sfld") && p.parent == run.cmd.Process.Pid {
			daemon = p.pid
		}
	}
	if daemon == 0 {
		t.Fatalf("the launcher has no daemon: %v", processes())
	}
	switch victim {
	case "launcher":
		run.cmd.Process.Kill()
	case "daemon":
		syscall.Kill(daemon, syscall.SIGKILL)
	case "both":
		// The launcher is stopped first, so that it cannot clean up in between.
		run.cmd.Process.Signal(syscall.SIGSTOP)
		syscall.Kill(daemon, syscall.SIGKILL)
		run.cmd.Process.Kill()
	}
	r := run.wait()
	switch {
	case r.status == 0:
		t.Errorf("the job ended well:\n%s", r.stderr)
	case victim == "daemon":
		r.fails(t, -1)
	}
	if victim != "launcher" {
		mpirun(t, "-np", "2", example("hello")).succeeds(t)
		if c.fresh {
			// Nobody else makes this image, so nobody removes what is left of it, but clean.
			command{args: []string{"clean"}, env: []string{"XDG_CACHE_HOME=" + cache}}.run(t).succeeds(t)
		}
	}
	if left := temporaryFiles(cache); len(left) > 0 {
		t.Errorf("left in the cache:\n\t%s", strings.Join(left, "\n\t"))
	}
}
