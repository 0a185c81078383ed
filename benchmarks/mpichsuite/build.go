package main

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

// folders are those of MPICH's test suite that are about launchers: how jobs begin, find each other, spawn, fail and end.
var folders = []string{"init", "spawn", "errors/spawn", "ft", "errhan"}

// bindingFolder is about hydra's options for binding. It has no testlist, but a script.
const bindingFolder = "impls/hydra"

// configured is how MPICH is configured. What tests of launchers do not use is left out.
var configured = []string{
	"--with-device=ch3:nemesis", "--with-pm=hydra", "--with-datatype-engine=dataloop", "--with-hwloc=embedded",
	"--disable-fortran", "--disable-cxx", "--disable-romio", "--disable-static", "--enable-shared",
}

// unmaintained keeps make from running the autotools, which the patches of Debian would make it do.
var unmaintained = []string{"ACLOCAL=:", "AUTOCONF=:", "AUTOHEADER=:", "AUTOMAKE=:"}

// suite is a build of MPICH, and of its tests.
type suite struct {
	prefix string // where MPICH is installed
	tests  string // test/mpi of its source
}

// mpiexec is the build's own launcher.
func (s *suite) mpiexec() string { return filepath.Join(s.prefix, "bin", "mpiexec.hydra") }

// folder is where the programs of a folder of tests are.
func (s *suite) folder(name string) string { return filepath.Join(s.tests, filepath.FromSlash(name)) }

// open finds the build in the cache.
func openSuite(cache string) (*suite, error) {
	dir := suiteFolder(cache)
	if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
		return nil, fmt.Errorf("there is no build of MPICH's test suite in %s: make test-mpich makes one: %w", cache, err)
	}
	return &suite{filepath.Join(dir, "mpich"), filepath.Join(dir, "mpich-"+upstream, "test", "mpi")}, nil
}

// suiteFolder is the folder of the build in the cache. What it is made of is in its name.
func suiteFolder(cache string) string {
	sum := sha256.Sum256(fmt.Append(nil, version, folders, bindingFolder, configured))
	return filepath.Join(cache, fmt.Sprintf("mpich-%s-%x", version, sum[:4]))
}

// makeSuite finds the build in the cache, or makes it. That takes some minutes.
func makeSuite(ctx context.Context, cache string, jobs int) (*suite, error) {
	dir := suiteFolder(cache)
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
	if s, err := openSuite(cache); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	progress("fetching the source of MPICH %s", version)
	source, err := fetchSource(ctx, dir)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := build(ctx, dir, source, jobs); err != nil {
		return nil, fmt.Errorf("build MPICH: %w", err)
	}
	progress("MPICH and its tests were built in %v", time.Since(began).Round(time.Second))
	if err := os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644); err != nil {
		return nil, err
	}
	return openSuite(cache)
}

// build makes MPICH, and then its tests with it.
func build(ctx context.Context, dir, source string, jobs int) error {
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
	for _, f := range append([]string{bindingFolder}, folders...) {
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
