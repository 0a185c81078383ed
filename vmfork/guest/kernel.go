package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Kernel is a Linux kernel that can be a guest's: with the modules for virtio,
// 9P and ext4, loadable in the order given.
type Kernel struct {
	Release string   // "6.1.0-56-amd64"
	Path    string   // compressed kernel image (bzImage)
	Modules []Module // in load order; what is built in is not listed

	dir string // …/lib/modules/RELEASE
}

// FindKernel returns the newest full kernel below /boot and /lib/modules; where
// the machine has none (a container, a cloud kernel), the one kept in
// cacheDir/kernels; where that is empty too, it downloads the package that the
// distribution's linux-image-amd64 depends on into it, about 70 MB, without
// installing it. log gets one line for each slow step; it may be nil.
//
// more are names of modules that are wanted besides, after the guest's own. What is
// kept is no more than was asked for, so who wants others has a cacheDir of its own.
//
// It fails with one line that says what to install. Downloading is given five
// minutes, fetching package lists as root another five.
func FindKernel(ctx context.Context, cacheDir string, log func(string), more ...string) (*Kernel, error) {
	if log == nil {
		log = func(string) {}
	}
	k, why := kernelBelow("/", more...)
	if k != nil {
		return k, nil
	}
	kernels := filepath.Join(cacheDir, "kernels")
	if k := keptKernel(kernels, more...); k != nil {
		return k, nil
	}
	k, err := fetchKernel(ctx, kernels, log, more...)
	if err == nil || ctx.Err() != nil {
		return k, err
	}
	if errors.Is(err, errNoPackage) && why != nil {
		return nil, fmt.Errorf("find a guest kernel: %w; %w", why, err)
	}
	return nil, fmt.Errorf("find a guest kernel: %w", err)
}

// kernelBelow returns the newest usable kernel of the file system at root. If
// there is none, the error says what was wrong with the newest one, or that
// there is none at all.
func kernelBelow(root string, more ...string) (*Kernel, error) {
	images := map[string]string{} // release → kernel image
	for _, pattern := range []string{"usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, p := range found {
			images[filepath.Base(filepath.Dir(p))] = p
		}
	}
	found, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	for _, p := range found {
		images[strings.TrimPrefix(filepath.Base(p), "vmlinuz-")] = p
	}
	var releases []string
	for r := range images {
		releases = append(releases, r)
	}
	slices.SortFunc(releases, func(a, b string) int { return compareReleases(b, a) })
	var first error
	for _, r := range releases {
		k, err := kernelWithModules(root, r, images[r], more)
		if err == nil {
			return k, nil
		}
		if first == nil {
			first = fmt.Errorf("kernel %s %w", r, err)
		}
	}
	if first == nil {
		first = fmt.Errorf("no kernel in %s", filepath.Join(root, "boot"))
	}
	return nil, first
}

// kernelWithModules checks that the kernel can be read and has all modules. Its
// errors complete a sentence that begins with the kernel's name.
func kernelWithModules(root, release, image string, more []string) (*Kernel, error) {
	f, err := os.Open(image)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("is readable for root only (%s)", image)
		}
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	f.Close()
	// Merged and split /usr alike.
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		dir := filepath.Join(root, lib, release)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		m, err := readModules(dir, more...)
		if err != nil {
			return nil, fmt.Errorf("has unreadable modules: %w", err)
		}
		order, err := m.order(release, more...)
		if err != nil {
			if strings.Contains(release, "cloud") {
				return nil, fmt.Errorf("%w (it is a cloud kernel)", err)
			}
			return nil, err
		}
		for _, mod := range order {
			if _, err := os.Stat(mod.Path); err != nil {
				return nil, fmt.Errorf("lacks a file that its modules.dep names: %w", err)
			}
		}
		return &Kernel{Release: release, Path: image, Modules: order, dir: dir}, nil
	}
	return nil, fmt.Errorf("has no modules in %s", filepath.Join(root, "lib/modules", release))
}

// keptKernel returns the newest kernel that an earlier run left in the cache:
// each is a small root of its own, DIR/RELEASE/{boot,lib}.
func keptKernel(kernels string, more ...string) *Kernel {
	roots, _ := filepath.Glob(filepath.Join(kernels, "[0-9]*"))
	slices.SortFunc(roots, func(a, b string) int { return compareReleases(filepath.Base(b), filepath.Base(a)) })
	for _, root := range roots {
		if k, err := kernelBelow(root, more...); err == nil {
			return k
		}
	}
	return nil
}

// Keep puts the kernel and its modules into cacheDir, where [FindKernel] finds
// them if the machine has no kernel.
func (k *Kernel) Keep(cacheDir string) error {
	return k.keep(filepath.Join(cacheDir, "kernels", k.Release))
}

// keep copies the kernel and its modules from k into a small root below dir, in
// a form that kernelBelow finds quickly: with a modules.dep of just these.
func (k *Kernel) keep(dir string) error {
	mods := filepath.Join(dir, "lib/modules", k.Release)
	boot := filepath.Join(dir, "boot")
	for _, d := range []string{mods, boot} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("keep kernel: %w", err)
		}
	}
	if err := copyFile(filepath.Join(boot, "vmlinuz-"+k.Release), k.Path, 0o600); err != nil {
		return fmt.Errorf("keep kernel: %w", err)
	}
	var dep strings.Builder
	var before []string
	for _, m := range k.Modules {
		name := filepath.Base(m.Path)
		if err := copyFile(filepath.Join(mods, name), m.Path, 0o600); err != nil {
			return fmt.Errorf("keep module: %w", err)
		}
		// Each module is said to need all that came before it: this keeps the
		// order, and they are all loaded anyway.
		fmt.Fprintf(&dep, "%s: %s\n", name, strings.Join(before, " "))
		before = append(before, name)
	}
	builtin := filepath.Join(k.dir, "modules.builtin")
	if err := copyFile(filepath.Join(mods, "modules.builtin"), builtin, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep modules: %w", err)
	}
	if err := os.WriteFile(filepath.Join(mods, "modules.dep"), []byte(dep.String()), 0o600); err != nil {
		return fmt.Errorf("keep modules: %w", err)
	}
	return nil
}
