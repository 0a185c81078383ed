package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Kind says how a program came to be, as far as launching it is concerned.
type Kind int

const (
	KindMPICH    Kind = iota + 1 // dynamic, with a library of the MPICH family (MPICH, Intel MPI, MVAPICH)
	KindOpenMPI                  // dynamic, with Open MPI's library
	KindStatic                   // static; whether there is an MPI in it cannot be told
	KindDynamic                  // dynamic, without an MPI library
	KindScript                   // text that begins with #!
	KindOtherMPI                 // dynamic, with a library named as an MPI's, of neither family
)

func (k Kind) String() string {
	switch k {
	case KindMPICH:
		return "MPICH program"
	case KindOpenMPI:
		return "Open MPI program"
	case KindStatic:
		return "static program"
	case KindDynamic:
		return "program without an MPI library"
	case KindScript:
		return "script"
	case KindOtherMPI:
		return "program of another MPI"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Recognise says what kind of program the file at path is. libraryPath is the
// LD_LIBRARY_PATH that the program would run with. Errors are one line, for the
// user: what is wrong with the file and what to do.
func Recognise(path, libraryPath string) (Kind, error) {
	o, err := readProgram(path)
	if err != nil {
		return 0, err
	}
	if o == nil {
		return KindScript, nil
	}
	kind, _ := newLinker(libraryPath).kind(o)
	return kind, nil
}

// kind is that of a program, with the libraries that were found for it. A library
// of MPI may be behind another one, as with PETSc or HDF5. What is missing is for
// Closure to complain about.
func (l *linker) kind(o *object) (Kind, *linkSet) {
	set := l.set()
	if o.interp == "" {
		return KindStatic, set
	}
	set.resolve(o)
	if k := mpiKind(slices.Concat(o.needed, set.names())); k != 0 {
		return k, set
	}
	return KindDynamic, set
}

// mpiKind finds an MPI library among names like "libmpich.so.12", 0 if none is.
func mpiKind(names []string) Kind {
	kind := Kind(0)
	for _, n := range names {
		base, version, _ := strings.Cut(filepath.Base(n), ".so")
		switch {
		case base == "libopen-rte" || base == "libopen-pal",
			base == "libmpi" && (version == ".40" || version == ".20"):
			return KindOpenMPI
		case base == "libmpich",
			base == "libmpi" && version == ".12": // the MPICH ABI initiative's name
			kind = KindMPICH
		case kind == 0 && (base == "libmpi" || base == "libmpi_abi"):
			kind = KindOtherMPI
		}
	}
	return kind
}

// readProgram reads the ELF headers of a program; nil for a script.
func readProgram(path string) (*object, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist: give the path of a compiled program", path)
	case err != nil:
		return nil, fmt.Errorf("look at the program: %w", err)
	case info.IsDir():
		return nil, fmt.Errorf("%s is a folder: give the path of a program in it", path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file: give the path of a compiled program", path)
	case info.Size() == 0:
		return nil, fmt.Errorf("%s is empty: compile it again", path)
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return nil, fmt.Errorf("%s is not executable: if it is a program, chmod +x %s", path, path)
	}
	head := make([]byte, 4)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	n, err := io.ReadFull(f, head)
	f.Close()
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	head = head[:n]
	if bytes.HasPrefix(head, []byte("#!")) {
		return nil, nil
	}
	if !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return nil, fmt.Errorf("%s has no executable format: it is neither an ELF program nor a script with #! in its first line", path)
	}
	o, err := readObject(path)
	var foreign errForeign
	switch {
	case errors.As(err, &foreign):
		return nil, fmt.Errorf("%s %w: compile it for x86-64, which the guests are", path, foreign)
	case err != nil:
		return nil, fmt.Errorf("%s is damaged (%w): compile it again", path, err)
	case o.kind == elf.ET_REL:
		return nil, fmt.Errorf("%s is an object file that was not linked: link it with mpicc", path)
	case o.kind == elf.ET_DYN && o.interp == "" && !o.pie:
		return nil, fmt.Errorf("%s is a shared library: give the path of a program", path)
	case o.kind != elf.ET_EXEC && o.kind != elf.ET_DYN:
		return nil, fmt.Errorf("%s is an ELF file, but not a program: give the path of a compiled program", path)
	}
	return o, nil
}

// interpreters returns the programs that a script's first line names: the
// interpreter and, if that is env, the program env would start, found by look.
func interpreters(path string, look func(name string) (string, error)) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the script: %w", err)
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, 256)) // the kernel's limit
	if err != nil {
		return nil, fmt.Errorf("read the script: %w", err)
	}
	line, _, _ := strings.Cut(string(head), "\n")
	words := strings.Fields(strings.TrimPrefix(line, "#!"))
	if len(words) == 0 || !filepath.IsAbs(words[0]) {
		return nil, fmt.Errorf("%s names no interpreter in its first line: write one, such as #!/bin/sh", path)
	}
	out := words[:1]
	if filepath.Base(words[0]) != "env" {
		return out, nil
	}
	for _, w := range words[1:] {
		if strings.HasPrefix(w, "-") || strings.Contains(w, "=") {
			continue
		}
		p, err := look(w)
		if err != nil {
			return nil, fmt.Errorf("%s wants to be run by %s, which is not installed", path, w)
		}
		if p, err = filepath.Abs(p); err != nil {
			return nil, fmt.Errorf("find the script's interpreter: %w", err)
		}
		return append(out, p), nil
	}
	return out, nil
}
