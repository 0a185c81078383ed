package guest

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// An object is what the dynamic linker would read of an ELF file.
type object struct {
	path    string // as it was found; $ORIGIN is its folder
	real    string // where it lies, without symbolic links
	kind    elf.Type
	pie     bool
	interp  string // "" for libraries and static programs
	soname  string
	needed  []string
	rpath   []string // ignored by linkers if there is a runpath
	runpath []string

	opener *object // who needed it; nil for the program
}

// errForeign says that an ELF file is for another machine than the guest.
type errForeign struct{ what string }

func (e errForeign) Error() string { return "is built for " + e.what + ", not x86-64" }

// readObject reads the ELF headers of the file at path. Files of other machines
// give errForeign.
func readObject(path string) (*object, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	r, err := os.Open(real)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("read ELF headers of %s: %w", path, err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		what := strings.TrimPrefix(f.Machine.String(), "EM_")
		if f.Machine == elf.EM_X86_64 {
			what = "x32"
		}
		return nil, errForeign{what}
	}
	o := &object{path: path, real: real, kind: f.Type}
	for _, p := range f.Progs {
		// The kernel's own limit for the name is a page.
		if p.Type == elf.PT_INTERP && p.Filesz > 0 && p.Filesz <= 4096 {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return nil, fmt.Errorf("read ELF interpreter of %s: %w", path, err)
			}
			o.interp, _, _ = strings.Cut(string(b), "\x00")
		}
	}
	if f.SectionByType(elf.SHT_DYNAMIC) == nil {
		return o, nil // static
	}
	if o.needed, err = f.ImportedLibraries(); err != nil {
		return nil, fmt.Errorf("read needed libraries of %s: %w", path, err)
	}
	text := func(tag elf.DynTag) string {
		s, _ := f.DynString(tag)
		if len(s) == 0 {
			return ""
		}
		return s[0]
	}
	o.soname = text(elf.DT_SONAME)
	o.rpath = o.searchPath(text(elf.DT_RPATH))
	o.runpath = o.searchPath(text(elf.DT_RUNPATH))
	if flags, _ := f.DynValue(elf.DT_FLAGS_1); len(flags) > 0 {
		o.pie = elf.DynFlag1(flags[0])&elf.DF_1_PIE != 0
	}
	return o, nil
}

// searchPath splits a colon-separated list of folders and expands the dynamic
// linker's variables. An entry that does not become an absolute path is relative
// to the working directory, which is the same in every clone.
func (o *object) searchPath(list string) []string {
	if list == "" {
		return nil
	}
	origin := filepath.Dir(o.path)
	if o.interp != "" {
		origin = filepath.Dir(o.real) // of a program, the kernel tells the real path
	}
	var dirs []string
	for d := range strings.SplitSeq(list, ":") {
		// $LIB is what the distribution built into its linker; Debian's and the
		// others' are both tried.
		for _, lib := range []string{"lib/x86_64-linux-gnu", "lib64"} {
			e := d
			for _, v := range [][2]string{{"ORIGIN", origin}, {"LIB", lib}, {"PLATFORM", "x86_64"}} {
				e = strings.ReplaceAll(e, "${"+v[0]+"}", v[1])
				e = strings.ReplaceAll(e, "$"+v[0], v[1])
			}
			if abs, err := filepath.Abs(e); err == nil {
				dirs = append(dirs, abs)
			}
			if !strings.Contains(d, "LIB") {
				break
			}
		}
	}
	return dirs
}
