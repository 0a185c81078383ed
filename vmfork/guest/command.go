package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MPI is a family of MPI libraries, as far as starting ranks is concerned.
type MPI int

const (
	UnknownMPI MPI = iota // it cannot be told: PMI is offered, which those who know of none do not notice
	MPICH                 // and what speaks PMI as it does
	OpenMPI
	NoMPI // --mpi none: nothing is offered
)

// ParseMPI reads the value of --mpi.
func ParseMPI(s string) (MPI, error) {
	switch s {
	case "":
		return UnknownMPI, nil
	case "mpich":
		return MPICH, nil
	case "openmpi":
		return OpenMPI, nil
	case "none":
		return NoMPI, nil
	}
	return 0, fmt.Errorf("--mpi %s: it is mpich, openmpi or none", s)
}

func (m MPI) String() string {
	return [...]string{"unknown", "MPICH", "Open MPI", "none"}[m]
}

// A Command is a program with its arguments, as far as can be told without running
// any of it.
type Command struct {
	Kind    Kind // of the program itself
	MPI     MPI
	Because string   // what tells MPI: a sentence, for -v
	Needs   []string // what it runs and reads of this machine beside the program: files and folders, absolute
	UCX     bool     // the MPI is MPICH on UCX: see Progress

	Libraries []string // of what told the MPI: absolute paths
}

// RecogniseCommand finds out what argv, whose program is an absolute path, is. It
// would run in dir with env. said is what --mpi says; it wins.
//
// A program that is linked with an MPI tells by itself. Of a Python, the mpi4py
// that it would import tells; of anything else, the first word of its arguments, or
// of the script that it runs, that names an MPI program. Errors are one line, for
// the user.
func RecogniseCommand(argv []string, dir string, env []string, said MPI) (*Command, error) {
	s := newSeeker(dir, env)
	o, err := readProgram(argv[0])
	if err != nil {
		return nil, err
	}
	c := &Command{Kind: KindScript, MPI: said, Because: "--mpi says so"}
	var set *linkSet
	if o != nil {
		c.Kind, set = s.l.kind(o)
	}
	var e evidence
	switch c.Kind {
	case KindMPICH, KindOpenMPI:
		e = newEvidence(c.Kind, set, argv[0]+" is linked with it")
	case KindOtherMPI:
		if said == UnknownMPI {
			return nil, fmt.Errorf("%s is linked with %s, which is neither MPICH's nor Open MPI's: say with --mpi mpich or --mpi openmpi whose programs are launched in its way, or compile it with one of them", argv[0], set.unknownMPI())
		}
	case KindStatic:
		e.because = argv[0] + " is static, so whether there is an MPI in it cannot be told"
	default:
		if e, err = s.command(argv); errors.Is(err, errSeveral) && said != UnknownMPI {
			err = nil
		}
		if err != nil {
			return nil, err
		}
	}
	c.Needs, c.UCX, c.Libraries = s.needs, e.ucx, e.libraries
	if said == UnknownMPI {
		c.MPI, c.Because = e.mpi, e.because
	}
	c.UCX = c.UCX && c.MPI == MPICH
	return c, nil
}

// Says tells what was found, for -v.
func (c *Command) Says() string {
	what := "launched as a program of " + c.MPI.String()
	switch c.MPI {
	case UnknownMPI:
		what = "offered PMI, as MPICH's programs expect it"
	case NoMPI:
		what = "launched without an MPI"
	}
	return fmt.Sprintf("%v, %s: %s", c.Kind, what, c.Because)
}

func family(k Kind) MPI {
	if k == KindOpenMPI {
		return OpenMPI
	}
	return MPICH
}

// unknownMPI is the path of the library that is named as an MPI's.
func (s *linkSet) unknownMPI() string {
	for _, lib := range s.loaded {
		if strings.HasPrefix(filepath.Base(lib.path), "libmpi") {
			return lib.path
		}
	}
	return "libmpi"
}

// evidence is what tells the MPI of a command.
type evidence struct {
	mpi       MPI
	because   string
	ucx       bool
	libraries []string
}

func newEvidence(k Kind, set *linkSet, because string) evidence {
	e := evidence{mpi: family(k), because: because, ucx: set.has("libucp.so")}
	for _, lib := range set.loaded {
		e.libraries = append(e.libraries, lib.path)
	}
	return e
}

