package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// programs are what commands in these tests run: in a folder, with libraries that
// bear the names of MPIs.
type programs struct{ dir string }

func newPrograms(t *testing.T) programs {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := programs{dir}
	calls := "int f(void);int main(void){return f();}"
	for program, soname := range map[string]string{"mpich": "libmpi.so.12", "open": "libmpi.so.40", "strange": "libmpi.so.7", "launcher": "libopen-rte.so.40"} {
		lib := compile(t, p.in("lib/"+soname), "int f(void){return 0;}", "-shared", "-fPIC", "-Wl,-soname,"+soname)
		compile(t, p.in("bin/"+program), calls, lib, "-Wl,-rpath,"+p.in("lib"))
	}
	compile(t, p.in("bin/plain"), "int main(void){return 0;}")
	compile(t, p.in("bin/static"), "int main(void){return 0;}", "-static")
	return p
}

func (p programs) in(path string) string { return filepath.Join(p.dir, path) }

// env is what the commands would run with.
func (p programs) env(more ...string) []string {
	return append([]string{"PATH=" + p.in("bin") + ":/usr/bin:/bin"}, more...)
}

func TestRecogniseCommand(t *testing.T) {
	p := newPrograms(t)
	script := func(name, text string) string { return write(t, p.in(name), text, 0o755) }
	const sh = "/bin/sh"
	env := need(t, "env", "coreutils")
	quoted := script("quoted.sh", "#!/bin/sh\n# ../bin/open is not it\nAPP=\"$HOME/bin/open\"\nexec './bin/mpich' \"$@\"\n")
	text := write(t, p.in("text.sh"), "if true; then (bin/open;); fi\n", 0o644)
	tests := []struct {
		name    string
		argv    []string
		said    MPI
		kind    Kind
		mpi     MPI
		because string
		needs   []string
		err     string
	}{
		{name: "MPICH", argv: []string{p.in("bin/mpich"), "bin/open"}, kind: KindMPICH, mpi: MPICH, because: "linked"},
		{name: "Open MPI", argv: []string{p.in("bin/open")}, kind: KindOpenMPI, mpi: OpenMPI, because: "linked"},
		{name: "said otherwise", argv: []string{p.in("bin/open")}, said: NoMPI, kind: KindOpenMPI, mpi: NoMPI, because: "--mpi"},
		{name: "another MPI", argv: []string{p.in("bin/strange")}, err: "lib/libmpi.so.7, which is neither MPICH's nor Open MPI's: say with --mpi"},
		{name: "another MPI, said", argv: []string{p.in("bin/strange")}, said: MPICH, kind: KindOtherMPI, mpi: MPICH, because: "--mpi"},
		{name: "static", argv: []string{p.in("bin/static")}, kind: KindStatic, because: "cannot be told"},
		{name: "plain", argv: []string{p.in("bin/plain"), "4"}, kind: KindDynamic, because: "names no MPI program"},
		{name: "script", argv: []string{quoted}, kind: KindScript, mpi: MPICH, because: p.in("bin/mpich"), needs: []string{sh, p.in("bin/mpich")}},
		{name: "script of no MPI", argv: []string{script("none.sh", "#!/bin/sh\nplain\n")}, kind: KindScript, needs: []string{p.in("bin/plain")}},
		{name: "argument of a script", argv: []string{script("exec.sh", "#!/bin/sh\nexec \"$@\"\n"), "bin/open"}, kind: KindScript, mpi: OpenMPI},
		{name: "the first counts", argv: []string{script("two.sh", "#!/bin/sh\nopen && mpich\n")}, kind: KindScript, mpi: OpenMPI, needs: []string{p.in("bin/open"), p.in("bin/mpich")}},
		{name: "a script of a script", argv: []string{script("outer.sh", "#!/bin/sh\n./inner.sh\n")}, kind: KindScript, mpi: MPICH,
			needs: []string{script("inner.sh", "#!/bin/sh\n./outer.sh; mpich\n"), p.in("bin/mpich")}},
		{name: "a launcher is none", argv: []string{script("nested.sh", "#!/bin/sh\nlauncher; mpich\n")}, kind: KindScript, mpi: MPICH},
		{name: "sh -c", argv: []string{sh, "-ec", "cd /; open|cat"}, kind: KindDynamic, mpi: OpenMPI, needs: []string{sh, p.in("bin/open")}},
		{name: "sh FILE", argv: []string{sh, "text.sh"}, kind: KindDynamic, mpi: OpenMPI, needs: []string{sh, p.in("bin/open")}},
		{name: "env", argv: []string{env, "A=1", "mpich"}, kind: KindDynamic, mpi: MPICH, needs: []string{p.in("bin/mpich")}},
		{name: "no interpreter", argv: []string{script("gone.sh", "#!/no/such/shell\n")}, err: "wants to be run by /no/such/shell, which is not on this machine"},
		{name: "not executable", argv: []string{text}, err: "chmod +x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := RecogniseCommand(tt.argv, p.dir, p.env(), tt.said)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.Kind != tt.kind || c.MPI != tt.mpi || !strings.Contains(c.Because, tt.because) || c.UCX {
				t.Errorf("%+v", c)
			}
			for _, n := range tt.needs {
				if !slices.Contains(c.Needs, n) {
					t.Errorf("%s is not in %v", n, c.Needs)
				}
			}
			t.Log(c.Says())
		})
	}
}

