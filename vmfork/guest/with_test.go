package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// planned is the root's files, as the plan of spec has them.
func planned(t *testing.T, spec Spec) tree {
	t.Helper()
	spec.Agent = testAgent(t)
	p, err := newPlan(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p.tree
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func TestWith(t *testing.T) {
	dir := t.TempDir()
	in := func(p string) string { return filepath.Join(dir, p) }
	lib := func(path, name, source string, args ...string) {
		compile(t, in(path), source, append([]string{"-shared", "-fPIC", "-Wl,-soname," + name}, args...)...)
	}
	// A program behind a chain of links, as java is.
	lib("lib/liba.so.1", "liba.so.1", "int a(void){return 1;}")
	compile(t, in("real/prog"), "int a(void);int main(void){return a();}", in("lib/liba.so.1"), "-Wl,-rpath,"+in("lib"))
	symlink(t, in("alternatives/prog"), in("bin/prog"))
	symlink(t, "../real/prog", in("alternatives/prog"))
	// A folder with all that folders have.
	write(t, in("tree/data.txt"), "data", 0o644)
	write(t, in("tree/.hidden/x"), "", 0o600)
	lib("tree/plug.so", "plug.so", "int a(void);int p(void){return a();}", in("lib/liba.so.1"), "-Wl,-rpath,"+in("lib"))
	lib("gone/libgone.so.1", "libgone.so.1", "int g(void){return 1;}")
	lib("tree/poor.so", "poor.so", "int g(void);int q(void){return g();}", in("gone/libgone.so.1"))
	write(t, in("interp/bin/run"), "#!/bin/sh\n", 0o755)
	write(t, in("tree/script"), "#!"+in("interp/bin/run")+" -x\n", 0o755)
	write(t, in("tree/orphan"), "#!/nonexistent\n", 0o755)
	write(t, in("etc/conf/deep/file"), "c", 0o644)
	write(t, in("etc/key"), "secret", 0o600)
	write(t, in("etc/one"), "1", 0o644)
	for name, target := range map[string]string{
		"tree/conf": "../etc/conf", "tree/one": in("etc/one"), "tree/key": in("etc/key"), "tree/dangling": "nowhere",
		"tree/root": "/", "tree/top": "/usr", "tree/up": "..", "tree/null": "/dev/null", "tree/loop": "loop", "tree/self": ".",
	} {
		symlink(t, target, in(name))
	}
	if err := os.Mkdir(in("tree/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(in("tree/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}

	tests := []struct {
		name      string
		with      string
		want, not []string
	}{
		{name: "program behind links", with: "bin/prog",
			want: []string{"bin/prog", "alternatives/prog", "real/prog", "lib/liba.so.1"}, not: []string{"tree"}},
		{name: "library", with: "tree/plug.so", want: []string{"tree/plug.so", "lib/liba.so.1"}},
		{name: "script", with: "tree/script", want: []string{"tree/script", "interp/bin/run"}},
		{name: "file", with: "tree/data.txt", want: []string{"tree/data.txt"}, not: []string{"tree/script"}},
		{name: "folder", with: "tree",
			want: []string{"tree", "tree/data.txt", "tree/.hidden/x", "tree/empty", "tree/plug.so", "lib/liba.so.1", "tree/poor.so",
				"tree/script", "interp/bin/run", "tree/orphan", "tree/conf", "etc/conf", "etc/conf/deep/file", "tree/one", "etc/one",
				"tree/key", "tree/dangling", "tree/root", "tree/top", "tree/up", "tree/null", "tree/loop", "tree/self"},
			not: []string{"etc/key", "tree/fifo", "real/prog", "gone/libgone.so.1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := planned(t, Spec{With: []string{in(tt.with)}})
			for _, p := range tt.want {
				if _, ok := got[in(p)]; !ok {
					t.Errorf("%s is missing", p)
				}
			}
			for _, p := range tt.not {
				if _, ok := got[in(p)]; ok {
					t.Errorf("%s should not be there", p)
				}
			}
			if len(got) > 60 {
				t.Errorf("brings %d files", len(got))
			}
		})
	}

	mnt, _ := mounted(t, Spec{Agent: testAgent(t), With: []string{in("tree"), in("bin/prog")}})
	for p, want := range map[string]string{"tree/data.txt": "data", "tree/conf/deep/file": "c", "tree/.hidden/x": ""} {
		if b, err := os.ReadFile(filepath.Join(mnt, in(p))); err != nil || string(b) != want {
			t.Errorf("%s in the root: %q, %v", p, b, err)
		}
	}
	info, err := os.Lstat(filepath.Join(mnt, in("tree/empty")))
	if err != nil || !info.IsDir() {
		t.Errorf("empty folder: %v, %v", info, err)
	}
	if !t.Failed() {
		// It ends with what liba says.
		inside(t, mnt, "/bin/sh", "-c", in("bin/prog")+"; test $? = 1")
	}
}

func TestWithErrors(t *testing.T) {
	agent, dir := testAgent(t), t.TempDir()
	lib := compile(t, filepath.Join(dir, "libgone.so"), "int g(void){return 1;}", "-shared", "-fPIC", "-Wl,-soname,libgone.so")
	prog := compile(t, filepath.Join(dir, "prog"), "int g(void);int main(void){return g();}", lib)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	script := write(t, filepath.Join(dir, "script"), "#!/usr/bin/env no-such-program\n", 0o755)
	plain := write(t, filepath.Join(dir, "plain"), "echo\n", 0o755)
	for _, tt := range []struct {
		spec Spec
		want string
	}{
		{Spec{With: []string{"/no/such"}}, "bring /no/such into the guest: there is no /no/such on this machine"},
		{Spec{With: []string{"relative"}}, "not an absolute path"},
		{Spec{With: []string{"/"}}, "it is the whole machine"},
		{Spec{With: []string{"/proc/version"}}, "is made anew in each guest"},
		{Spec{With: []string{"/tmp"}}, "is made anew in each guest"},
		{Spec{With: []string{fifo}}, "is neither a file nor a folder"},
		{Spec{With: []string{prog}}, "needs the library libgone.so, which is not on this machine: install it"},
		{Spec{With: []string{script}}, "wants to be run by no-such-program, which is not installed"},
		{Spec{Hooks: []string{"/no/such"}}, "hook /no/such: /no/such does not exist"},
		{Spec{Hooks: []string{plain}}, "has no executable format"},
		{Spec{Hooks: slices.Repeat([]string{"/bin/sh"}, 91)}, "a guest has at most 90 hooks"},
	} {
		tt.spec.Agent = agent
		_, err := newPlan(tt.spec)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// A file with other content makes another image, whatever its size and date.
func TestWithIsKeyed(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "tree", "file"), "one", 0o644)
	hook := write(t, filepath.Join(dir, "hook"), "#!/bin/sh\necho 1\n", 0o755)
	agent, kernel := testAgent(t), fakeKernel(t)
	seen := map[string]string{}
	step := func(what string, spec Spec, known bool) {
		t.Helper()
		spec.Agent = agent
		p, err := newPlan(spec)
		if err != nil {
			t.Fatal(err)
		}
		key, err := p.key(kernel)
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[key]; ok != known {
			t.Errorf("%s: known is %v (%s)", what, ok, before)
		}
		seen[key] = what
	}
	spec := Spec{With: []string{filepath.Join(dir, "tree")}, Hooks: []string{hook}}
	step("first", spec, false)
	step("again", spec, true)
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the kernel's clock for files ticks
	write(t, file, "two", 0o644)
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	step("other content of the same size and date", spec, false)
	if err := os.Mkdir(filepath.Join(dir, "tree", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	step("an empty folder more", spec, false)
	write(t, filepath.Join(dir, "beside"), "", 0o644)
	step("a file beside it", spec, true)
	write(t, hook, "#!/bin/sh\necho 2\n", 0o755)
	step("another hook", spec, false)
	write(t, hook, "#!/bin/sh\necho 1\n", 0o755)
	spec.Hooks = append(spec.Hooks, hook)
	step("two hooks", spec, false)
	spec.Tools = true
	step("with tools", spec, false)
	step("with tools again", spec, true)
}

// Hooks run in the order given, whatever their names, with what they need.
func TestHooks(t *testing.T) {
	dir := t.TempDir()
	z := write(t, filepath.Join(dir, "zebra"), "#!/bin/bash\necho zebra\n", 0o755)
	a := compile(t, filepath.Join(dir, "ant"), "#include <math.h>\n#include <stdio.h>\nint main(int c,char**v){return puts(\"ant\")<0||sin(c)>2;}", "-lm")
	mnt, _ := mounted(t, Spec{Agent: testAgent(t), Hooks: []string{z, a, z}})
	got := inside(t, mnt, "/bin/sh", "-c", "for h in /etc/mpirun-sf/post-clone.d/*; do echo $h; $h; done")
	if got != "/etc/mpirun-sf/post-clone.d/10-zebra\nzebra\n/etc/mpirun-sf/post-clone.d/11-ant\nant\n/etc/mpirun-sf/post-clone.d/12-zebra\nzebra\n" {
		t.Errorf("got %s", got)
	}
	if _, err := os.Lstat(filepath.Join(mnt, z)); err == nil {
		t.Error("a hook is also where it came from")
	}
}

// What users bring most: a Python and a Java, which are large.
func TestWithRuntimes(t *testing.T) {
	for _, tt := range []struct {
		name, program, folders, script, want string
	}{
		{"python", "/usr/bin/python3", "/usr/lib/python3.[0-9]*",
			`/usr/bin/python3 -c 'import json, socket, ssl, sqlite3, ctypes, select; print(json.dumps([1]))'`, "[1]\n"},
		{"java", "/usr/bin/java", "/usr/lib/jvm/java-1[0-9]-openjdk-amd64",
			`/usr/bin/java -XX:+UseSerialGC -Xmx64m -version 2>&1 | head -c 7; test -s /etc/java-*/security/java.security && echo .`, "openjdk.\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			folders, err := filepath.Glob(tt.folders)
			if _, e := os.Stat(tt.program); e != nil || err != nil || len(folders) == 0 {
				t.Fatalf("this test needs %s and %s: apt install python3 openjdk-17-jre-headless", tt.program, tt.folders)
			}
			spec := Spec{Agent: testAgent(t), Tools: true, With: append([]string{tt.program}, folders...)}
			start := time.Now()
			p, err := newPlan(spec)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.key(fakeKernel(t)); err != nil {
				t.Fatal(err)
			}
			t.Logf("plan of %d files, %d MB, and its key in %v", len(p.tree), p.tree.bytes()>>20, time.Since(start).Round(time.Millisecond))
			for path := range p.tree {
				if unwanted(filepath.Base(path)) {
					t.Errorf("brings %s", path)
				}
			}
			mnt, _ := mounted(t, spec)
			if err := unix.Mount("proc", filepath.Join(mnt, "proc"), "proc", unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(filepath.Join(mnt, "proc"), 0)
			if got := inside(t, mnt, "/bin/sh", "-c", tt.script); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
