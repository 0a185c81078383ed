package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/jobs"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/stage"
)

// limit is how long a job may take that is measured.
const limit = 3 * time.Minute

// bench is the state of one run of the benchmark.
type bench struct {
	*stage.Stage
	sources string // of the examples
	builds  string // cache of builds of MPICH
	rounds  int
	jobs    int // of each family, in the part hang
}

var progress = stage.Progress("mpi")

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
	if len(os.Args) == 3 && os.Args[1] == warmArgument {
		if err := runWarm(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench-mpi: in the virtual machine:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{Stage: stage.New("mpi")}
	b.KeepCache()
	flag.StringVar(&b.sources, "sources", "examples", "folder with the examples' sources, to compile them for Open MPI")
	flag.StringVar(&b.builds, "builds", "", "folder for the build of MPICH; without it one in the user's cache")
	flag.IntVar(&b.rounds, "rounds", 10, "measurements of each side")
	flag.IntVar(&b.jobs, "jobs", 200, "jobs of each family, in the part hang")
	b.RunParts(b.parts(), promises, b.ready)
}

func (b *bench) ready() (err error) {
	if b.rounds < 1 || b.jobs < 1 {
		return errors.New("-rounds and -jobs are at least 1")
	}
	// Before the user's own cache is another.
	if b.builds == "" {
		if b.builds, err = mpich.DefaultCache(); err != nil {
			return fmt.Errorf("%w: name a folder with -builds", err)
		}
	}
	return os.Setenv("XDG_CACHE_HOME", b.Cache)
}

// mpirun is a job on clones of this machine, as a user runs it, in a folder of its programs.
func (b *bench) mpirun(ctx context.Context, within time.Duration, dir string, args ...string) (jobs.Job, error) {
	return jobs.Run(ctx, within, func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, b.Binary, args...)
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
	dir := filepath.Join(b.Tmp, name)
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