// A seeker looks through what a command that is no MPI program itself runs.
type seeker struct {
	dir  string
	env  map[string]string
	l    *linker
	seen map[string]bool // words and files that were looked at

	needs   []string
	program evidence // the first MPI program that was named
	python  evidence // the mpi4py of the first Python that was
	unclear error    // instead of python
}

func newSeeker(dir string, env []string) *seeker {
	s := &seeker{dir: dir, env: map[string]string{}, seen: map[string]bool{}}
	for _, e := range env {
		if name, value, ok := strings.Cut(e, "="); ok {
			s.env[name] = value
		}
	}
	s.l = newLinker(s.env["LD_LIBRARY_PATH"])
	return s
}

// command looks through a script or a program without an MPI.
func (s *seeker) command(argv []string) (evidence, error) {
	runner := argv[0]
	if isPython(runner) && filepath.Base(filepath.Dir(runner)) == "shims" {
		name := filepath.Base(runner)
		return evidence{}, fmt.Errorf("%s starts a Python of its choice: give that one itself (pyenv which %s)", runner, name)
	}
	if o, err := readProgram(runner); err == nil && o == nil {
		names, err := interpreters(runner, s.look)
		if err != nil {
			return evidence{}, err
		}
		for _, n := range names {
			if _, err := os.Stat(n); err != nil {
				return evidence{}, fmt.Errorf("%s wants to be run by %s, which is not on this machine: install it", runner, n)
			}
		}
		s.script(runner)
		runner = names[len(names)-1]
	} else if isPython(runner) || isShell(runner) {
		s.file(runner)
		if isShell(runner) {
			s.argumentOfShell(argv[1:])
		}
	}
	for _, a := range argv[1:] {
		s.word(a)
	}
	if isPython(runner) && (s.python.mpi != UnknownMPI || s.unclear != nil) {
		return s.python, s.unclear
	}
	switch {
	case s.program.mpi != UnknownMPI:
		return s.program, nil
	case s.python.mpi != UnknownMPI || s.unclear != nil:
		return s.python, s.unclear
	}
	return evidence{because: argv[0] + " names no MPI program, and no Python with mpi4py"}, nil
}

// shells are interpreters whose scripts name programs as words.
var shells = []string{"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "rbash"}

func isShell(path string) bool { return slices.Contains(shells, filepath.Base(path)) }

// argumentOfShell looks through what a shell is told to run: bash -c 'WORDS', or
// bash FILE.
func (s *seeker) argumentOfShell(args []string) {
	for i, a := range args {
		switch {
		case strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && strings.HasSuffix(a, "c") && i+1 < len(args):
			s.words(args[i+1])
			return
		case !strings.HasPrefix(a, "-"):
			s.script(s.path(a))
			return
		}
	}
}

// path is where a file lies that is named in the folder where the command runs.
func (s *seeker) path(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(s.dir, name)
}

// look finds a program as the command would.
func (s *seeker) look(name string) (string, error) {
	if strings.Contains(name, "/") {
		return s.path(name), nil
	}
	for dir := range strings.SplitSeq(s.env["PATH"], ":") {
		p := s.path(filepath.Join(dir, name))
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && unix.Access(p, unix.X_OK) == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not on PATH", name)
}

// word looks at what may be the name of a program.
func (s *seeker) word(w string) {
	if w == "" || len(w) > unix.PathMax || s.seen["word "+w] {
		return
	}
	s.seen["word "+w] = true
	path, err := s.look(w)
	if err != nil {
		return
	}
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return
	}
	s.file(path)
}

// file looks at a program that is named somewhere. What is wrong with it is for
// who runs it to find out.
func (s *seeker) file(path string) {
	if s.seen[path] {
		return
	}
	s.seen[path] = true
	o, err := readProgram(path)
	if err != nil {
		return
	}
	s.needs = append(s.needs, path)
	if o == nil {
		s.script(path)
		return
	}
	if isPython(path) {
		s.interpreter(path)
		return
	}
	k, set := s.l.kind(o)
	// Launchers stand on libraries of Open MPI's, but not on the one of MPI.
	if (k == KindMPICH || k == KindOpenMPI && set.has("libmpi.so")) && s.program.mpi == UnknownMPI {
		s.program = newEvidence(k, set, path+", which it runs, is linked with it")
	}
}

// interpreter looks at a Python.
func (s *seeker) interpreter(path string) {
	p := findPython(path, s)
	s.needs = append(s.needs, p.folders...)
	if s.python.mpi == UnknownMPI && s.unclear == nil {
		s.python, s.unclear = s.mpi4py(path, p)
	}
}
