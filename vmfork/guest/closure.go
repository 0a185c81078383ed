package guest

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Files is what a program needs of this machine besides itself.
type Files struct {
	Program string // absolute path, without symbolic links
	Kind    Kind
	Files   []File   // libraries and plugins, and the links to them, in order of path
	UCX     bool     // libucp is among them, for MPICH: the program needs the preload of Progress
	LeftOut []string // plugins that were left out, each with the reason
}

// Bytes is the size of the files together.
func (f *Files) Bytes() int64 {
	var n int64
	for _, e := range f.Files {
		if e.Link == "" {
			n += e.Size
		}
	}
	return n
}

// Closure lists what the program at binary needs to run, in the way the dynamic
// linker would find it, without running anything: the linker itself, libraries,
// and the plugins that libraries open by name at run time. libraryPath is the
// LD_LIBRARY_PATH that the program will run with.
//
// A missing library is an error, for the user; plugins that cannot be resolved,
// or that would bring in X11 or a GPU's libraries, are left out.
func Closure(binary, libraryPath string) (*Files, error) {
	program, err := filepath.Abs(binary)
	if err != nil {
		return nil, fmt.Errorf("find the program: %w", err)
	}
	o, err := readProgram(program)
	if err != nil {
		return nil, err
	}
	l := newLinker(libraryPath)
	files := &Files{Program: program}
	t := tree{}
	if o == nil {
		files.Kind = KindScript
		names, err := interpreters(program, lookTool)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := l.addProgram(t, name); err != nil {
				return nil, fmt.Errorf("interpreter of %s: %w", binary, err)
			}
		}
		files.Files = t.files()
		return files, nil
	}
	files.Program = o.real
	set, err := l.program(t, o)
	if err != nil {
		return nil, err
	}
	switch {
	case o.interp == "":
		files.Kind = KindStatic
	default:
		if files.Kind = mpiKind(slices.Concat(o.needed, set.names())); files.Kind == 0 {
			files.Kind = KindDynamic
		}
	}
	files.UCX = set.ucx(o)
	files.LeftOut = set.leftOut
	files.Files = t.files()
	return files, nil
}

// UsesUCX is [Files.UCX] of a program. Plugins are not looked for, and nothing is
// said of what is missing: so it takes a fraction of Closure's time.
func UsesUCX(binary, libraryPath string) bool {
	program, err := filepath.Abs(binary)
	if err != nil {
		return false
	}
	o, err := readProgram(program)
	if err != nil || o == nil || o.interp == "" {
		return false
	}
	set := newLinker(libraryPath).set()
	set.resolve(o)
	return set.ucx(o)
}

// ucx tells whether a program of MPICH is linked with UCX. Open MPI has it among its
// plugins, and does not wait in read(PMI_FD).
func (s *linkSet) ucx(o *object) bool {
	return s.has("libucp.so") && mpiKind(slices.Concat(o.needed, s.names())) != KindOpenMPI
}

// addProgram puts a program and its closure into t.
func (l *linker) addProgram(t tree, path string) error {
	o, err := readProgram(path)
	if err != nil {
		return err
	}
	if _, err := t.add(path); err != nil {
		return fmt.Errorf("add program: %w", err)
	}
	if o == nil {
		return nil // a script; its interpreter is the caller's business
	}
	_, err = l.program(t, o)
	return err
}

// program puts the closure of a program that has been read into t.
func (l *linker) program(t tree, o *object) (*linkSet, error) {
	set := l.set()
	if o.interp == "" {
		return set, nil
	}
	if _, err := t.add(o.interp); err != nil {
		return nil, fmt.Errorf("%s wants the dynamic linker %s, which is not there: compile it on this machine", o.path, o.interp)
	}
	if missing := set.resolve(o); len(missing) > 0 {
		return nil, fmt.Errorf("%s: install it, or name its folder in LD_LIBRARY_PATH", missing[0])
	}
	// Opened by glibc itself, for pthread_cancel and for accounts (before 2.34).
	for _, name := range []string{"libgcc_s.so.1", "libnss_files.so.2"} {
		if lib := l.find(name, o); lib != nil && set.has("libc.so") {
			set.plugin(lib)
		}
	}
	set.plugins(t)
	if err := set.addTo(t); err != nil {
		return nil, err
	}
	return set, nil
}

// A linker finds libraries as ld.so(8) does, but by the configuration in
// ld.so.conf rather than the cache made from it: the guest gets a cache of its
// own. Variants for newer processors (glibc-hwcaps) are not looked for, since the
// guest's processor may be another.
type linker struct {
	libraryPath []string
	system      []string
	read        map[string]*object // by path; nil for what is no library
}

