package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// paths are where the files of a closure lie.
func paths(f *Files) []string {
	var out []string
	for _, e := range f.Files {
		out = append(out, e.Path)
	}
	return out
}

func holds(f *Files, path string) bool { return slices.Contains(paths(f), path) }

func TestClosureOfMPICHProgram(t *testing.T) {
	prog := hello(t)
	f, err := Closure(prog, "")
	if err != nil {
		t.Fatal(err)
	}
	if f.Kind != KindMPICH {
		t.Errorf("kind: %v", f.Kind)
	}
	if n := f.Bytes(); n < 1<<20 || n > 82<<20 {
		t.Errorf("closure has %d MB, want at most 82", n>>20)
	}
	// Everything that the dynamic linker itself loads must be there.
	cmd := exec.Command(prog)
	cmd.Env = []string{"LD_TRACE_LOADED_OBJECTS=1"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		i := strings.IndexByte(line, '/')
		if i < 0 {
			continue
		}
		path, _, _ := strings.Cut(line[i:], " ")
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			t.Fatal(err)
		}
		if !holds(f, real) {
			t.Errorf("%s is missing", real)
		}
	}
	for _, e := range f.Files {
		if real, err := filepath.EvalSymlinks(filepath.Dir(e.Path)); err != nil || real != filepath.Dir(e.Path) {
			t.Errorf("%s is listed below a link", e.Path)
		}
		if base := filepath.Base(e.Path); unwanted(base) || e.Path == prog {
			t.Errorf("%s does not belong into the closure", e.Path)
		}
	}
	// Debian's MPICH stands on UCX, whose modules nobody links with.
	if f.UCX {
		found := slices.ContainsFunc(paths(f), func(p string) bool { return strings.Contains(p, "/ucx/libuct_") })
		drivers := slices.ContainsFunc(paths(f), func(p string) bool { return strings.HasPrefix(p, "/etc/libibverbs.d/") })
		if !found || !drivers {
			t.Errorf("UCX without its modules or drivers: %v", paths(f))
		}
	}
}

