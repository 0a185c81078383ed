package main

import (
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mpirun-sf": main, "mpiexec": main, "sf": main})
}

// The scripts are also what to read to see how the command line answers. None
// of them starts a guest.
func TestScripts(t *testing.T) {
	machine, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("MACHINE_CACHE", machine) // of this user, with a kernel in it
			bin, _, _ := strings.Cut(e.Getenv("PATH"), ":")
			e.Setenv("BIN", bin) // where mpirun-sf is, and nothing else
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/cache")
			return nil
		},
	})
}
