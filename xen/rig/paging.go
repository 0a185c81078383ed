package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// pagingConfig is what a hypervisor with memory paging has in its configuration that Debian's does not: its authors do not
// support it, and hide it behind the first two.
var pagingConfig = []string{"CONFIG_EXPERT=y", "CONFIG_UNSUPPORTED=y", "CONFIG_MEM_PAGING=y"}

// compileTimeout is how long the hypervisor's compilation may take.
const compileTimeout = 30 * time.Minute

// Paging is the hypervisor of the stock Xen's source package, compiled anew with memory paging; tools are the stock ones, for
// the interface between them is the same.
func (c *Cache) Paging(ctx context.Context, stock *Xen) (*Xen, error) {
	dir, err := c.part(ctx, "paging", append([]string{stock.Source, stock.Version}, pagingConfig...), func(dir string) error {
		for tool, pkg := range map[string]string{
			"apt-get": "apt", "dpkg-source": "dpkg-dev", "make": "make", "gcc": "gcc", "python3": "python3", "flex": "flex", "bison": "bison",
		} {
			if _, err := exec.LookPath(tool); err != nil {
				return fmt.Errorf("%s is not there: apt-get install %s", tool, pkg)
			}
		}
		c.Log("fetching the source of %s %s", stock.Source, stock.Version)
		source, err := fetchSource(ctx, dir, stock)
		if err != nil {
			return err
		}
		defer os.RemoveAll(source)
		c.Log("compiling Xen with memory paging, which takes some minutes, the first time only")
		begin := time.Now()
		if err := compile(ctx, filepath.Join(source, "xen")); err != nil {
			return err
		}
		c.Log("Xen was compiled in %v", time.Since(begin).Round(time.Second))
		return os.Rename(filepath.Join(source, "xen", "xen"), filepath.Join(dir, multiboot))
	})
	if err != nil {
		return nil, err
	}
	paging := *stock
	paging.Image = filepath.Join(dir, multiboot)
	return &paging, nil
}

// fetchSource fetches the source package, whose signature apt checks, and returns the folder in which it is unpacked. The
// lists of source packages are apt's own only for this once: most machines have none, and they are large.
func fetchSource(ctx context.Context, dir string, x *Xen) (string, error) {
	lists := filepath.Join(dir, "lists")
	defer os.RemoveAll(lists)
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return "", err
	}
	out, err := output(ctx, "", "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages", "Origin: Debian", "Component: main")
	if err != nil {
		return "", fmt.Errorf("find where packages come from: %w", err)
	}
	var sources strings.Builder
	for place := range strings.Lines(out) {
		fmt.Fprintf(&sources, "deb-src %s\n", strings.TrimSpace(place))
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, []byte(sources.String()), 0o644); err != nil {
		return "", err
	}
	defer os.Remove(list)
	own := []string{"-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + lists}
	if _, err := apt(ctx, dir, append(own, "update")...); err != nil {
		return "", fmt.Errorf("fetch the lists of source packages: %w; is the network reachable?", err)
	}
	if _, err := apt(ctx, dir, append(own, "source", "--download-only", x.Source+"="+x.Version)...); err != nil {
		return "", fmt.Errorf("fetch the source package: %w; is the network reachable?", err)
	}
	descriptions, _ := filepath.Glob(filepath.Join(dir, "*.dsc"))
	if len(descriptions) != 1 {
		return "", fmt.Errorf("fetch the source package: apt-get left %d files *.dsc instead of one", len(descriptions))
	}
	source := filepath.Join(dir, "source")
	if _, err := output(ctx, dir, "dpkg-source", "--extract", filepath.Base(descriptions[0]), source); err != nil {
		return "", fmt.Errorf("unpack the source package: %w", err)
	}
	fetched, _ := filepath.Glob(filepath.Join(dir, x.Source+"_*"))
	for _, f := range fetched {
		os.Remove(f)
	}
	return source, nil
}

// compile makes the hypervisor in the folder of its source.
func compile(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, compileTimeout, fmt.Errorf("the compilation had no end after %v", compileTimeout))
	defer cancel()
	make := func(args ...string) error {
		_, err := output(ctx, dir, "make", append([]string{"XEN_TARGET_ARCH=x86_64", "clang=n"}, args...)...)
		return err
	}
	if err := make("defconfig"); err != nil {
		return fmt.Errorf("configure Xen: %w", err)
	}
	config := filepath.Join(dir, ".config")
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("configure Xen: %w", err)
	}
	_, err = f.WriteString(strings.Join(pagingConfig, "\n") + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("configure Xen: %w", err)
	}
	if err := make("olddefconfig"); err != nil {
		return fmt.Errorf("configure Xen: %w", err)
	}
	got, err := os.ReadFile(config)
	if err != nil {
		return fmt.Errorf("configure Xen: %w", err)
	}
	for _, want := range pagingConfig {
		if !strings.Contains("\n"+string(got), "\n"+want+"\n") {
			return fmt.Errorf("configure Xen: this version does not take %s", want)
		}
	}
	if err := make(fmt.Sprintf("-j%d", runtime.NumCPU()), "build"); err != nil {
		return fmt.Errorf("compile Xen: %w", err)
	}
	return nil
}
