package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRecognise(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	const source = "int main(void){return 0;}"
	plain := compile(t, in("plain"), source)
	static := compile(t, in("static"), source, "-static")
	staticPIE := compile(t, in("static-pie"), source, "-static-pie")
	library := compile(t, in("lib.so"), "int f(void){return 0;}", "-shared", "-fPIC")
	object := compile(t, in("object.o"), source, "-c")
	// Libraries by the names of Open MPI's and of the MPICH ABI's.
	mpi40 := compile(t, in("libmpi.so.40"), "int f(void){return 0;}", "-shared", "-fPIC", "-Wl,-soname,libmpi.so.40")
	mpi12 := compile(t, in("libmpi.so.12"), "int f(void){return 0;}", "-shared", "-fPIC", "-Wl,-soname,libmpi.so.12")
	petsc := compile(t, in("libpetsc.so.1"), "int f(void);int g(void){return f();}", "-shared", "-fPIC", "-Wl,-soname,libpetsc.so.1", mpi12)
	calls := "int f(void);int main(void){return f();}"
	open := compile(t, in("open"), calls, mpi40)
	intel := compile(t, in("intel"), calls, mpi12)
	behind := compile(t, in("behind"), "int g(void);int main(void){return g();}", petsc, "-Wl,-rpath-link,"+dir)
	for _, p := range []string{library, object} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := readFile(t, plain)
	foreign := append([]byte{}, b...)
	foreign[18], foreign[19] = 183, 0

	tests := []struct {
		path string
		kind Kind
		err  string // part of it
	}{
		{path: hello(t), kind: KindMPICH},
		{path: intel, kind: KindMPICH},
		{path: behind, kind: KindMPICH},
		{path: open, kind: KindOpenMPI},
		{path: plain, kind: KindDynamic},
		{path: static, kind: KindStatic},
		{path: staticPIE, kind: KindStatic},
		{path: testAgent(t), kind: KindStatic},
		{path: write(t, in("script"), "#!/bin/sh\n", 0o755), kind: KindScript},
		{path: in("nothing"), err: "does not exist: give the path"},
		{path: dir, err: "is a folder: give the path"},
		{path: "/dev/null", err: "is not a regular file"},
		{path: write(t, in("readable"), string(b), 0o644), err: "is not executable: if it is a program, chmod +x"},
		{path: write(t, in("empty"), "", 0o755), err: "is empty"},
		{path: write(t, in("text"), "hello\n", 0o755), err: "has no executable format"},
		{path: write(t, in("x"), "x", 0o755), err: "has no executable format"},
		{path: write(t, in("cut"), string(b[:40]), 0o755), err: "is damaged"},
		{path: write(t, in("arm"), string(foreign), 0o755), err: "is built for AARCH64, not x86-64: compile it"},
		{path: library, err: "is a shared library"},
		{path: object, err: "is an object file that was not linked"},
	}
	for _, tt := range tests {
		kind, err := Recognise(tt.path, dir)
		switch {
		case tt.err == "" && (err != nil || kind != tt.kind):
			t.Errorf("%s: %v, %v, want %v", tt.path, kind, err, tt.kind)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), tt.path)):
			t.Errorf("%s: %v, %v, want an error with %q", tt.path, kind, err, tt.err)
		case err != nil && strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: more than a line: %v", tt.path, err)
		}
		if tt.err == "" {
			if f, err := Closure(tt.path, dir); err != nil || f.Kind != tt.kind {
				t.Errorf("closure of %s: %v", tt.path, err)
			}
		}
	}
}
