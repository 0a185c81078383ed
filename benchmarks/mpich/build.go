package mpich

import (
	"context"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/debian"
)

// source is Debian 12's.
var source = debian.Source{Name: "mpich", Version: Version}

// Version is that of Debian 12's source package.
const Version = "4.0.2-3"

// Folders are those of MPICH's test suite that are about launchers: how jobs begin, find each other, spawn, fail and end.
var Folders = []string{"init", "spawn", "errors/spawn", "ft", "errhan"}

// BindingFolder is about hydra's options for binding. It has no testlist, but a script.
const BindingFolder = "impls/hydra"

// Device is what MPICH sends with: this one can spawn, and ends across hosts, under hydra too.
const Device = "ch3:nemesis"

// configured is how MPICH is configured. What tests of launchers do not use is left out.
var configured = []string{
	"--with-device=" + Device, "--with-pm=hydra", "--with-datatype-engine=dataloop", "--with-hwloc=embedded",
	"--disable-fortran", "--disable-cxx", "--disable-romio", "--disable-static", "--enable-shared",
	// The name that Debian's build has, so that programs find this one instead.
	"MPILIBNAME=mpich",
}

// unmaintained keeps make from running the autotools, which the patches of Debian would make it do.
var unmaintained = []string{"ACLOCAL=:", "AUTOCONF=:", "AUTOHEADER=:", "AUTOMAKE=:"}

// Build is MPICH, and its tests.
type Build struct {
	Prefix string // where MPICH is installed
	Tests  string // test/mpi of its source
}

// Hydra is the build's own launcher.
func (b *Build) Hydra() string { return filepath.Join(b.Prefix, "bin", "mpiexec.hydra") }

// Compiler is its compiler for C. What it compiles needs no LD_LIBRARY_PATH.
func (b *Build) Compiler() string { return filepath.Join(b.Prefix, "bin", "mpicc") }

// Libraries is the folder of its libraries: the LD_LIBRARY_PATH with which programs of Debian's MPICH run on it.
func (b *Build) Libraries() string { return filepath.Join(b.Prefix, "lib") }

// Folder is where the programs of a folder of tests are.
func (b *Build) Folder(name string) string { return filepath.Join(b.Tests, filepath.FromSlash(name)) }

// DefaultCache is the folder for builds in the user's cache.
func DefaultCache() (string, error) { return debian.DefaultCache(source.Name) }

// Open finds the build in the cache. Where there is none, the error is fs.ErrNotExist.
func Open(cache string) (*Build, error) {
	dir, err := debian.Open(cache, name())
	if err != nil {
		return nil, fmt.Errorf("there is no build of MPICH and its tests in %s: make test-mpich makes one: %w", cache, err)
	}
	return in(dir), nil
}

// in is the build in its folder.
func in(dir string) *Build {
	return &Build{filepath.Join(dir, "mpich"), filepath.Join(source.Folder(dir), "test", "mpi")}
}

// name is that of the build in the cache. What it is made of is in it.
func name() string {
	sum := sha256.Sum256(fmt.Append(nil, Version, Folders, BindingFolder, configured))
	return fmt.Sprintf("mpich-%s-%x", Version, sum[:4])
}

// Make finds the build in the cache, or makes it with so many compilers at once. That takes some minutes, of which
// progress tells.
func Make(ctx context.Context, cache string, jobs int, progress func(format string, args ...any)) (*Build, error) {
	dir, err := debian.Make(cache, name(), func(dir string) error {
		progress("fetching the source of MPICH %s", Version)
		if _, err := source.Fetch(ctx, dir); err != nil {
			return err
		}
		began := time.Now()
		if err := debian.Run(ctx, dir, steps(dir, jobs), progress); err != nil {
			return fmt.Errorf("build MPICH: %w", err)
		}
		progress("MPICH and its tests were built in %v", time.Since(began).Round(time.Second))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return in(dir), nil
}

// steps make MPICH, and then its tests with it.
func steps(dir string, jobs int) []debian.Step {
	b, of, parallel := in(dir), source.Folder(dir), fmt.Sprintf("-j%d", jobs)
	steps := []debian.Step{
		{Name: "configure", Dir: of, Program: "./configure", Args: slices.Concat([]string{"--prefix=" + b.Prefix}, configured, unmaintained)},
		{Name: "make", Dir: of, Program: "make", Args: []string{parallel, "V=1"}},
		{Name: "install", Dir: of, Program: "make", Args: []string{"install"}},
		{Name: "configure-tests", Dir: b.Tests, Program: "./configure", Args: slices.Concat(
			[]string{"--with-mpi=" + b.Prefix, "--disable-fortran", "--disable-cxx", "--enable-ft-tests", "--enable-xfail"}, unmaintained)},
	}
	for _, f := range append([]string{BindingFolder}, Folders...) {
		steps = append(steps, debian.Step{Name: "tests-" + strings.ReplaceAll(f, "/", "-"), Dir: b.Folder(f), Program: "make", Args: []string{parallel}})
	}
	return steps
}
