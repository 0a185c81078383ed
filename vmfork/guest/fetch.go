package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// kernelPackage is the name that stands for the distribution's current full
	// kernel; the package of that name is empty and depends on it.
	kernelPackage = "linux-image-amd64"

	aptTimeout = 5 * time.Minute
)

// errNoPackage says that this machine's packages cannot provide a kernel.
var errNoPackage = errors.New("install a full kernel with its modules (Debian: apt install " + kernelPackage + ")")

// fetchKernel downloads the kernel package and keeps what a guest needs of it in
// kernels/RELEASE. Launchers that do so at the same time wait for one another.
func fetchKernel(ctx context.Context, kernels string, log func(string), more ...string) (*Kernel, error) {
	for _, tool := range []string{"apt-cache", "apt-get", "dpkg-deb"} {
		if _, err := lookTool(tool); err != nil {
			return nil, errNoPackage
		}
	}
	if err := os.MkdirAll(kernels, 0o700); err != nil {
		return nil, fmt.Errorf("make kernel cache: %w", err)
	}
	unlock, err := lockFile(ctx, filepath.Join(kernels, "lock"), 2*aptTimeout, func() {
		log("waiting for another mpirun-sf that is fetching the guest kernel")
	})
	if err != nil {
		return nil, fmt.Errorf("wait for another download of the kernel: %w", err)
	}
	defer unlock()
	if k := keptKernel(kernels, more...); k != nil {
		return k, nil
	}
	// We hold the lock, so these are a killed launcher's.
	old, _ := filepath.Glob(filepath.Join(kernels, "tmp-*"))
	for _, d := range old {
		os.RemoveAll(d)
	}
	tmp, err := os.MkdirTemp(kernels, "tmp-")
	if err != nil {
		return nil, fmt.Errorf("fetch kernel: %w", outOfSpace(err, kernels))
	}
	defer os.RemoveAll(tmp)

	name, err := currentKernelPackage(ctx, log)
	if err != nil {
		return nil, err
	}
	log("fetching the guest kernel: package " + name + ", about 70 MB, first run only")
	dctx, cancel := context.WithTimeout(ctx, aptTimeout)
	defer cancel()
	// The sandbox user _apt cannot enter our 0700 folder; apt warns about it.
	if _, err := runTool(dctx, tmp, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return nil, fmt.Errorf("download package %s: %w; is the network reachable? Or install it: apt install %s", name, outOfSpace(err, kernels), kernelPackage)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return nil, fmt.Errorf("download package %s: apt-get left %d files instead of one", name, len(debs))
	}
	unpacked := filepath.Join(tmp, "x")
	if _, err := runTool(dctx, tmp, "dpkg-deb", "--extract", debs[0], unpacked); err != nil {
		return nil, fmt.Errorf("unpack package %s: %w", name, outOfSpace(err, kernels))
	}
	k, err := kernelBelow(unpacked, more...)
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", name, err)
	}
	small := filepath.Join(tmp, "keep")
	if err := k.keep(small); err != nil {
		return nil, outOfSpace(err, kernels)
	}
	kept := filepath.Join(kernels, k.Release)
	os.RemoveAll(kept) // unusable, or keptKernel had found it
	if err := os.Rename(small, kept); err != nil {
		return nil, fmt.Errorf("keep kernel: %w", err)
	}
	return kernelBelow(kept, more...)
}

// currentKernelPackage asks apt which package linux-image-amd64 stands for. The
// package lists are fetched only where there are none.
func currentKernelPackage(ctx context.Context, log func(string)) (string, error) {
	ask := func() (string, error) {
		actx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		out, err := runTool(actx, "", "apt-cache", "depends", kernelPackage)
		if err != nil {
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			return "", nil // "No packages found"
		}
		return parseDepends(out), nil
	}
	name, err := ask()
	if name != "" || err != nil {
		return name, err
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("apt knows no package %s: as root, run apt-get update, or %w", kernelPackage, errNoPackage)
	}
	log("fetching the lists of packages (apt-get update)")
	uctx, cancel := context.WithTimeout(ctx, aptTimeout)
	defer cancel()
	if _, err := runTool(uctx, "", "apt-get", "-q", "-o", "APT::Sandbox::User=root", "update"); err != nil {
		return "", fmt.Errorf("fetch the lists of packages: %w; is the network reachable? Or %w", err, errNoPackage)
	}
	name, err = ask()
	if name == "" && err == nil {
		err = fmt.Errorf("apt knows no package %s: %w", kernelPackage, errNoPackage)
	}
	return name, err
}

// imagePackage matches a versioned kernel image package and nothing that apt
// would take for a pattern.
var imagePackage = regexp.MustCompile(`^linux-image-[0-9][0-9a-z.+~-]*-amd64$`)

// parseDepends picks the kernel image from the output of "apt-cache depends", ""
// if it names none.
func parseDepends(out string) string {
	for line := range strings.Lines(out) {
		kind, name, ok := strings.Cut(strings.TrimSpace(line), ":")
		name = strings.TrimSpace(name)
		if ok && strings.TrimPrefix(kind, "|") == "Depends" && imagePackage.MatchString(name) && !strings.Contains(name, "cloud") {
			return name
		}
	}
	return ""
}
