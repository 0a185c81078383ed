package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// copyTo copies an example into dir, as its user would have it.
func copyTo(t *testing.T, dir, name string) {
	t.Helper()
	b, err := os.ReadFile(example(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestHello: each rank in a clone of its own, by whose name it goes.
func TestHello(t *testing.T) {
	for _, p := range places {
		t.Run(string(p), func(t *testing.T) {
			dir := t.TempDir()
			copyTo(t, dir, "hello")
			r := p.start(t, command{args: []string{"-np", "4", "./hello"}, dir: dir}).wait().succeeds(t)
			if n := strings.Count(r.stdout, "\n"); n != 4 {
				t.Errorf("%d lines of output instead of 4", n)
			}
			for rank, clone := range p.clones(t, r.stdout, 4) {
				has(t, r.stdout, fmt.Sprintf("hello from rank %d of 4 on %s: sum 6, allreduce …", rank, clone))
			}
		})
	}
}

// TestRanksPerClone: hello with two ranks on each clone, which has two CPUs.
func TestRanksPerClone(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "4", "-ppn", "2", "--memory", "256M", example("hello")).succeeds(t)
		clones := p.clones(t, r.stdout, 2)
		for rank := range 4 {
			has(t, r.stdout, fmt.Sprintf("hello from rank %d of 4 on %s: sum 6, allreduce …", rank, clones[rank/2]))
		}
	})
}

func TestRing(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "4", example("ring")).succeeds(t)
		has(t, r.stdout, "ring of 4 ranks, 10 laps: token 100, as expected")
	})
}

// TestPi: the same as plain mpiexec gives on the host, to the last digit.
func TestPi(t *testing.T) {
	host := exec.Command(example("pi"), "100000")
	host.Env = environ(nil)
	alone, err := host.Output()
	if err != nil {
		t.Fatalf("pi on the host, as a single rank: %v", err)
	}
	digits := func(s string) string {
		var pi string
		fmt.Sscanf(s, "pi is approximately %s", &pi)
		return pi[:min(len(pi), 12)]
	}
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "2", example("pi"), "100000").succeeds(t)
		if digits(r.stdout) != digits(string(alone)) || len(digits(r.stdout)) < 12 {
			t.Errorf("%q on clones, %q on the host", r.stdout, alone)
		}
	})
}

func TestAlltoall(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "4", example("alltoall"), "16").succeeds(t)
		has(t, r.stdout, "alltoall of 16 MB on 4 ranks: …")
	})
}

func TestNoMPI(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-np", "2", example("nompi")).succeeds(t)
		for rank, clone := range p.clones(t, r.stdout, 2) {
			has(t, r.stdout, fmt.Sprintf("no MPI here: %s, PMI_RANK %d of PMI_SIZE 2", clone, rank))
		}
	})
}

// TestSecondRunNeitherBuildsNorBoots: what the first run said, the second does not.
func TestSecondRunNeitherBuildsNorBoots(t *testing.T) {
	env, images := newCache(t)
	c := command{args: []string{"-np", "2", example("hello")}, env: env}
	first := c.run(t).succeeds(t)
	for _, word := range []string{"guest image built from this machine", "guest booted and checkpointed"} {
		if strings.Count(first.stderr, word) != 1 {
			t.Errorf("the first run does not say %q:\n%s", word, first.stderr)
		}
	}
	private(t, filepath.Dir(images))
	second := c.run(t).succeeds(t)
	if strings.Contains(second.stderr, "built") || strings.Contains(second.stderr, "booted") {
		t.Errorf("the second run says:\n%s", second.stderr)
	}
	if second.took > first.took*2/3 {
		t.Errorf("the second run took %v, the first %v", second.took, first.took)
	}
}

// private checks that nobody else can read what is in a cache: guests' memory.
func private(t *testing.T, cache string) {
	t.Helper()
	n := 0
	for _, pattern := range []string{"", "images", "images/*", "images/*/checkpoints", "images/*/checkpoints/*", "images/*/checkpoints/*/*"} {
		paths, _ := filepath.Glob(filepath.Join(cache, pattern))
		for _, p := range paths {
			st, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if n++; st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", p, st.Mode())
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d files and folders in the cache", n)
	}
}

// TestQuiet: -q says nothing when all goes well.
func TestQuiet(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		r := p.run(t, "-q", "-np", "2", example("hello")).succeeds(t)
		if r.stderr != "" {
			t.Errorf("-q says %q", r.stderr)
		}
		r = p.run(t, "-q", "-np", "2", example("no-such")).fails(t, 1, "does not exist")
		if strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("-q does not say one line of an error: %q", r.stderr)
		}
	})
}

// TestTwoJobsAtOnce: they share the machine, the cache and nothing else. Inside a
// machine, each job's clones have the other's launcher in them too.
func TestTwoJobsAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		var jobs []*running
		for range 2 {
			jobs = append(jobs, p.start(t, command{args: []string{"-np", "2", example("ring")}}))
		}
		for _, j := range jobs {
			<-j.done
		}
		for _, j := range jobs {
			r := j.wait().succeeds(t)
			has(t, r.stdout, "ring of 2 ranks, 10 laps: token 30, as expected")
		}
	})
}

// compile makes a program of a source in testdata.
func compile(t *testing.T, compiler, source string, flags ...string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	cmd := exec.Command(compiler, append([]string{"-O2", "-Wall", "-o", program, source}, flags...)...)
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("compile %s: %v\n%s", source, err, &out)
	}
	return program
}
