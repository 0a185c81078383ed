package mpich

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Version is that of Debian 12's source package.
const (
	Version  = "4.0.2-3"
	upstream = "4.0.2" // without what Debian adds
)

// archive is where Debian's source packages are when this machine's own sources name no place.
const archive = "http://deb.debian.org/debian bookworm main"

// fetchSource fetches and unpacks the source package in dir, and returns the folder of the source. Signatures are checked by
// apt. Its lists are in dir, too: whether the machine has lists of source packages makes no difference.
func fetchSource(ctx context.Context, dir string) (string, error) {
	for tool, pkg := range map[string]string{"apt-get": "apt", "dpkg-source": "dpkg-dev", "xz": "xz-utils", "patch": "patch"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("fetch the source of MPICH: %s is not there: apt install %s", tool, pkg)
		}
	}
	lists := filepath.Join(dir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return "", err
	}
	// Lists are large, and wanted once.
	defer os.RemoveAll(lists)
	var sources strings.Builder
	for _, place := range places(ctx) {
		fmt.Fprintf(&sources, "deb-src %s\n", place)
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, []byte(sources.String()), 0o644); err != nil {
		return "", err
	}
	apt := func(args ...string) error {
		return command(ctx, dir, filepath.Join(dir, "apt.log"), "apt-get", append([]string{
			"-q", "-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + dir, "-o", "Acquire::Retries=3",
			// Its own user cannot enter a user's cache.
			"-o", "APT::Sandbox::User=root",
		}, args...)...)
	}
	if err := apt("update"); err != nil {
		return "", err
	}
	if err := apt("source", "--download-only", "mpich="+Version); err != nil {
		return "", err
	}
	source := filepath.Join(dir, "mpich-"+upstream)
	return source, command(ctx, dir, filepath.Join(dir, "unpack.log"), "dpkg-source", "-x", "mpich_"+Version+".dsc", source)
}

// places are where this machine fetches Debian 12 from.
func places(ctx context.Context) (found []string) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian", "Codename: bookworm", "Component: main").Output()
	for place := range strings.Lines(string(out)) {
		found = append(found, strings.TrimSpace(place))
	}
	if err != nil || len(found) == 0 {
		return []string{archive}
	}
	return found
}

// command runs a program in dir with its output in a file, whose last lines an error has.
func command(ctx context.Context, dir, log, name string, args ...string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, f, f
	err = errors.Join(cmd.Run(), f.Close())
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	said, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	return fmt.Errorf("%s %s: %w; %s ends with:\n%s", name, strings.Join(args, " "), err, log, strings.Join(lines[max(0, len(lines)-5):], "\n"))
}
