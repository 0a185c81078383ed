package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Module is one kernel module that the guest loads.
type Module struct {
	Name string // as in /proc/modules: with underscores
	Path string // file, may be compressed (.ko, .ko.gz, .ko.xz, .ko.zst)
}

// wanted are the modules that a guest needs, roots of the dependency graph, in
// the order in which they should come up.
var wanted = []struct {
	name     string
	required bool
}{
	// ext4 and jbd2 ask the crypto layer for crc32c by an alias ("softdep pre:
	// crypto-crc32c"), which only a modprobe in the guest could answer.
	{"crc32c_generic", false}, {"crc32c_intel", false},
	// Debian's kernel wants virtio_ring in before virtio; naming it first keeps
	// that even where dependencies do not say so.
	{"virtio_ring", true}, {"virtio", true},
	{"virtio_pci", true}, {"virtio_mmio", false},
	{"virtio_blk", true}, {"virtio_console", true}, {"virtio_net", true},
	{"virtio_balloon", true}, {"virtio_rng", false}, {"vmgenid", false},
	{"9pnet", true}, {"9pnet_fd", false}, {"9p", true},
	{"ext4", true},
}

// modules is what depmod knows of one kernel.
type modules struct {
	path    map[string]string   // name → file
	deps    map[string][]string // name → names needed before it
	builtin map[string]bool
}

// moduleName is the module's name from its file: dashes and underscores are the
// same to the kernel, and so is compression.
func moduleName(path string) string {
	name := filepath.Base(path)
	if i := strings.Index(name, ".ko"); i >= 0 {
		name = name[:i]
	}
	return strings.ReplaceAll(name, "-", "_")
}

// readModules reads what is in dir (…/lib/modules/RELEASE): modules.dep where
// depmod has run, otherwise the modules themselves, which costs a look into
// thousands of files, at those that the wanted ones and more lead to.
func readModules(dir string, more ...string) (*modules, error) {
	m := &modules{path: map[string]string{}, deps: map[string][]string{}, builtin: map[string]bool{}}
	if b, err := os.ReadFile(filepath.Join(dir, "modules.builtin")); err == nil {
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line != "" {
				m.builtin[moduleName(line)] = true
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err == nil {
		if err := m.parseDep(dir, b); err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "modules.dep"), err)
		}
		if len(m.path) > 0 {
			return m, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read modules: %w", err)
	}
	return m, m.walk(dir, more)
}

// parseDep reads modules.dep: "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko …",
// paths relative to dir or absolute.
func (m *modules) parseDep(dir string, b []byte) error {
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		file, needs, ok := strings.Cut(line, ":")
		if !ok {
			return fmt.Errorf("line %d has no colon", n)
		}
		name := moduleName(file)
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		m.path[name] = file
		// The file lists the whole closure, last needed first.
		for _, f := range strings.Fields(needs) {
			m.deps[name] = append(m.deps[name], moduleName(f))
		}
	}
	return sc.Err()
}

// walk finds the module files below dir and reads the dependencies of those that
// order may need, following them from the wanted ones and from more.
func (m *modules) walk(dir string, more []string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			m.path[moduleName(path)] = path
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	var follow func(name string) error
	follow = func(name string) error {
		file, ok := m.path[name]
		if _, seen := m.deps[name]; seen || !ok {
			return nil
		}
		needs, err := moduleDepends(file)
		if err != nil {
			return err
		}
		m.deps[name] = needs
		for _, n := range needs {
			if err := follow(n); err != nil {
				return err
			}
		}
		return nil
	}
	for _, w := range wanted {
		if err := follow(w.name); err != nil {
			return err
		}
	}
	for _, name := range more {
		if err := follow(name); err != nil {
			return err
		}
	}
	return nil
}

// order lists the wanted modules and all that they depend on, each after what it
// needs, and then more in the same way. It fails naming the first required module
// that the kernel lacks.
func (m *modules) order(release string, more ...string) ([]Module, error) {
	var out []Module
	state := map[string]int{} // 1: being placed, 2: placed
	var place func(name string) error
	place = func(name string) error {
		switch {
		case state[name] == 2 || m.builtin[name]:
			return nil
		case state[name] == 1:
			return fmt.Errorf("module %s depends on itself", name)
		}
		file, ok := m.path[name]
		if !ok {
			return fmt.Errorf("has no module %s", name)
		}
		state[name] = 1
		for _, need := range m.deps[name] {
			if err := place(need); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, Module{Name: name, Path: file})
		return nil
	}
	for _, w := range wanted {
		required := w.required
		// The socket transport left 9pnet for a module of its own in 5.17.
		if w.name == "9pnet_fd" && compareReleases(release, "5.17") >= 0 {
			required = true
		}
		if _, ok := m.path[w.name]; !ok && !m.builtin[w.name] && !required {
			continue
		}
		if err := place(w.name); err != nil {
			return nil, err
		}
	}
	for _, name := range more {
		if err := place(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// compareReleases orders kernel releases by their numbers ("6.1.0-9" before
// "6.1.0-56"), then by their text.
func compareReleases(a, b string) int {
	na, nb := numbers(a), numbers(b)
	for i := 0; i < len(na) && i < len(nb); i++ {
		if na[i] != nb[i] {
			if na[i] < nb[i] {
				return -1
			}
			return 1
		}
	}
	if len(na) != len(nb) {
		if len(na) < len(nb) {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}

// numbers are the decimal numbers at the front of a release: "6.1.0-56-amd64" →
// 6 1 0 56. It stops at the flavour, whose digits ("amd64") order nothing.
func numbers(release string) []int {
	var out []int
	for _, part := range strings.FieldsFunc(release, func(r rune) bool { return r == '.' || r == '-' || r == '+' || r == '~' }) {
		n := 0
		for _, r := range part {
			if r < '0' || r > '9' || n > 1<<30 {
				return out
			}
			n = n*10 + int(r-'0')
		}
		out = append(out, n)
	}
	return out
}
