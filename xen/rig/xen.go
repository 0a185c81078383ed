package rig

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Xen is a hypervisor and the tools of its version.
type Xen struct {
	Version string // of the hypervisor's package
	Package string // that package, without a version
	Source  string // the source package, without a version
	Image   string // path of the hypervisor, which boots by the multiboot protocol
	Root    string // folder with the tools' files, at the paths below it that they have when installed
}

// multiboot is the hypervisor's file in a part of the cache.
const multiboot = "xen"

// unwanted are folders of the packages that a dom0 of the rig has no use for. Python's would bring Python.
var unwanted = []string{"boot", "usr/share", "usr/lib/xen-*/lib", "usr/lib/debug", "etc/init.d", "etc/default", "usr/bin/pygrub", "usr/lib/xen-*/bin/pygrub"}

// Stock is the distribution's Xen.
func (c *Cache) Stock(ctx context.Context) (*Xen, error) {
	packages, err := xenPackages(ctx)
	if err != nil {
		return nil, fmt.Errorf("find Xen's packages: %w", err)
	}
	recipe := append([]string{}, unwanted...)
	for _, p := range packages {
		recipe = append(recipe, p.String())
	}
	dir, err := c.part(ctx, "packages", recipe, func(dir string) error {
		c.Log("fetching %v and %d other packages", packages[0], len(packages)-1)
		root := filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			return err
		}
		if err := unpack(ctx, root, packages); err != nil {
			return err
		}
		images, _ := filepath.Glob(filepath.Join(root, "boot/xen-*.gz"))
		if len(images) != 1 {
			return fmt.Errorf("the package %v has %d files boot/xen-*.gz instead of one", packages[0], len(images))
		}
		if err := gunzip(filepath.Join(dir, multiboot), images[0]); err != nil {
			return err
		}
		for _, u := range unwanted {
			found, _ := filepath.Glob(filepath.Join(root, u))
			for _, f := range found {
				if err := os.RemoveAll(f); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	source, _, _ := strings.Cut(packages[0].Source, " ")
	return &Xen{packages[0].Version, packages[0].Name, source, filepath.Join(dir, multiboot), filepath.Join(dir, "root")}, nil
}

func gunzip(dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("decompress %s: %w", filepath.Base(src), err)
	}
	out, err := os.Create(dst)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, z)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("decompress %s: %w", filepath.Base(src), err)
	}
	return nil
}
