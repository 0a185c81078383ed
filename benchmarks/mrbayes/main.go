// Command mrbayes builds MrBayes with MPI from the source that Debian has, and says where it is: an application for tests.
//
//	cd "$(go run ./benchmarks/mrbayes)" && ls build/src/mb mrbayes-*/examples
//
// Debian's own package mrbayes-mpi is a program that is not linked with any MPI. This one is built as its authors say
// (INSTALL): away from its source, by configure --with-mpi and make, with Debian's compiler for MPICH. The build is kept in
// the user's cache, and the next time it is only found.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/debian"
)

// source is Debian 12's. Its authors' part of it is all that a user needs who builds it.
var source = debian.Source{Name: "mrbayes", Version: "3.2.7a-6", Pristine: true}

// configured is how MrBayes is configured: with MPI, and otherwise without what not every machine has.
var configured = []string{"--with-mpi", "--without-readline", "--without-beagle", "--disable-avx", "--disable-fma", "MPICC=mpicc.mpich"}

// plain has it compiled for any x86-64: configure takes what this machine's processor has, and not every virtual one has that.
var plain = []string{"SIMD_FLAGS=", "CPUEXT_FLAGS="}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mrbayes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cache := flag.String("cache", "", "folder where MrBayes is built, and kept; without it one in the user's cache")
	jobs := flag.Int("jobs", runtime.NumCPU(), "compilers at once")
	flag.Parse()
	if *cache == "" {
		own, err := debian.DefaultCache(source.Name)
		if err != nil {
			return fmt.Errorf("%w: name a folder with -cache", err)
		}
		*cache = own
	}
	sum := sha256.Sum256(fmt.Append(nil, configured, plain))
	dir, err := debian.Make(*cache, fmt.Sprintf("%s-%s-%x", source.Name, source.Version, sum[:4]), func(dir string) error {
		progress("fetching the source of MrBayes %s", source.Version)
		of, err := source.Fetch(ctx, dir)
		if err != nil {
			return err
		}
		build := filepath.Join(dir, "build")
		if err := os.Mkdir(build, 0o755); err != nil {
			return err
		}
		return debian.Run(ctx, dir, []debian.Step{
			{Name: "configure", Dir: build, Program: filepath.Join(of, "configure"), Args: configured},
			{Name: "make", Dir: filepath.Join(build, "src"), Program: "make", Args: slices.Concat(plain, []string{fmt.Sprintf("-j%d", *jobs)})},
		}, progress)
	})
	if err != nil {
		return err
	}
	fmt.Println(dir)
	return nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "mrbayes: "+format+"\n", args...)
}
