package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/rig"

	_ "github.com/mpirun-sf/mpirun-sf/xen" // which says what its guests need
)

// ofProduct begins the names of packages whose tests run the launcher.
const ofProduct = "mpirun-sf/e2e/"

// envProduct names the variable with the folder in which those find the launcher, and the examples.
const envProduct = "MPIRUN_SF_XEN_PRODUCT"

// productFree is what the rig's disk has room for besides, in bytes: images of guests and their checkpoints.
const productFree = 2 << 30

// productTools are what the launcher wants of a machine to make a guest's disk, and what its tests do with processes.
var productTools = []string{"/sbin/mke2fs", "/etc/mke2fs.conf", "/sbin/ldconfig", "/bin/bash"}

// product makes a folder with the launcher and the examples, and a cache with the kernel for guests, which in a machine
// without a network cannot be fetched. The last of env are for what runs them.
func product(ctx context.Context, c *rig.Cache, dir string) (with, env []string, err error) {
	make := exec.CommandContext(ctx, "make", "-s", "build", "examples")
	if out, err := make.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("make build examples: %w\n%s", err, out)
	}
	to := filepath.Join(dir, "product")
	cache := filepath.Join(to, "cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, nil, err
	}
	with = []string{cache}
	examples, err := filepath.Glob("bin/examples/*")
	if err != nil {
		return nil, nil, err
	}
	for _, from := range append(examples, "bin/mpirun-sf") {
		info, err := os.Stat(from)
		if err != nil {
			return nil, nil, err
		}
		if info.IsDir() {
			continue
		}
		content, err := os.ReadFile(from)
		at := filepath.Join(to, filepath.Base(from))
		if err = errors.Join(err, os.WriteFile(at, content, 0o755)); err != nil {
			return nil, nil, err
		}
		with = append(with, at)
	}
	kind, err := hypervisor.Choose("xen")
	if err != nil {
		return nil, nil, err
	}
	kernel, err := c.GuestKernel(ctx, kind.Modules)
	if err != nil {
		return nil, nil, err
	}
	if err := (&guest.Cache{Dir: filepath.Join(cache, "mpirun-sf")}).KeepKernel(kernel, kind.Modules...); err != nil {
		return nil, nil, err
	}
	for _, t := range productTools {
		if _, err := os.Stat(t); err == nil {
			with = append(with, t)
		}
	}
	return with, []string{envProduct + "=" + to, "XDG_CACHE_HOME=" + cache}, nil
}
