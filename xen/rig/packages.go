package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// aptTimeout is how long one call of apt-get may take, a download included.
const aptTimeout = 5 * time.Minute

// systemPackage depends on this distribution's hypervisor and tools, whatever their version.
const systemPackage = "xen-system-amd64"

// A Package is a package of the machine's distribution, in the version that apt would install.
type Package struct {
	Name, Version string
	Source        string // the source package's name, with a version in parentheses where that is another
	Depends       []string
}

func (p Package) String() string { return p.Name + "=" + p.Version }

// candidates asks apt for packages, in the order of names. Where apt has no lists of packages, root fetches them.
func candidates(ctx context.Context, names ...string) ([]Package, error) {
	found, err := known(ctx, names)
	if err == nil || ctx.Err() != nil {
		return found, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: as root, run apt-get update", err)
	}
	if _, err := apt(ctx, "", "update"); err != nil {
		return nil, fmt.Errorf("fetch the lists of packages: %w; is the network reachable?", err)
	}
	return known(ctx, names)
}

func known(ctx context.Context, names []string) ([]Package, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// It exits with an error if it knows only some, of which it tells all the same.
	out, err := output(ctx, "", "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	byName := map[string]Package{}
	for _, p := range parsePackages(out) {
		byName[p.Name] = p
	}
	var found []Package
	for _, name := range names {
		p, ok := byName[name]
		if !ok {
			return nil, errors.Join(fmt.Errorf("apt knows no package %s (Debian has them for amd64)", name), err)
		}
		found = append(found, p)
	}
	return found, nil
}

// versionsOf are the versions of a package that apt can fetch, the one that it would install first.
func versionsOf(ctx context.Context, name string) ([]string, error) {
	out, err := output(ctx, "", "apt-cache", "madison", name)
	if err != nil {
		return nil, fmt.Errorf("ask apt for versions of %s: %w", name, err)
	}
	versions := parseVersions(out)
	if len(versions) == 0 {
		return nil, fmt.Errorf("apt knows no version of %s", name)
	}
	return versions, nil
}

// parseVersions reads what "apt-cache madison" prints: a package, a version and a place on each line, with bars between.
func parseVersions(out string) (versions []string) {
	for line := range strings.Lines(out) {
		fields := strings.Split(line, "|")
		if len(fields) != 3 {
			continue
		}
		if v := strings.TrimSpace(fields[1]); v != "" && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	return versions
}

// parsePackages reads what "apt-cache show" prints: paragraphs of fields, one package each.
func parsePackages(out string) (found []Package) {
	for paragraph := range strings.SplitSeq(out, "\n\n") {
		var p Package
		for line := range strings.Lines(paragraph) {
			field, value, _ := strings.Cut(line, ":")
			value = strings.TrimSpace(value)
			switch field {
			case "Package":
				p.Name = value
			case "Version":
				p.Version = value
			case "Source":
				p.Source = value
			case "Depends":
				for d := range strings.SplitSeq(value, ",") {
					if words := strings.Fields(d); len(words) > 0 {
						p.Depends = append(p.Depends, words[0])
					}
				}
			}
		}
		if p.Name != "" && p.Version != "" {
			found = append(found, p)
		}
	}
	return found
}

// xenPackages are the hypervisor, its tools, and the libraries of theirs that a machine without Xen may not have. The first
// is the hypervisor.
func xenPackages(ctx context.Context) ([]Package, error) {
	system, err := candidates(ctx, systemPackage)
	if err != nil {
		return nil, err
	}
	names := []string{"", ""}
	for _, d := range system[0].Depends {
		switch {
		case strings.HasPrefix(d, "xen-hypervisor-4"):
			names[0] = d
		case strings.HasPrefix(d, "xen-utils-4"):
			names[1] = d
		}
	}
	if names[0] == "" || names[1] == "" {
		return nil, fmt.Errorf("the package %v depends on %s, and not on xen-hypervisor-4… and xen-utils-4…", system[0], strings.Join(system[0].Depends, ", "))
	}
	tools, err := candidates(ctx, names[1])
	if err != nil {
		return nil, err
	}
	names = append(names, "xen-utils-common", "xenstore-utils", "libxenhypfs1", "libxendevicemodel1", "libxentoolcore1", "busybox-static")
	for _, d := range tools[0].Depends {
		if strings.HasPrefix(d, "lib") && d != "libc6" && !slices.Contains(names, d) {
			names = append(names, d)
		}
	}
	return candidates(ctx, names...)
}

// unpack downloads packages, whose signatures apt checks, and unpacks them below dir.
func unpack(ctx context.Context, dir string, packages []Package) error {
	debs := filepath.Join(dir, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	args := []string{"download"}
	for _, p := range packages {
		args = append(args, p.String())
	}
	if _, err := apt(ctx, debs, args...); err != nil {
		return fmt.Errorf("download %s: %w; is the network reachable?", strings.Join(args[1:], " "), err)
	}
	found, _ := filepath.Glob(filepath.Join(debs, "*.deb"))
	if len(found) != len(packages) {
		return fmt.Errorf("download %s: apt-get left %d files instead of %d", strings.Join(args[1:], " "), len(found), len(packages))
	}
	for _, deb := range found {
		if _, err := output(ctx, dir, "dpkg-deb", "--extract", deb, dir); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	return nil
}

// apt runs apt-get in dir. Its own user could not enter a user's cache.
func apt(ctx context.Context, dir string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, aptTimeout, fmt.Errorf("apt-get had no end after %v", aptTimeout))
	defer cancel()
	return output(ctx, dir, "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"}, args...)...)
}
