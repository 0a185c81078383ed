package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// suiteLimit is how long MPICH's own tests may take; some wait for twenty seconds and more for what must not come.
const suiteLimit = 30 * time.Minute

// MPICH's own tests of launchers: as many pass on clones as under MPICH's launcher. They need a build of MPICH of some
// minutes, which make test does not begin: it has them where make test-mpich has left one, and then a dozen. The long way
// leaves only the folder spawn to make test-mpich, some of whose programs spawn a hundred times.
func TestMPICHsOwnTests(t *testing.T) {
	builds, err := mpich.DefaultCache()
	if err != nil {
		t.Fatal(err)
	}
	which := "short"
	if full {
		which = "^(init|errors/spawn|ft|errhan)/"
	} else if _, err := mpich.Open(builds); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("open the build of MPICH's tests: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { // the user's compiler writes there
		t.Fatal(err)
	}
	suite := filepath.Join(dir, "mpichsuite")
	ctx, cancel := context.WithTimeout(t.Context(), suiteLimit)
	defer cancel()
	for _, step := range [][]string{{"go", "build", "-o", suite, "./benchmarks/mpichsuite"}, {suite, "-build", "-cache", builds}} {
		// As the user: the build is made in the user's cache.
		cmd := exec.CommandContext(ctx, step[0], step[1:]...)
		cmd.Dir = root
		asUser(cmd)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", step, err, out)
		}
	}
	r := command{
		program: suite, limit: suiteLimit,
		args: []string{"-built", "-cache", builds, "-bin", filepath.Dir(launcher), "-run", which, "-out", "-", "-doc", "-"},
	}.start(t).wait()
	t.Logf("%s", r.stderr)
	if r.status != 0 {
		t.Errorf("it ended with status %d", r.status)
	}
}