func TestClosureSearch(t *testing.T) {
	dir := t.TempDir()
	lib := func(path, name, source string, args ...string) {
		compile(t, filepath.Join(dir, path), source, append([]string{"-shared", "-fPIC", "-Wl,-soname," + name}, args...)...)
	}
	in := func(path string) string { return filepath.Join(dir, path) }
	lib("deep/libdeep.so.1", "libdeep.so.1", "int deep(void){return 1;}")
	lib("lib/libtop.so.1.2", "libtop.so.1", "int deep(void);int top(void){return deep();}", in("deep/libdeep.so.1"))
	lib("lib/librun.so.1", "librun.so.1", "int deep(void);int run(void){return deep();}", in("deep/libdeep.so.1"), "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../deep")
	for link, target := range map[string]string{"lib/libtop.so.1": "libtop.so.1.2", "moved": "lib"} {
		if err := os.Symlink(target, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	const mainTop, mainRun = "int top(void);int main(void){return top();}", "int run(void);int main(void){return run();}"
	anyLib := "-Wl,--allow-shlib-undefined"

	tests := []struct {
		name        string
		source      string
		args        []string
		libraryPath string
		want        []string
		missing     string
	}{
		{name: "RPATH serves the libraries' libraries", source: mainTop,
			args: []string{in("lib/libtop.so.1"), "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib:$ORIGIN/../deep", anyLib},
			want: []string{"lib/libtop.so.1", "lib/libtop.so.1.2", "deep/libdeep.so.1"}},
		{name: "RUNPATH does not", source: mainTop,
			args:    []string{in("lib/libtop.so.1"), "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib:$ORIGIN/../deep", anyLib},
			missing: "libdeep.so.1"},
		{name: "a library's RUNPATH serves itself", source: mainRun,
			args: []string{in("lib/librun.so.1"), "-Wl,--enable-new-dtags,-rpath,${ORIGIN}/../lib", anyLib},
			want: []string{"lib/librun.so.1", "deep/libdeep.so.1"}},
		{name: "LD_LIBRARY_PATH", source: mainTop, args: []string{in("lib/libtop.so.1"), anyLib},
			libraryPath: in("lib") + ":" + in("deep"), want: []string{"lib/libtop.so.1", "deep/libdeep.so.1"}},
		{name: "links to folders are kept", source: mainTop, args: []string{in("lib/libtop.so.1"), anyLib},
			libraryPath: in("moved") + ":" + in("deep"), want: []string{"moved", "lib/libtop.so.1", "lib/libtop.so.1.2"}},
		{name: "nothing found", source: mainTop, args: []string{in("lib/libtop.so.1"), anyLib}, missing: "libtop.so.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prog := compile(t, filepath.Join(dir, "bin", strings.ReplaceAll(tt.name, " ", "-")), tt.source, tt.args...)
			f, err := Closure(prog, tt.libraryPath)
			if tt.missing != "" {
				if err == nil || !strings.Contains(err.Error(), tt.missing) || !strings.Contains(err.Error(), "install it") {
					t.Fatalf("got %v, want an error that names %s", err, tt.missing)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range tt.want {
				if !holds(f, in(w)) {
					t.Errorf("%s is missing in %v", w, paths(f))
				}
			}
			if f.Kind != KindDynamic || f.UCX {
				t.Errorf("kind %v, UCX %v", f.Kind, f.UCX)
			}
		})
	}
}

// A library for another machine is passed over, as ld.so does.
func TestClosurePassesOverForeignLibraries(t *testing.T) {
	dir := t.TempDir()
	so := compile(t, filepath.Join(dir, "good", "libx.so.1"), "int x(void){return 1;}", "-shared", "-fPIC", "-Wl,-soname,libx.so.1")
	prog := compile(t, filepath.Join(dir, "prog"), "int x(void);int main(void){return x();}", so)
	foreign := readFile(t, so)
	foreign[18], foreign[19] = 183, 0 // e_machine: AArch64
	write(t, filepath.Join(dir, "foreign", "libx.so.1"), string(foreign), 0o644)
	write(t, filepath.Join(dir, "text", "libx.so.1"), "no library", 0o644)
	f, err := Closure(prog, strings.Join([]string{dir + "/text", dir + "/foreign", dir + "/good"}, ":"))
	if err != nil {
		t.Fatal(err)
	}
	if !holds(f, so) || holds(f, filepath.Join(dir, "foreign", "libx.so.1")) {
		t.Errorf("got %v", paths(f))
	}
}

// A plugin that needs a display or a GPU is left out with all that it needs; one
// that does not comes along.
func TestClosureLeavesDisplaysOut(t *testing.T) {
	dir := t.TempDir()
	lib := func(path, name, source string, args ...string) string {
		return compile(t, filepath.Join(dir, path), source, append([]string{"-shared", "-fPIC", "-Wl,-soname," + name}, args...)...)
	}
	hw := lib("libhwloc.so.99", "libhwloc.so.99", "int hw(void){return 1;}")
	x11 := lib("libX11.so.99", "libX11.so.99", "int x(void){return 1;}")
	helper := lib("libhelper.so.1", "libhelper.so.1", "int x(void);int h(void){return x();}", x11)
	plain := lib("hwloc/hwloc_pci.so", "hwloc_pci.so", "int p(void){return 1;}")
	screen := lib("hwloc/hwloc_screen.so", "hwloc_screen.so", "int h(void);int s(void){return h();}", helper, "-Wl,-rpath-link,"+dir)
	gl := lib("hwloc/hwloc_gl.so", "hwloc_gl.so", "int g(void){return 1;}")
	prog := compile(t, filepath.Join(dir, "prog"), "int hw(void);int main(void){return hw();}", hw)
	f, err := Closure(prog, dir)
	if err != nil {
		t.Fatal(err)
	}
	if !holds(f, plain) {
		t.Errorf("the plain plugin is missing: %v", paths(f))
	}
	for _, p := range []string{x11, helper, screen, gl} {
		if holds(f, p) {
			t.Errorf("%s is in the closure", p)
		}
	}
	if len(f.LeftOut) != 2 || !strings.Contains(strings.Join(f.LeftOut, "\n"), "would bring in libX11.so.99") {
		t.Errorf("left out: %q", f.LeftOut)
	}
	// The program's own wish is granted.
	prog = compile(t, filepath.Join(dir, "prog2"), "int x(void);int main(void){return x();}", x11)
	if f, err := Closure(prog, dir); err != nil || !holds(f, x11) {
		t.Errorf("a program that links with libX11: %v", err)
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestClosureOfScript(t *testing.T) {
	script := write(t, filepath.Join(t.TempDir(), "run.sh"), "#!/usr/bin/env sh\nexit 0\n", 0o755)
	f, err := Closure(script, "")
	if err != nil {
		t.Fatal(err)
	}
	sh, err := filepath.EvalSymlinks(need(t, "sh", "dash"))
	if err != nil {
		t.Fatal(err)
	}
	env, err := filepath.EvalSymlinks("/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	if f.Kind != KindScript || !holds(f, sh) || !holds(f, env) {
		t.Errorf("kind %v, files %v", f.Kind, paths(f))
	}
}

func TestTreeFollowsLinks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(p string) string { return filepath.Join(dir, p) }
	write(t, in("a/b/file"), "x", 0o644)
	for link, target := range map[string]string{"rel": "a/./b", "abs": in("rel"), "a/up": "../a/b/file", "loop": "loop", "gone": "nowhere"} {
		if err := os.Symlink(target, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		path string
		want string // "" for an error
		tree []string
	}{
		{"a/b/file", "a/b/file", []string{"a/b/file"}},
		{"abs/file", "a/b/file", []string{"abs", "rel", "a/b/file"}},
		{"a/up", "a/b/file", []string{"a/up", "a/b/file"}},
		{"rel/../b/file", "a/b/file", []string{"rel", "a/b/file"}},
		{"loop", "", nil}, {"gone", "", nil}, {"a/b", "", nil}, {"a/b/file/x", "", nil},
	}
	for _, tt := range tests {
		tr := tree{}
		got, err := tr.add(dir + "/" + tt.path)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s: got %s", tt.path, got)
			}
			continue
		}
		if err != nil || got != in(tt.want) || len(tr) != len(tt.tree) {
			t.Errorf("%s: %s, %v, %d entries", tt.path, got, err, len(tr))
		}
		for _, p := range tt.tree {
			if _, ok := tr[in(p)]; !ok {
				t.Errorf("%s: %s is missing", tt.path, p)
			}
		}
		if r := tr.real(dir + "/" + tt.path); r != in(tt.want) {
			t.Errorf("%s: real is %s", tt.path, r)
		}
	}
}

func TestLdConf(t *testing.T) {
	dir := t.TempDir()
	conf := write(t, filepath.Join(dir, "ld.so.conf"), "include conf.d/*.conf\n/opt/last # comment\n\n/opt/typed=libc6\nrelative\nhwcap 1 x\n", 0o644)
	write(t, filepath.Join(dir, "conf.d/b.conf"), "/opt/b/\n", 0o644)
	write(t, filepath.Join(dir, "conf.d/a.conf"), "# nothing\n/opt/a\ninclude "+conf+"\n", 0o644)
	write(t, filepath.Join(dir, "conf.d/c.other"), "/opt/c\n", 0o644)
	want := []string{"/opt/a", "/opt/b", "/opt/last", "/opt/typed"}
	if got := ldConf(conf); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzParseLdConf(f *testing.F) {
	f.Add("include /etc/ld.so.conf.d/*.conf\n\n/usr/local/lib\n")
	f.Add("/lib=libc6 # x\r\n\tinclude a b c\nhwcap 0 nosegneg")
	f.Add("include")
	f.Fuzz(func(t *testing.T, text string) {
		for _, l := range parseLdConf(text) {
			if l.value == "" || !l.include && !filepath.IsAbs(l.value) {
				t.Errorf("%q gives %+v", text, l)
			}
		}
	})
}