func newLinker(libraryPath string) *linker {
	l := &linker{read: map[string]*object{}}
	if libraryPath != "" {
		for d := range strings.FieldsFuncSeq(libraryPath, func(r rune) bool { return r == ':' || r == ';' }) {
			if abs, err := filepath.Abs(d); err == nil {
				l.libraryPath = append(l.libraryPath, abs)
			}
		}
	}
	l.system = append(ldConf("/etc/ld.so.conf"), defaultDirs...)
	return l
}

// find looks for the library that by needs; nil if there is none.
func (l *linker) find(name string, by *object) *object {
	if strings.Contains(name, "/") {
		abs, err := filepath.Abs(name)
		if err != nil {
			return nil
		}
		return l.library(abs, by)
	}
	var dirs []string
	if len(by.runpath) == 0 {
		// DT_RPATH also serves what the library needs in its turn.
		for o := by; o != nil; o = o.opener {
			if len(o.runpath) == 0 {
				dirs = append(dirs, o.rpath...)
			}
		}
	}
	for _, list := range [][]string{dirs, l.libraryPath, by.runpath, l.system} {
		for _, d := range list {
			if o := l.library(filepath.Join(d, name), by); o != nil {
				return o
			}
		}
	}
	return nil
}

// library reads the file at path; like the linker, it passes over what is no
// library for this machine.
func (l *linker) library(path string, opener *object) *object {
	o, seen := l.read[path]
	if !seen {
		if got, err := readObject(path); err == nil {
			o = got
		}
		l.read[path] = o
	}
	if o == nil {
		return nil
	}
	c := *o
	c.opener = opener
	return &c
}

// A linkSet is the libraries of one process.
type linkSet struct {
	l       *linker
	byName  map[string]*object // by the name it was needed by, and by soname
	loaded  []*object
	leftOut []string
}

func (l *linker) set() *linkSet { return &linkSet{l: l, byName: map[string]*object{}} }

// addTo puts the libraries of the set into t.
func (s *linkSet) addTo(t tree) error {
	for _, lib := range s.loaded {
		if _, err := t.add(lib.path); err != nil {
			return fmt.Errorf("add library: %w", err)
		}
	}
	return nil
}

// resolve loads what o needs, breadth first, and returns a sentence for each
// library that was not found.
func (s *linkSet) resolve(o *object) (missing []string) {
	queue := []*object{o}
	for len(queue) > 0 {
		by := queue[0]
		queue = queue[1:]
		for _, name := range by.needed {
			if s.byName[name] != nil {
				continue
			}
			lib := s.l.find(name, by)
			if lib == nil {
				missing = append(missing, fmt.Sprintf("%s needs the library %s, which is not on this machine", by.path, name))
				continue
			}
			s.byName[name] = lib
			s.load(lib)
			queue = append(queue, lib)
		}
	}
	return missing
}

func (s *linkSet) load(lib *object) {
	if lib.soname != "" && s.byName[lib.soname] == nil {
		s.byName[lib.soname] = lib
	}
	s.loaded = append(s.loaded, lib)
}

// names are the names of all libraries, in order of loading.
func (s *linkSet) names() []string {
	var out []string
	for _, lib := range s.loaded {
		out = append(out, lib.path)
		if lib.soname != "" {
			out = append(out, lib.soname)
		}
	}
	return out
}

// has tells if a library whose name begins with prefix is loaded.
func (s *linkSet) has(prefix string) bool {
	return slices.ContainsFunc(s.names(), func(n string) bool { return strings.HasPrefix(filepath.Base(n), prefix) })
}

// errUnwanted says why a plugin is left out.
var errUnwanted = errors.New("would bring in")

// plugin loads a library that another opens by name at run time, with what it
// needs, or leaves the set as it was.
func (s *linkSet) plugin(lib *object) error {
	try := &linkSet{l: s.l, byName: maps.Clone(s.byName), loaded: slices.Clone(s.loaded)}
	try.load(lib)
	if missing := try.resolve(lib); len(missing) > 0 {
		return errors.New(missing[0])
	}
	for _, o := range try.loaded[len(s.loaded):] {
		if base := filepath.Base(o.path); unwanted(base) {
			return fmt.Errorf("%w %s", errUnwanted, base)
		}
	}
	s.byName, s.loaded = try.byName, try.loaded
	return nil
}