// What a command needs is in the root, but for what comes over shares.
func TestNeedsInPlan(t *testing.T) {
	p := newPrograms(t)
	if err := os.Symlink("bin", p.in("link")); err != nil {
		t.Fatal(err)
	}
	script := write(t, p.in("run.sh"), "#!/bin/sh\nlink/mpich\n", 0o755)
	c, err := RecogniseCommand([]string{script}, p.dir, p.env(), UnknownMPI)
	if err != nil {
		t.Fatal(err)
	}
	spec := Spec{Program: script, Agent: testAgent(t), Needs: append(c.Needs, p.in("lib/libnone.so"))}
	plan, err := newPlan(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"link", "bin/mpich", "lib/libmpi.so.12"} {
		if _, ok := plan.tree[p.in(want)]; !ok {
			t.Errorf("%s is missing", want)
		}
	}
	spec.Shared = []string{p.in("bin")}
	if plan, err = newPlan(spec); err != nil {
		t.Fatal(err)
	}
	if _, ok := plan.tree[p.in("bin/mpich")]; ok {
		t.Error("a file of a shared folder is in the root")
	}
	if _, ok := plan.tree[p.in("lib/libmpi.so.12")]; !ok {
		t.Error("what a file of a shared folder needs is missing")
	}
}

// A script of MPICH on UCX needs the preload as its program does.
func TestScriptOfMPICHOnUCX(t *testing.T) {
	dir := t.TempDir()
	prog := hello(t)
	files, err := Closure(prog, "")
	if err != nil {
		t.Fatal(err)
	}
	script := write(t, filepath.Join(dir, "run.sh"), "#!/bin/sh\n"+prog+"\n", 0o755)
	c, err := RecogniseCommand([]string{script}, dir, os.Environ(), UnknownMPI)
	if err != nil {
		t.Fatal(err)
	}
	if c.MPI != MPICH || c.UCX != files.UCX {
		t.Errorf("%+v, while the program's UCX is %v", c, files.UCX)
	}
	plan, err := newPlan(Spec{Program: script, Agent: testAgent(t), Needs: c.Needs})
	if err != nil {
		t.Fatal(err)
	}
	if plan.files.UCX != files.UCX {
		t.Errorf("in the plan UCX is %v", plan.files.UCX)
	}
}

func FuzzSplitWords(f *testing.F) {
	f.Add("#!/bin/sh\nexec ./a \"$@\" # b\nX=`c` $(d)|e;f&&g\n")
	f.Add("a#b 'c d' \\\n\x00e é=ü")
	f.Fuzz(func(t *testing.T, text string) {
		for _, w := range splitWords(text) {
			if w == "" || strings.ContainsAny(w, " \t\n\"'`;|&$") || !strings.Contains(text, w) {
				t.Errorf("%q has the word %q", text, w)
			}
		}
	})
}
