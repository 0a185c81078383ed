package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openmpiHello is an Open MPI program.
func openmpiHello(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	src := write(t, filepath.Join(dir, "hello.c"), helloSource, 0o644)
	out := filepath.Join(dir, "hello")
	command(t, need(t, "mpicc.openmpi", "libopenmpi-dev"), "-o", out, src)
	return out
}

func TestClosureOfOpenMPIProgram(t *testing.T) {
	f, err := Closure(openmpiHello(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if f.Kind != KindOpenMPI || f.UCX {
		t.Errorf("kind %v, UCX %v: the preload is for MPICH", f.Kind, f.UCX)
	}
	if n := f.Bytes(); n < 10<<20 || n > 70<<20 {
		t.Errorf("closure has %d MB", n>>20)
	}
	ends := func(suffix string) bool {
		for _, p := range paths(f) {
			if strings.HasSuffix(p, suffix) {
				return true
			}
		}
		return false
	}
	for _, want := range []string{
		"/mca_btl_tcp.so", "/mca_btl_vader.so", "/mca_pml_ob1.so", "/mca_ess_pmi.so", "/mca_ess_env.so", "/mca_pmix_ext3x.so",
		"/mca_oob_tcp.so", "/mca_coll_tuned.so", "/mca_io_ompio.so", "/mca_state_orted.so", "/pmix_mca_prm_default.so",
		"/bin/orted", "/bin/orterun", "/help-orted.txt", "/help-mpi-runtime.txt", "/help-ptl-base.txt",
		"/openmpi-mca-params.conf", "/pmix-mca-params.conf",
	} {
		if !ends(want) {
			t.Errorf("there is no %s", want)
		}
	}
	for _, p := range []string{"/mca_btl_openib.so", "/mca_mtl_psm2.so", "/mca_mtl_ofi.so", "libfabric.so.1"} {
		if ends(p) {
			t.Errorf("%s is of no use in a guest", p)
		}
	}
}

// A library of an Open MPI below a prefix of its own finds what was installed with it.
func TestClosureOfOpenMPIFromSource(t *testing.T) {
	prefix := t.TempDir()
	in := func(path string) string { return filepath.Join(prefix, path) }
	library := func(path, name string, more ...string) string {
		return compile(t, in(path), "int "+strings.NewReplacer("-", "_", ".", "_").Replace(name)+"(void){return 1;}",
			append([]string{"-shared", "-fPIC", "-Wl,-soname," + filepath.Base(path)}, more...)...)
	}
	pal := library("lib/libopen-pal.so.40", "pal")
	rte := library("lib/libopen-rte.so.40", "rte", "-Wl,--no-as-needed", pal)
	plugin := library("lib/openmpi/mca_pml_ob1.so", "ob1")
	broken := library("lib/openmpi/mca_pml_ours.so", "ours", "-Wl,--no-as-needed", library("gone/libgone.so.1", "gone"))
	if err := os.RemoveAll(in("gone")); err != nil {
		t.Fatal(err)
	}
	rpath := "-Wl,--no-as-needed,-rpath," + in("lib")
	orted := compile(t, in("bin/orted"), "int main(void){return 0;}", rpath, rte, pal)
	// It starts the other one, and stands on the library that brings both.
	orterun := compile(t, in("bin/orterun"), "int main(void){return 0;}", rpath, rte, pal)
	text := write(t, in("share/openmpi/help-mpi.txt"), "[a]\n", 0o644)
	conf := write(t, in("etc/openmpi-mca-params.conf"), "\n", 0o644)
	f, err := Closure(compile(t, filepath.Join(t.TempDir(), "prog"), "int main(void){return 0;}", rpath, rte, pal), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{pal, rte, plugin, orted, orterun, text, conf} {
		if !holds(f, p) {
			t.Errorf("%s is missing in %v", p, paths(f))
		}
	}
	if f.Kind != KindOpenMPI || holds(f, broken) || !strings.Contains(strings.Join(f.LeftOut, "\n"), "libgone.so.1") {
		t.Errorf("kind %v, left out %q", f.Kind, f.LeftOut)
	}
}

// In a guest with a shell, Open MPI's programs work, by each of their names.
func TestOpenMPIInShellRoot(t *testing.T) {
	need(t, "orterun", "openmpi-bin")
	mnt, _ := mounted(t, Spec{Agent: testAgent(t), Tools: true})
	for _, name := range []string{"orterun", "mpirun.openmpi", "mpiexec.openmpi"} {
		if out := inside(t, mnt, name, "--version"); !strings.Contains(out, "4.") {
			t.Errorf("%s --version: %s", name, out)
		}
	}
	// It opens each component.
	out := inside(t, mnt, "ompi_info", "--parsable")
	for _, want := range []string{"mca:btl:tcp:version", "mca:pml:ob1:version", "mca:pmix:ext3x:version", "mca:plm:rsh:version", "mca:ess:env:version"} {
		if !strings.Contains(out, want) {
			t.Errorf("ompi_info does not know %s", want)
		}
	}
}
