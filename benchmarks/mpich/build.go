package mpich

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

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
func DefaultCache() (string, error) {
	own, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w", err)
	}
	return filepath.Join(own, "mpirun-sf-mpich"), nil
}

// Open finds the build in the cache. Where there is none, the error is fs.ErrNotExist.
func Open(cache string) (*Build, error) {
	dir := folderIn(cache)
	if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
		return nil, fmt.Errorf("there is no build of MPICH and its tests in %s: make test-mpich makes one: %w", cache, err)
	}
	return &Build{filepath.Join(dir, "mpich"), filepath.Join(dir, "mpich-"+upstream, "test", "mpi")}, nil
}

// folderIn is the folder of the build in the cache. What it is made of is in its name.
func folderIn(cache string) string {
	sum := sha256.Sum256(fmt.Append(nil, Version, Folders, BindingFolder, configured))
	return filepath.Join(cache, fmt.Sprintf("mpich-%s-%x", Version, sum[:4]))
}

// Make finds the build in the cache, or makes it with so many compilers at once. That takes some minutes, of which
// progress tells.
func Make(ctx context.Context, cache string, jobs int, progress func(format string, args ...any)) (*Build, error) {
	dir := folderIn(cache)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	// Dropped with the process. Whoever waits finds the build.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if b, err := Open(cache); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	progress("fetching the source of MPICH %s", Version)
	source, err := fetchSource(ctx, dir)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := build(ctx, dir, source, jobs, progress); err != nil {
		return nil, fmt.Errorf("build MPICH: %w", err)
	}
	progress("MPICH and its tests were built in %v", time.Since(began).Round(time.Second))
	if err := os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644); err != nil {
		return nil, err
	}
	return Open(cache)
}

// build makes MPICH, and then its tests with it.
func build(ctx context.Context, dir, source string, jobs int, progress func(format string, args ...any)) error {
	for tool, pkg := range map[string]string{"gcc": "gcc", "make": "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not there: apt install %s", tool, pkg)
		}
	}
	prefix, tests, parallel := filepath.Join(dir, "mpich"), filepath.Join(source, "test", "mpi"), fmt.Sprintf("-j%d", jobs)
	steps := []struct {
		name, dir, program string
		args               []string
	}{
		{"configure", source, "./configure", append(append([]string{"--prefix=" + prefix}, configured...), unmaintained...)},
		{"make", source, "make", []string{parallel, "V=1"}},
		{"install", source, "make", []string{"install"}},
		{"configure-tests", tests, "./configure", append([]string{"--with-mpi=" + prefix, "--disable-fortran", "--disable-cxx", "--enable-ft-tests", "--enable-xfail"}, unmaintained...)},
	}
	for _, f := range append([]string{BindingFolder}, Folders...) {
		name := "tests-" + strings.ReplaceAll(f, "/", "-")
		steps = append(steps, struct {
			name, dir, program string
			args               []string
		}{name, filepath.Join(tests, f), "make", []string{parallel}})
	}
	for _, s := range steps {
		progress("%s", s.name)
		if err := command(ctx, s.dir, filepath.Join(dir, s.name+".log"), s.program, s.args...); err != nil {
			return err
		}
	}
	return nil
}
