package guest

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// python installs an interpreter in a prefix of its own; it is never run.
func (p programs) python(t *testing.T, prefix string) string {
	t.Helper()
	write(t, p.in(prefix+"/lib/python3.11/os.py"), "", 0o644)
	write(t, p.in(prefix+"/lib/python3.11/test/big.py"), "", 0o644)
	mkdir(t, p.in(prefix+"/bin"))
	if err := os.Symlink("python3.11", p.in(prefix+"/bin/python3")); err != nil {
		t.Fatal(err)
	}
	return compile(t, p.in(prefix+"/bin/python3.11"), "int main(void){return 0;}")
}

func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mpi4py puts one that is linked with the library of that name into a folder.
func (p programs) mpi4py(t *testing.T, packages, library, name string) {
	t.Helper()
	compile(t, p.in(packages+"/mpi4py/"+name), "int f(void);int g(void){return f();}", "-shared", "-fPIC", p.in("lib/"+library), "-Wl,-rpath,"+p.in("lib"))
}

func TestPython(t *testing.T) {
	const module = "MPI.cpython-311-x86_64-linux-gnu.so"
	p := newPrograms(t)
	base := p.python(t, "usr")
	python := p.in("usr/bin/python3")
	p.mpi4py(t, "usr/lib/python3.11/site-packages", "libmpi.so.40", module)
	p.mpi4py(t, "path", "libmpi.so.12", module)
	p.mpi4py(t, "home/.local/lib/python3.11/site-packages", "libmpi.so.12", module)
	p.mpi4py(t, "both", "libmpi.so.12", "MPI.mpich.so")
	p.mpi4py(t, "both", "libmpi.so.40", "MPI.openmpi.so")
	write(t, p.in("venv/pyvenv.cfg"), "home = "+p.in("usr/bin")+"\ninclude-system-site-packages = false\n", 0o644)
	mkdir(t, p.in("venv/bin"))
	mkdir(t, p.in("bare/bin"))
	write(t, p.in("bare/pyvenv.cfg"), "home = "+p.in("usr/bin")+"\ninclude-system-site-packages = false\n", 0o644)
	mkdir(t, p.in("bare/lib/python3.11/site-packages"))
	for _, env := range []string{"venv", "bare"} {
		if err := os.Symlink(python, p.in(env+"/bin/python3")); err != nil {
			t.Fatal(err)
		}
	}
	p.mpi4py(t, "elsewhere", "libmpi.so.12", module)
	write(t, mkdir(t, p.in("venv/lib/python3.11/site-packages"))+"/easy.pth", "import nothing\n"+p.in("elsewhere")+"\n", 0o644)
	script := write(t, p.in("prog.py"), "#!"+python+"\nfrom mpi4py import MPI # bin/mpich\n", 0o755)
	runs := write(t, p.in("run.sh"), "#!/bin/sh\n"+python+" prepare.py && bin/mpich\n", 0o755)

	shim := write(t, p.in("pyenv/shims/python3"), "#!/bin/sh\nexec pyenv exec python3 \"$@\"\n", 0o755)

	tests := []struct {
		name  string
		argv  []string
		env   []string
		mpi   MPI
		needs []string
		not   []string
		err   string
	}{
		{name: "an interpreter", argv: []string{python, "prog.py"}, mpi: OpenMPI,
			needs: []string{python, p.in("usr/lib/python3.11")}},
		{name: "by its real name", argv: []string{base, "-c", "pass"}, mpi: OpenMPI, needs: []string{base}},
		{name: "a script of it", argv: []string{script}, mpi: OpenMPI, needs: []string{python, p.in("usr/lib/python3.11")}},
		{name: "PYTHONPATH comes first", argv: []string{python}, env: []string{"PYTHONPATH=path:none"}, mpi: MPICH, needs: []string{p.in("path")}},
		{name: "then the user's own", argv: []string{python}, env: []string{"HOME=" + p.in("home")}, mpi: MPICH},
		{name: "a virtual environment", argv: []string{p.in("venv/bin/python3")}, env: []string{"HOME=" + p.in("home")}, mpi: MPICH,
			needs: []string{p.in("venv/pyvenv.cfg"), p.in("usr/lib/python3.11"), p.in("elsewhere")},
			not:   []string{p.in("home/.local/lib/python3.11/site-packages")}},
		{name: "one without mpi4py", argv: []string{p.in("bare/bin/python3")}, mpi: UnknownMPI, needs: []string{p.in("usr/lib/python3.11")}},
		{name: "several", argv: []string{python}, env: []string{"PYTHONPATH=both"}, err: "is there for several MPIs (" + p.in("both") + "/mpi4py): say with --mpi"},
		{name: "a shim", argv: []string{shim}, err: "starts a Python of its choice: give that one itself (pyenv which python3)"},
		{name: "a program that is named counts for a shell", argv: []string{runs}, mpi: MPICH, needs: []string{python, p.in("bin/mpich")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := RecogniseCommand(tt.argv, p.dir, p.env(tt.env...), UnknownMPI)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.MPI != tt.mpi {
				t.Errorf("%v: %s", c.MPI, c.Because)
			}
			for _, n := range tt.needs {
				if !slices.Contains(c.Needs, n) {
					t.Errorf("%s is not in %v", n, c.Needs)
				}
			}
			for _, n := range tt.not {
				if slices.Contains(c.Needs, n) {
					t.Errorf("%s is in %v", n, c.Needs)
				}
			}
		})
	}

	plan, err := newPlan(Spec{Program: base, Agent: testAgent(t), Needs: []string{p.in("usr/lib/python3.11")}})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"usr/lib/python3.11/os.py": true, "usr/lib/python3.11/test/big.py": false, "lib/libmpi.so.40": true} {
		if _, ok := plan.tree[p.in(path)]; ok != want {
			t.Errorf("%s is in the root: %v", path, ok)
		}
	}
}

// The machine's own Python, with all that it needs, runs in a guest's root.
func TestPythonInRoot(t *testing.T) {
	const python = "/usr/bin/python3" // Debian's, whatever others there are
	if _, err := os.Stat("/usr/lib/python3/dist-packages/mpi4py"); err != nil {
		t.Fatal("this test needs mpi4py: apt install python3-mpi4py")
	}
	c, err := RecogniseCommand([]string{python, "prog.py"}, "/", []string{"PATH=/usr/bin:/bin"}, UnknownMPI)
	if err != nil {
		t.Fatal(err)
	}
	if c.MPI == UnknownMPI {
		t.Errorf("mpi4py is not recognised: %+v", c)
	}
	mnt, _ := mounted(t, Spec{Program: python, Agent: testAgent(t), Needs: c.Needs})
	out := inside(t, mnt, python, "-c", "import ssl, ctypes, json, multiprocessing, mpi4py; import mpi4py.dl; print(mpi4py.__version__)")
	if !strings.HasPrefix(out, "3.") && !strings.HasPrefix(out, "4.") {
		t.Errorf("says %q", out)
	}
}

func FuzzParseVenv(f *testing.F) {
	f.Add("home = /usr/bin\ninclude-system-site-packages = false\r\nversion=3.11.2")
	f.Fuzz(func(t *testing.T, text string) {
		for name, value := range parseVenv(text) {
			if strings.ContainsAny(name+value, "\n") || name != strings.ToLower(name) {
				t.Errorf("%q gives %q = %q", text, name, value)
			}
		}
	})
}
