package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
)

// module is this project's.
const module = "github.com/mpirun-sf/mpirun-sf/"

// rigPackage has tests that are about the host's side of the rig.
const rigPackage = module + "xen/rig"

// A suite is the tests of one package, compiled.
type suite struct {
	name   string // the package without the module: "xen/rig/smoke"
	binary string // path
	dir    string // path of the folder it runs in: a copy of the package's
}

// A bundle is all suites, and the guest of the driver's, in a folder that goes into the rig.
type bundle struct {
	dir    string
	suites []suite
}

// guest is the path of the program that the driver's tests have guests run.
func (b *bundle) guest() string { return filepath.Join(b.dir, "guest") }

// bin is the folder of a group's test binaries.
func (b *bundle) bin(group int) string { return filepath.Join(b.dir, "bin", strconv.Itoa(group)) }

// A part is suites that run in one rig.
type part struct {
	name    string
	suites  []suite
	product bool // in the rig is the launcher
}

// parts divides the suites into two that take about as long, those that run the launcher and the others, or into one.
func (b *bundle) parts(one bool) (parts []part) {
	launcher, driver := part{name: "launcher"}, part{name: "driver"}
	for _, s := range b.suites {
		p, product := &driver, strings.HasPrefix(s.name, ofProduct)
		if product || one {
			p = &launcher
		}
		p.suites = append(p.suites, s)
		p.product = p.product || product
	}
	for _, p := range []part{launcher, driver} {
		if len(p.suites) > 0 {
			parts = append(parts, p)
		}
	}
	return parts
}

// compile makes test binaries of the packages below dir, and copies their folders, which hold what tests read.
func compile(ctx context.Context, dir string, patterns []string, covered string) (*bundle, error) {
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"}, patterns...)...)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	b := &bundle{dir: filepath.Join(dir, "tests")}
	// go names a binary by its package's last name, which two may have: the second goes with others to another folder.
	var groups [][]string
	same := map[string]int{}
	for line := range strings.Lines(string(out)) {
		path, from, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || path == rigPackage {
			continue
		}
		s := suite{name: strings.TrimPrefix(path, module)}
		last := filepath.Base(path)
		group := same[last]
		same[last]++
		s.binary = filepath.Join(b.bin(group), last+".test")
		s.dir = filepath.Join(b.dir, "src", s.name)
		if err := copyFolder(s.dir, from); err != nil {
			return nil, fmt.Errorf("copy the folder of %s: %w", s.name, err)
		}
		b.suites = append(b.suites, s)
		if group == len(groups) {
			groups = append(groups, nil)
		}
		groups[group] = append(groups[group], path)
	}
	if len(b.suites) == 0 {
		return nil, fmt.Errorf("no package of %s has tests", strings.Join(patterns, " "))
	}
	if err := goTool(ctx, "compile the tests' guest", "build", "-trimpath", "-o", b.guest(), conformance.Program); err != nil {
		return nil, err
	}
	// One command, which compiles a package that several are tested with once, and as many side by side as there are processors.
	for group, packages := range groups {
		to := b.bin(group)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return nil, err
		}
		if err := goTool(ctx, "compile the tests", append([]string{"test", "-c", "-trimpath", "-cover", "-coverpkg", covered, "-o", to + "/"}, packages...)...); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func goTool(ctx context.Context, what string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", what, err, out)
	}
	return nil
}

// copyFolder copies a package's files and its testdata, and not the packages below it.
func copyFolder(to, from string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		at := filepath.Join(to, e.Name())
		switch {
		case e.Name() == "testdata":
			err = errors.Join(err, os.CopyFS(at, os.DirFS(filepath.Join(from, e.Name()))))
		case e.Type().IsRegular():
			var content []byte
			if content, err = os.ReadFile(filepath.Join(from, e.Name())); err == nil {
				err = os.WriteFile(at, content, 0o644)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
