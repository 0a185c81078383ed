package openmpi

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Launcher is an Open MPI's own launcher on this machine.
type Launcher struct {
	Path    string
	Version Version
	dialect dialect
}

// versionLimit is how long a launcher may take to say which it is.
const versionLimit = 20 * time.Second

// Find finds the launcher that belongs to a library of Open MPI's, or else one
// on PATH. libraries are those that the program is linked with.
func Find(ctx context.Context, libraries []string) (Launcher, error) {
	var candidates []string
	for _, lib := range libraries {
		base := filepath.Base(lib)
		if !strings.HasPrefix(base, "libmpi.so") && !strings.HasPrefix(base, "libopen-pal.so") {
			continue
		}
		// In a prefix, libraries are in lib or, on Debian, in a folder of it.
		for _, up := range []string{"../bin", "../../bin"} {
			for _, name := range launcherNames() {
				candidates = append(candidates, filepath.Join(filepath.Dir(lib), up, name))
			}
		}
	}
	candidates = append(candidates, launcherNames()...)
	var wrong error
	tried := map[string]bool{}
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err != nil || tried[path] {
			continue
		}
		tried[path] = true
		l, err := ask(ctx, path)
		if err == nil {
			return l, nil
		}
		wrong = err
	}
	if wrong != nil {
		return Launcher{}, fmt.Errorf("find Open MPI's launcher: %w", wrong)
	}
	return Launcher{}, fmt.Errorf("find Open MPI's launcher: neither beside the program's library nor on PATH is there an orterun: %s", dialects[0].install)
}

// launcherNames are all names, once each, in order.
func launcherNames() (names []string) {
	for _, d := range slices.Backward(dialects) {
		for _, n := range d.launchers {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// ask asks a launcher for its version.
func ask(ctx context.Context, path string) (l Launcher, err error) {
	limit, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	out, err := exec.CommandContext(limit, path, "--version").Output()
	switch {
	case limit.Err() != nil && ctx.Err() == nil:
		return l, fmt.Errorf("%s --version did not answer in %v", path, versionLimit)
	case err != nil:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, firstLine(exit.Stderr))
		}
		return l, fmt.Errorf("%s --version: %w", path, err)
	}
	l.Path = path
	if l.Version, err = parseVersion(string(out)); err == nil {
		l.dialect, err = dialectOf(l.Version)
	}
	if err != nil {
		return l, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// Parameter is a setting of Open MPI's.
type Parameter struct{ Name, Value string }

// Parameters are those of the runtime that a launcher must have to start its
// daemons in clones. agent is the command of remote shell agents.
func (l Launcher) Parameters(agent string) []Parameter {
	d := l.dialect
	return []Parameter{
		{d.agent, agent},
		{d.flat, "1"}, // clones have no way to start daemons in others
		{d.attached, "1"},
		{d.literal, "1"}, // clones' names are no business of this machine's resolver
	}
}

// Run is what a launcher is to run.
type Run struct {
	Agent   string // command of remote shell agents
	Clones  []Clone
	Ranks   int
	Network string // of the clones, as 10.1.0.0/16
	Dir     string
	Argv    []string // the program is an absolute path
	Label   bool     // begin lines of output with their rank
	Root    bool     // it runs as root
	Limit   time.Duration
}

// Command is the launcher's command line. It listens to loopback alone.
func (l Launcher) Command(r Run) []string {
	d := l.dialect
	args := []string{l.name()}
	if r.Root {
		args = append(args, "--allow-run-as-root")
	}
	for _, p := range l.Parameters(r.Agent) {
		args = append(args, d.parameter, p.Name, p.Value)
	}
	args = append(args, d.parameter, d.networks, "lo")
	if d.limit != "" {
		args = append(args, d.parameter, d.limit, strconv.Itoa(max(1, int(r.Limit.Seconds()))))
	}
	args = append(args, d.library, "btl_tcp_if_include", r.Network)
	var hosts []string
	for _, c := range r.Clones {
		hosts = append(hosts, c.Name+":"+strconv.Itoa(c.Slots))
	}
	// As the ticket says: consecutive ranks, clone after clone. Virtual CPUs move
	// between cores, so binding ranks to them would be for nothing.
	args = append(args, "--host", strings.Join(hosts, ","), "-np", strconv.Itoa(r.Ranks), "--map-by", "slot", "--bind-to", "none")
	if r.Label {
		args = append(args, d.tag...)
	}
	return append(append(args, "--wdir", r.Dir), r.Argv...)
}

// name is what the launcher is started as. By an absolute path it takes the
// folder that it is in for the prefix of the installation in the clones, too,
// which is right only for one that is not the system's.
func (l Launcher) name() string {
	if dir := filepath.Dir(l.Path); dir == "/usr/bin" || dir == "/bin" {
		return filepath.Base(l.Path)
	}
	return l.Path
}
