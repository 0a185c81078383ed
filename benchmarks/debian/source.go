package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Source is a source package of Debian 12.
type Source struct {
	Name, Version string // such as mpich, 4.0.2-3
	// Pristine leaves out what Debian adds to what the authors have released.
	Pristine bool
}

// archive is where Debian's source packages are when this machine's own sources name no place.
const archive = "http://deb.debian.org/debian bookworm main"

// Upstream is the version without what Debian adds to it.
func (s Source) Upstream() string {
	if i := strings.LastIndexByte(s.Version, '-'); i >= 0 {
		return s.Version[:i]
	}
	return s.Version
}

// Folder is where Fetch unpacks the source in dir.
func (s Source) Folder(dir string) string { return filepath.Join(dir, s.Name+"-"+s.Upstream()) }

// Fetch fetches and unpacks the source package in dir, and returns the folder of the source. Signatures and sums are checked by
// apt. Its lists are in dir, too: whether the machine has lists of source packages makes no difference.
func (s Source) Fetch(ctx context.Context, dir string) (string, error) {
	tools := map[string]string{"apt-get": "apt", "dpkg-source": "dpkg-dev", "xz": "xz-utils", "patch": "patch"}
	if s.Pristine {
		tools = map[string]string{"apt-get": "apt", "tar": "tar", "gzip": "gzip", "xz": "xz-utils"}
	}
	if err := need(tools); err != nil {
		return "", fmt.Errorf("fetch the source of %s: %w", s.Name, err)
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
	fetch := []string{"source", "--download-only", s.Name + "=" + s.Version}
	if s.Pristine {
		fetch = append(fetch, "--tar-only")
	}
	if err := apt(fetch...); err != nil {
		return "", err
	}
	return s.Folder(dir), s.unpack(ctx, dir)
}

func (s Source) unpack(ctx context.Context, dir string) error {
	log := filepath.Join(dir, "unpack.log")
	if !s.Pristine {
		return command(ctx, dir, log, "dpkg-source", "-x", s.Name+"_"+s.Version+".dsc", s.Folder(dir))
	}
	archives, err := filepath.Glob(filepath.Join(dir, s.Name+"_"+s.Upstream()+".orig.tar.*"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("apt-get source %s has left %d archives of the source in %s instead of one: %v", s.Name, len(archives), dir, archives)
	}
	if err := os.Mkdir(s.Folder(dir), 0o755); err != nil {
		return err
	}
	// Authors name the folder in it as they like.
	return command(ctx, dir, log, "tar", "-xf", archives[0], "--strip-components=1", "--no-same-owner", "-C", s.Folder(dir))
}

// places are where this machine fetches Debian 12 from, its security updates among them.
func places(ctx context.Context) (found []string) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(CODENAME) $(SITE) $(RELEASE) $(COMPONENT)",
		"Created-By: Packages", "Origin: Debian", "Component: main").Output()
	for line := range strings.Lines(string(out)) {
		codename, place, _ := strings.Cut(strings.TrimSpace(line), " ")
		if codename == "bookworm" || strings.HasPrefix(codename, "bookworm-") {
			found = append(found, place)
		}
	}
	if err != nil || len(found) == 0 {
		return []string{archive}
	}
	return found
}
