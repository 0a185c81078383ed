package guest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// A pluginRule says what a library opens by name at run time. Patterns that are not
// absolute begin at the library's folder.
type pluginRule struct {
	library  string   // beginning of the library's file name
	plugins  []string // patterns of the plugins
	config   []string // patterns of files that it reads, to find them or to say what went wrong
	programs []string // patterns of programs that it starts, or that start what is linked with it
	except   []string // parts of names of plugins that are of no use in a guest
}

// pluginRules are for what MPICH and Open MPI stand on.
var pluginRules = []pluginRule{
	// UCX derives the names of its modules from the name that libucs was loaded
	// by, including what follows ".so", hence all of the links.
	{library: "libucs.so", plugins: []string{"ucx/lib*.so*"}, config: []string{"/etc/ucx/ucx.conf"}},
	{library: "libibverbs.so", plugins: []string{"libibverbs/lib*.so"}, config: []string{"/etc/libibverbs.d/*.driver"}},
	{library: "libfabric.so", plugins: []string{"libfabric/lib*.so"}},
	// Without its plugin for libxml2, which brings 35 MB, hwloc reads and writes the
	// same topologies by itself.
	{library: "libhwloc.so", plugins: []string{"hwloc/hwloc_*.so"},
		except: []string{"_libxml", "_gl", "_opencl", "_cuda", "_nvml", "_rsmi", "_levelzero"}},
	// Open MPI is mostly plugins: Debian's folder, and that of one made from source.
	// Those for fabrics that a guest's one virtio network is not would bring their
	// drivers along.
	{library: "libopen-pal.so", plugins: []string{"openmpi/lib/openmpi*/mca_*.so", "openmpi/mca_*.so"},
		config: append(beside("share/openmpi/*.txt", "share/openmpi/*.ini", "share/openmpi/amca-param-sets/*", "etc/openmpi-*"),
			"/etc/openmpi/openmpi-mca-params.conf", "/etc/openmpi/openmpi-default-hostfile"),
		except: []string{"_openib", "_ofi", "_psm", "_usnic", "_portals4", "_cuda"}},
	// A process by itself that calls MPI_Comm_spawn starts orted, as does orterun in
	// each clone; Open MPI 5 has prted.
	{library: "libopen-rte.so", programs: beside("bin/orted", "bin/orterun")},
	{library: "libprrte.so", plugins: []string{"prte/*mca_*.so"}, config: beside("share/prte/*.txt", "etc/prte*.conf"),
		programs: beside("bin/prted", "bin/prterun")},
	{library: "libpmix.so", plugins: []string{"pmix/*mca_*.so"}, config: beside("share/pmix/*.txt", "share/pmix*.conf", "etc/pmix*.conf")},
}

// beside are patterns of what was installed with a library, in a prefix of which
// it is in lib or, as on Debian, one folder further down.
func beside(patterns ...string) (out []string) {
	for _, p := range patterns {
		out = append(out, "../"+p, "../../"+p)
	}
	return out
}

// glob finds what patterns of a rule mean for a library.
func (o *object) glob(patterns []string) (files []string) {
	dirs := []string{filepath.Dir(o.path)}
	if d := filepath.Dir(o.real); d != dirs[0] {
		dirs = append(dirs, d)
	}
	for _, p := range patterns {
		if filepath.IsAbs(p) {
			found, _ := filepath.Glob(p)
			files = append(files, found...)
			continue
		}
		for _, d := range dirs {
			found, _ := filepath.Glob(filepath.Join(d, p))
			files = append(files, found...)
		}
	}
	return files
}

// unwanted tells if a library belongs to a display or to a GPU, of which a guest
// has neither. A plugin that needs one would bring a few hundred MB along.
func unwanted(name string) bool {
	return slices.ContainsFunc([]string{
		"libX", "libxcb", "libwayland", "libGL", "libEGL", "libGLX", "libOpenCL", "libOpenGL",
		"libcuda", "libcudart", "libnvidia", "libnvml", "libamdhip", "librocm", "libhsa", "libze_loader",
	}, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// plugins loads the plugins of all libraries in the set, and those of the
// libraries that come with them, and puts their configuration and the programs
// that belong to them into t.
func (s *linkSet) plugins(t tree) {
	tried := map[string]bool{}
	for i := 0; i < len(s.loaded); i++ { // grows on the way
		lib := s.loaded[i]
		for _, rule := range pluginRules {
			if !strings.HasPrefix(filepath.Base(lib.path), rule.library) {
				continue
			}
			for _, f := range lib.glob(rule.config) {
				t.add(f) // unreadable configuration is none
			}
			for _, f := range lib.glob(rule.programs) {
				s.l.tryProgram(t, f)
			}
			for _, f := range lib.glob(rule.plugins) {
				if tried[f] {
					continue
				}
				tried[f] = true
				s.tryPlugin(t, lib, f, rule.except)
			}
		}
	}
}

// tryPlugin loads one plugin, or notes why not.
func (s *linkSet) tryPlugin(t tree, opener *object, file string, except []string) {
	base := filepath.Base(file)
	if slices.ContainsFunc(except, func(part string) bool { return strings.Contains(base, part) }) {
		s.leftOut = append(s.leftOut, file+": of no use in a guest")
		return
	}
	lib := s.l.library(file, opener)
	if lib == nil {
		return
	}
	// Another name of a plugin that is in already.
	if slices.ContainsFunc(s.loaded, func(o *object) bool { return o.real == lib.real }) {
		t.add(file)
		return
	}
	if err := s.plugin(lib); err != nil {
		s.leftOut = append(s.leftOut, fmt.Sprintf("%s: %v", file, err))
	}
}

// tryProgram brings a program and its closure, unless it lacks a library. It may
// stand on the library that wants it.
func (l *linker) tryProgram(t tree, path string) {
	real, _, err := t.walk(path)
	if err != nil {
		return
	}
	if _, in := t[real]; in {
		return
	}
	if l.addProgram(t, path) != nil {
		delete(t, real)
	}
}
