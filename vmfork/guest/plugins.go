package guest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// A pluginRule says what a library opens by name at run time.
type pluginRule struct {
	library string   // beginning of the library's file name
	plugins string   // pattern of the plugins, relative to the library's folder
	config  []string // patterns of files that it reads to find them
	except  []string // parts of names of plugins that are of no use in a guest
}

// pluginRules are for what MPICH stands on.
var pluginRules = []pluginRule{
	// UCX derives the names of its modules from the name that libucs was loaded
	// by, including what follows ".so", hence all of the links.
	{library: "libucs.so", plugins: "ucx/lib*.so*", config: []string{"/etc/ucx/ucx.conf"}},
	{library: "libibverbs.so", plugins: "libibverbs/lib*.so", config: []string{"/etc/libibverbs.d/*.driver"}},
	{library: "libfabric.so", plugins: "libfabric/lib*.so"},
	{library: "libhwloc.so", plugins: "hwloc/hwloc_*.so",
		except: []string{"_gl", "_opencl", "_cuda", "_nvml", "_rsmi", "_levelzero"}},
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
// libraries that come with them, and puts their configuration into t.
func (s *linkSet) plugins(t tree) {
	tried := map[string]bool{}
	for i := 0; i < len(s.loaded); i++ { // grows on the way
		lib := s.loaded[i]
		for _, rule := range pluginRules {
			if !strings.HasPrefix(filepath.Base(lib.path), rule.library) {
				continue
			}
			for _, pattern := range rule.config {
				files, _ := filepath.Glob(pattern)
				for _, f := range files {
					t.add(f) // unreadable configuration is none
				}
			}
			files, _ := filepath.Glob(filepath.Join(filepath.Dir(lib.path), rule.plugins))
			if filepath.Dir(lib.path) != filepath.Dir(lib.real) {
				more, _ := filepath.Glob(filepath.Join(filepath.Dir(lib.real), rule.plugins))
				files = append(files, more...)
			}
			for _, f := range files {
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
