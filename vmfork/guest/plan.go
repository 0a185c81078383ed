package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

const (
	// formatVersion is part of every key; it changes with anything in this package
	// that makes an image differ.
	formatVersion = 2

	// DefaultFree is the space that a root has left for what runs in it.
	DefaultFree = 256 << 20
)

// A Spec says what a guest image is for.
type Spec struct {
	Program     string // path of the program whose closure the root holds; "" for none
	LibraryPath string // LD_LIBRARY_PATH that it runs with
	Agent       string // static binary that is the guest's init
	User        User
	Tools       bool     // what somebody at a shell expects: see Tools
	With        []string // more programs, files and folders of this machine, absolute paths; each brings what it needs to work
	Needs       []string // what the program runs and reads besides, see Command; what cannot be brought is not
	Shared      []string // folders of this machine that guests mount: what lies there is not brought for Needs' sake
	Hooks       []string // executables of this machine that each clone runs before anything else, in this order
	Free        int64    // bytes to leave free in the root; 0 is DefaultFree
	Kernel      *Kernel  // nil: what FindKernel finds
	Modules     []string // of the kernel that is found, beside those that all guests need
}

// purpose is what the image is for, for who lists images.
func (s Spec) purpose() string {
	switch {
	case s.Program != "":
		return s.Program
	case s.Tools:
		return strings.Join(append([]string{"a shell"}, s.With...), ", ")
	}
	return strings.Join(s.With, ", ")
}

// A plan is the root file system before it is one.
type plan struct {
	files *Files // the program's; nil without one
	tree  tree   // of this machine
	made  []made
	agent string // path on this machine
	free  int64
}

// newPlan works out what goes into the root.
func newPlan(spec Spec) (*plan, error) {
	if err := spec.User.check(); err != nil {
		return nil, err
	}
	if err := checkAgent(spec.Agent); err != nil {
		return nil, err
	}
	shell := "/bin/sh"
	if bash, err := lookGuest("bash"); spec.Tools && err == nil {
		shell = bash
	}
	p := &plan{tree: tree{}, made: skeleton(spec.User, shell), agent: spec.Agent, free: spec.Free}
	if p.free == 0 {
		p.free = DefaultFree
	}
	if p.free < 0 {
		return nil, fmt.Errorf("plan root: %d bytes of free space are less than none", p.free)
	}
	l := newLinker(spec.LibraryPath)
	if spec.Program != "" {
		files, err := Closure(spec.Program, spec.LibraryPath)
		if err != nil {
			return nil, err
		}
		p.files = files
		for _, f := range files.Files {
			p.tree[f.Path] = f
		}
	}
	p.tree.addTopLinks()
	// A shell for scripts and system(3). Busybox, if the machine has it, makes do
	// for the commands that such a script expects.
	for _, name := range []string{"/bin/sh", "/bin/busybox"} {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := l.addProgram(p.tree, name); err != nil {
			return nil, fmt.Errorf("plan root: %w", err)
		}
	}
	if _, err := p.tree.add("/etc/localtime"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("plan root: %w", err)
	}
	g := &gatherer{l: l, t: p.tree}
	if spec.Tools {
		g.addShell()
		p.made = append(p.made, shellFiles(p.tree)...)
	}
	for _, name := range spec.Needs {
		g.need(name, spec.Shared)
	}
	for _, name := range spec.With {
		if err := g.add(name); err != nil {
			return nil, fmt.Errorf("bring %s into the guest: %w", name, err)
		}
	}
	if p.files != nil {
		// What a script or a Python runs counts as well.
		p.files.UCX = p.files.UCX || len(spec.Needs) > 0 && p.tree.has("libucp.so") && (p.tree.has("libmpich.so") || p.tree.has("libmpi.so.12"))
	}
	if p.files != nil && p.files.UCX {
		// The agent has it. Without it the program could hang at its end.
		if _, err := Progress(); err != nil {
			return nil, err
		}
	}
	for i, name := range spec.Hooks {
		hook, err := g.hook(i, name)
		if err != nil {
			return nil, fmt.Errorf("hook %s: %w", name, err)
		}
		p.made = append(p.made, hook)
	}
	// A file of the machine gives way to one that is made: nothing but the
	// configuration of libraries is taken from /etc. A folder that is a link on
	// this machine (/home → /data/home) stays one.
	for i, m := range p.made {
		if !m.dir {
			delete(p.tree, m.path)
		}
		p.made[i].path = p.tree.real(m.path)
	}
	return p, nil
}

// key is the content that an image is made from, as hexadecimal SHA-256. Files of
// the machine count by identity, size and times rather than by content: reading
// 50 MB of libraries would take longer than the fork, and a Java has 300. One of
// the times is that of the last change (ctime), which only the kernel sets, so no
// other content goes unnoticed, even with the old size and date; that a file that
// was merely moved about makes a new image is the price.
func (p *plan) key(kernel *Kernel) (string, error) {
	h := sha256.New()
	if err := hashBoot(h, p.agent, kernel); err != nil {
		return "", err
	}
	for _, f := range p.tree.files() {
		fmt.Fprintf(h, "file %q %q %t %o %d %d %d %d\n", f.Path, f.Link, f.Dir, f.Mode, f.Size, f.ModTime.UnixNano(), f.Changed.UnixNano(), f.Inode)
	}
	for _, m := range p.made {
		fmt.Fprintf(h, "made %q %o %t %d %d %q %q\n", m.path, m.mode, m.dir, m.uid, m.gid, m.link, m.content)
	}
	fmt.Fprintf(h, "free %d\n", p.free)
	// The cache of libraries is made from it, so are the libraries' places.
	for _, d := range ldConf("/etc/ld.so.conf") {
		fmt.Fprintf(h, "lib %q\n", d)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashBoot writes what the initramfs is made from.
func hashBoot(h io.Writer, agent string, kernel *Kernel) error {
	f, err := os.Open(agent)
	if err != nil {
		return fmt.Errorf("hash agent: %w", err)
	}
	defer f.Close()
	ah := sha256.New()
	if _, err := io.Copy(ah, f); err != nil {
		return fmt.Errorf("hash agent: %w", err)
	}
	k, err := os.Stat(kernel.Path)
	if err != nil {
		return fmt.Errorf("hash kernel: %w", err)
	}
	names := make([]string, 0, len(kernel.Modules))
	for _, m := range kernel.Modules {
		names = append(names, m.Name)
	}
	fmt.Fprintf(h, "guest image %d\nagent %x\nkernel %q %d %d\nmodules %q\n", formatVersion, ah.Sum(nil), kernel.Release, k.Size(), k.ModTime().UnixNano(), names)
	return nil
}

// libraries are the paths of the shared objects, for the manifest.
func (p *plan) libraries() []string {
	var out []string
	if p.files != nil {
		for _, f := range p.files.Files {
			if f.Link == "" {
				out = append(out, f.Path)
			}
		}
	}
	return slices.Clip(out)
}
