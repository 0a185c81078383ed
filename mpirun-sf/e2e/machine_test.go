package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A process is one of ours: the launcher tested, or what it started.
type process struct {
	pid, parent int
	argv        []string
}

func (p process) String() string {
	return fmt.Sprintf("process %d: %.120s", p.pid, strings.Join(p.argv, " "))
}

// is says whether the process is the launcher's subcommand of that name.
func (p process) is(subcommand string) bool { return len(p.argv) > 1 && p.argv[1] == subcommand }

// isQEMU says whether the process is a hypervisor, and whose: the name of a
// clone, or "" for any.
func (p process) isQEMU(name string) bool {
	return len(p.argv) > 0 && strings.Contains(p.argv[0], "qemu-system") && strings.Contains(strings.Join(p.argv, " "), name)
}

// processes lists what is ours of what runs, but for the virtual machine that
// tests share.
func processes() []process {
	all := allProcesses()
	return slices.DeleteFunc(slices.Clone(all), func(p process) bool { return descends(all, p, machine.pid()) })
}

// descends tells whether a process is, or was started by way of, ancestor.
func descends(all []process, p process, ancestor int) bool {
	for ancestor != 0 && p.pid != ancestor {
		i := slices.IndexFunc(all, func(q process) bool { return q.pid == p.parent })
		if i < 0 {
			return false
		}
		p = all[i]
	}
	return ancestor != 0
}

// allProcesses knows other jobs on the machine from ours: ours have our mark in
// their environment or run our copy of the binary.
func allProcesses() []process {
	entries, _ := os.ReadDir("/proc")
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || marker == "" {
			continue
		}
		dir := "/proc/" + e.Name()
		environ, _ := os.ReadFile(dir + "/environ")
		exe, _ := os.Readlink(dir + "/exe")
		if !bytes.Contains(environ, []byte(marker)) && strings.TrimSuffix(exe, " (deleted)") != launcher {
			continue
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		if bytes.HasPrefix(cmdline, []byte("testcluster-")) {
			continue // a host of the tests'
		}
		p := process{pid: pid, argv: strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")}
		stat, _ := os.ReadFile(dir + "/stat")
		// The name in parentheses may hold anything.
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 {
			var state byte
			fmt.Sscanf(string(stat[i+1:]), " %c %d", &state, &p.parent)
		}
		out = append(out, p)
	}
	return out
}

// awaitNoProcess waits until nothing of ours runs and returns what still does.
func awaitNoProcess() []process {
	var left []process
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if left = processes(); len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// takeSnapshot lists, one thing a string, what jobs could leave behind. What
// lives in namespaces without a name goes with its last process, and those are
// listed.
func takeSnapshot() ([]string, error) {
	var out []string
	for _, p := range processes() {
		out = append(out, p.String())
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network links: %w", err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	named, _ := filepath.Glob("/run/netns/*")
	for _, path := range named {
		out = append(out, "network namespace "+path)
		out = append(out, linksIn(path)...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// "… ID PARENT DEV ROOT POINT OPTIONS … - TYPE SOURCE OPTIONS"
		left, right, _ := strings.Cut(strings.TrimSpace(line), " - ")
		if f := strings.Fields(left); len(f) > 4 {
			out = append(out, "mount "+f[4]+" "+right)
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), "mpirun-sf") {
			out = append(out, "cgroup "+path)
		}
		return nil
	})
	out = append(out, leftFiles()...)
	slices.Sort(out)
	return slices.Compact(out), nil
}

func linksIn(namespace string) []string {
	ns, err := netns.GetFromPath(namespace)
	if err != nil {
		return nil // it is going just now
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil
	}
	defer h.Close()
	links, _ := h.LinkList()
	var out []string
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name+" in "+namespace)
	}
	return out
}

// leftFiles lists files that only a living job may have: reservations that
// nobody holds any more, and temporary files.
func leftFiles() []string {
	var out []string
	jobs, _ := filepath.Glob("/run/mpirun-sf/jobs/*.job")
	for _, path := range jobs {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if !errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) {
			out = append(out, "file "+path)
		}
		f.Close()
	}
	if cacheDir != "" {
		out = append(out, temporaryFiles(cacheDir)...)
	}
	if tempDir != "" {
		left, _ := os.ReadDir(tempDir)
		for _, f := range left {
			out = append(out, "file "+filepath.Join(tempDir, f.Name()))
		}
	}
	return out
}

// temporaryFiles lists what has "tmp" in its name below a cache.
func temporaryFiles(cache string) []string {
	var out []string
	filepath.WalkDir(filepath.Join(cache, "mpirun-sf"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), "tmp") {
			out = append(out, "file "+path)
		}
		if err == nil && d.IsDir() && d.Name() == "kernels" {
			return fs.SkipDir
		}
		return nil
	})
	return out
}

// awaitSnapshot waits until nothing is there that was not before, and returns
// what still is: a killed process may take a moment to go.
func awaitSnapshot(before []string) (left []string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now, err := takeSnapshot()
		if err != nil {
			return []string{err.Error()}
		}
		left = slices.DeleteFunc(now, func(s string) bool { return slices.Contains(before, s) })
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// nothingIsLeft checks the machine at the end of a test against its beginning.
func nothingIsLeft(t *testing.T) {
	t.Helper()
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := awaitSnapshot(before); len(left) > 0 {
			t.Errorf("left behind:\n\t%s", strings.Join(left, "\n\t"))
		}
	})
}
