package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/jobs"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// limit is how long a job may take that is measured.
const limit = 3 * time.Minute

// bench is the state of one run of the benchmark.
type bench struct {
	binary, examples string // mpirun-sf; the examples, for MPICH
	sources          string // of the examples
	out              string // folder of results
	tmp              string
	cache            string // XDG_CACHE_HOME of jobs
	builds           string // cache of builds of MPICH
	rounds           int
	jobs             int // of each family, in the part hang
	record           *figures.Record
}

// promises are what the specification says of figures.
var promises = map[string]string{
	"launch_over_hydra":                "≤ 1.0",
	"pmix_over_orterun":                "≤ 0.8",
	"netpipe_latency_over_zero_cost":   "≤ 1.03",
	"netpipe_bandwidth_over_zero_cost": "≥ 0.97",
	"hang_rate":                        "0",
}

// parts are all that can be measured, in their order.
func (b *bench) parts() figures.Parts {
	return figures.Parts{
		{Name: "hydra", Usual: true, Measure: b.hydra},
		{Name: "pmix", Usual: true, Measure: b.pmix},
		{Name: "netpipe", Usual: true, Measure: b.netpipe},
		{Name: "hang", Measure: b.hang},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-mpi:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b := &bench{}
	parts := b.parts()
	chosen := flag.String("part", parts.Usual(), "what to measure; there is hang too, which takes long")
	note := flag.String("note", "", "what is to be known of this run, for mpi.json")
	bin := flag.String("bin", "bin", "folder with mpirun-sf and examples/")
	flag.StringVar(&b.sources, "sources", "examples", "folder with the examples' sources, to compile them for Open MPI")
	flag.StringVar(&b.out, "out", "benchmarks/results", "folder for mpi.json and the plots")
	flag.StringVar(&b.cache, "cache", "", "folder for guest images that is kept; without it there is one for this run")
	flag.StringVar(&b.builds, "builds", "", "folder for the build of MPICH; without it one in the user's cache")
	flag.IntVar(&b.rounds, "rounds", 10, "measurements of each side")
	flag.IntVar(&b.jobs, "jobs", 200, "jobs of each family, in the part hang")
	flag.Parse()
	parts, err := parts.Choose(*chosen)
	if err != nil {
		return err
	}
	if b.rounds < 1 || b.jobs < 1 {
		return errors.New("-rounds and -jobs are at least 1")
	}
	dir, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	b.binary, b.examples = filepath.Join(dir, "mpirun-sf"), filepath.Join(dir, "examples")
	// Not /tmp, of which hosts may have one each.
	if b.tmp, err = os.MkdirTemp("/var/tmp", "mpirun-sf-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.tmp)
	if b.cache == "" {
		b.cache = filepath.Join(b.tmp, "cache")
	} else if b.cache, err = filepath.Abs(b.cache); err != nil {
		return err
	}
	// Before the user's own cache is another.
	if b.builds == "" {
		if b.builds, err = mpich.DefaultCache(); err != nil {
			return fmt.Errorf("%w: name a folder with -builds", err)
		}
	}
	os.Setenv("XDG_CACHE_HOME", b.cache)
	if b.record, err = figures.OpenRecord(filepath.Join(b.out, "mpi.json"), promises); err != nil {
		return err
	}
	return b.record.Measure(ctx, parts, *note, progress)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-mpi: "+format+"\n", args...)
}

// mpirun is a job on clones of this machine, as a user runs it, in a folder of its programs.
func (b *bench) mpirun(ctx context.Context, within time.Duration, dir string, args ...string) (jobs.Job, error) {
	return jobs.Run(ctx, within, func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, b.binary, args...)
		cmd.Dir = dir
		return cmd
	})
}

// must is mpirun for a job that has to end well.
func (b *bench) must(ctx context.Context, dir string, args ...string) (jobs.Job, error) {
	j, err := b.mpirun(ctx, limit, dir, args...)
	if err == nil {
		err = j.Ended()
	}
	return j, err
}

// warmUp runs a job twice: what the first one reads of its guest's checkpoint, the second one and all later ones have ahead.
func (b *bench) warmUp(ctx context.Context, dir string, args ...string) error {
	for range 2 {
		if _, err := b.must(ctx, dir, args...); err != nil {
			return fmt.Errorf("make the guest: %w", err)
		}
	}
	return nil
}

// compile compiles examples with a compiler for MPI, and returns the folder that they are in.
func (b *bench) compile(ctx context.Context, compiler, name string, examples ...string) (string, error) {
	dir := filepath.Join(b.tmp, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, e := range examples {
		cmd := exec.CommandContext(ctx, compiler, "-O2", "-o", filepath.Join(dir, e), filepath.Join(b.sources, e+".c"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("compile %s with %s: %w: %s", e, compiler, err, out)
		}
	}
	return dir, nil
}

// openMPI compiles examples for Debian's Open MPI.
func (b *bench) openMPI(ctx context.Context, examples ...string) (string, error) {
	return b.compile(ctx, "mpicc.openmpi", "openmpi", examples...)
}

// nemesis is MPICH for ch3:nemesis.
func (b *bench) nemesis(ctx context.Context) (*mpich.Build, error) {
	return mpich.Make(ctx, b.builds, runtime.NumCPU(), progress)
}
