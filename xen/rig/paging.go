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

	"github.com/mpirun-sf/mpirun-sf/benchmarks/debian"
)

// pagingConfig is what a hypervisor with memory paging has in its configuration that Debian's does not: its authors do not
// support it, and hide it behind the first two.
var pagingConfig = []string{"CONFIG_EXPERT=y", "CONFIG_UNSUPPORTED=y", "CONFIG_MEM_PAGING=y"}

// compileTimeout is how long the hypervisor's compilation may take.
const compileTimeout = 30 * time.Minute

// versionFile is a file in a part of the cache with the version of what was compiled.
const versionFile = "version"

// Paging is the hypervisor of the stock Xen's source package, compiled anew with memory paging; tools are the stock ones, for
// the interface between them is the same within a release.
func (c *Cache) Paging(ctx context.Context, stock *Xen) (*Xen, error) {
	dir, err := c.part(ctx, "paging", append([]string{stock.Source, stock.Version}, pagingConfig...), func(dir string) error {
		for tool, pkg := range map[string]string{"make": "make", "gcc": "gcc", "python3": "python3", "flex": "flex", "bison": "bison"} {
			if _, err := exec.LookPath(tool); err != nil {
				return fmt.Errorf("%s is not there: apt-get install %s", tool, pkg)
			}
		}
		fetched := filepath.Join(dir, "source")
		if err := os.Mkdir(fetched, 0o755); err != nil {
			return err
		}
		defer os.RemoveAll(fetched)
		source, version, err := c.fetchSource(ctx, fetched, stock)
		if err != nil {
			return err
		}
		c.Log("compiling Xen with memory paging, which takes some minutes, the first time only")
		begin := time.Now()
		if err := compile(ctx, filepath.Join(source, "xen")); err != nil {
			return err
		}
		c.Log("Xen was compiled in %v", time.Since(begin).Round(time.Second))
		if err := os.WriteFile(filepath.Join(dir, versionFile), []byte(version), 0o644); err != nil {
			return err
		}
		return os.Rename(filepath.Join(source, "xen", "xen"), filepath.Join(dir, multiboot))
	})
	if err != nil {
		return nil, err
	}
	version, err := os.ReadFile(filepath.Join(dir, versionFile))
	if err != nil {
		return nil, err
	}
	paging := *stock
	paging.Image, paging.Version = filepath.Join(dir, multiboot), string(version)
	return &paging, nil
}

// fetchSource fetches the source package and unpacks it in a folder of dir: that of the stock Xen's version or, where the archive
// has only the packages of that one and not their source, that of the next version that it has.
func (c *Cache) fetchSource(ctx context.Context, dir string, stock *Xen) (source, version string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, aptTimeout, fmt.Errorf("fetching the source had no end after %v", aptTimeout))
	defer cancel()
	versions, err := versionsOf(ctx, stock.Package)
	if err != nil {
		return "", "", err
	}
	var errs []error
	for _, version := range versions {
		c.Log("fetching the source of %s %s", stock.Source, version)
		source, err := debian.Source{Name: stock.Source, Version: version}.Fetch(ctx, dir)
		if err == nil {
			return source, version, nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return "", "", errors.Join(errs...)
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
