package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A pythonHome is what an interpreter of Python reads, as its files tell.
type pythonHome struct {
	folders []string // standard library and packages
	search  []string // where packages are looked for, in that order
}

var (
	pythonName    = regexp.MustCompile(`^python(?:[23](?:\.([0-9]+))?)?$`)
	pythonLibrary = regexp.MustCompile(`^python3\.[0-9]+$`)
)

func isPython(path string) bool { return pythonName.MatchString(filepath.Base(path)) }

// findPython follows the rules by which the interpreter at path finds its modules
// (site.py, getpath.py): the standard library lies above the real file, a virtual
// environment beside the name that it is called by.
func findPython(path string, s *seeker) pythonHome {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return pythonHome{}
	}
	var p pythonHome
	packages := func(dirs ...string) {
		for _, d := range dirs {
			p.addPackages(d)
		}
	}
	for _, d := range filepath.SplitList(s.env["PYTHONPATH"]) {
		if d != "" {
			packages(s.path(d))
		}
	}
	start, system := filepath.Dir(real), true
	for _, env := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		conf, err := os.ReadFile(filepath.Join(env, "pyvenv.cfg"))
		if err != nil {
			continue
		}
		p.folders = append(p.folders, filepath.Join(env, "pyvenv.cfg"))
		values := parseVenv(string(conf))
		system = strings.EqualFold(values["include-system-site-packages"], "true")
		if home := values["home"]; filepath.IsAbs(home) {
			start = home
			if r, err := filepath.EvalSymlinks(filepath.Join(home, filepath.Base(path))); err == nil {
				real, start = r, filepath.Dir(r)
			}
		}
		packages(globs(filepath.Join(env, "lib*", "python3*", "site-packages"))...)
		break
	}
	library := standardLibrary(start, real)
	if library == "" {
		return p
	}
	p.folders = append(p.folders, library)
	version, prefix := filepath.Base(library), filepath.Dir(filepath.Dir(library))
	if !system {
		return p
	}
	if home := s.env["HOME"]; home != "" {
		packages(filepath.Join(home, ".local/lib", version, "site-packages"))
	}
	packages(filepath.Join(library, "site-packages"), filepath.Join(prefix, "lib64", version, "site-packages"))
	if prefix == "/usr" {
		packages("/usr/local/lib/"+version+"/dist-packages", "/usr/lib/python3/dist-packages") // Debian's
	}
	return p
}

// addPackages adds a folder of packages, and those that its .pth files name.
func (p *pythonHome) addPackages(dir string) {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() || slices.Contains(p.search, dir) {
		return
	}
	p.search = append(p.search, dir)
	p.folders = append(p.folders, dir)
	for _, file := range globs(filepath.Join(dir, "*.pth")) {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); filepath.IsAbs(line) {
				p.addPackages(filepath.Clean(line))
			}
		}
	}
}

// parseVenv reads pyvenv.cfg: lines "name = value".
func parseVenv(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, "="); ok {
			values[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
		}
	}
	return values
}

// standardLibrary finds the folder with os.py in start or above it; "" if there is
// none. The interpreter's name tells the version, if it has one.
func standardLibrary(start, real string) string {
	version := "python3.*"
	if m := pythonName.FindStringSubmatch(filepath.Base(real)); m != nil && m[1] != "" {
		version = filepath.Base(real)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		for _, lib := range []string{"lib", "lib64"} {
			if found := globs(filepath.Join(dir, lib, version, "os.py")); len(found) == 1 {
				return filepath.Dir(found[0])
			}
		}
		if dir == "/" {
			return ""
		}
	}
}

func globs(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

// errSeveral is no error to who says which.
var errSeveral = errors.New("is there for several MPIs")

// mpi4py tells which MPI the interpreter's mpi4py is linked with.
func (s *seeker) mpi4py(python string, p pythonHome) (evidence, error) {
	for _, dir := range p.search {
		var e evidence
		for _, module := range globs(filepath.Join(dir, "mpi4py", "MPI*.so")) {
			o, err := readObject(module)
			if err != nil {
				continue
			}
			set := s.l.set()
			set.resolve(o)
			k := mpiKind(slices.Concat(o.needed, set.names()))
			if k != KindMPICH && k != KindOpenMPI {
				continue
			}
			if e.mpi != UnknownMPI && e.mpi != family(k) {
				return evidence{}, fmt.Errorf("the mpi4py of %s %w (%s/mpi4py): say with --mpi mpich or --mpi openmpi which one it is to take", python, errSeveral, dir)
			}
			e = newEvidence(k, set, fmt.Sprintf("the mpi4py of %s is linked with it", python))
		}
		if e.mpi != UnknownMPI {
			return e, nil
		}
	}
	return evidence{}, nil
}

// pythonBallast tells of folders in a standard library that nothing imports: tests
// of its own, an editor, and what programs with a Python in them are compiled from.
func pythonBallast(folder string) bool {
	if !pythonLibrary.MatchString(filepath.Base(filepath.Dir(folder))) {
		return false
	}
	name := filepath.Base(folder)
	return slices.Contains([]string{"test", "idlelib", "turtledemo"}, name) || strings.HasPrefix(name, "config-3")
}
