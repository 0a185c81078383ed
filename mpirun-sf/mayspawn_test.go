package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestMaySpawn(t *testing.T) {
	dir := t.TempDir()
	build := func(name, source string, flags ...string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".c", []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("mpicc.mpich", append([]string{"-o", path, path + ".c"}, flags...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("compile %s: %v: %s", name, err, out)
		}
		return path
	}
	const spawns = "#include <mpi.h>\nMPI_Comm c; int f(void) { return MPI_Comm_spawn(\"x\", 0, 1, MPI_INFO_NULL, 0, MPI_COMM_SELF, &c, 0); }\n"
	const calls = "#include <mpi.h>\nint f(void); int main(void) { MPI_Init(0, 0); return f(); }\n"
	library := build("libspawns.so", spawns, "-shared", "-fPIC")
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		build("init", "#include <mpi.h>\nint main(void) { return MPI_Init(0, 0); }\n"):                                        false,
		build("spawns", spawns+"int main(void) { MPI_Init(0, 0); return f(); }\n"):                                            true,
		build("behind", calls, library):                                                                                       true,
		build("loads", "#include <dlfcn.h>\n#include <mpi.h>\nint main(void) { dlopen(\"x\", 1); return MPI_Init(0, 0); }\n"): true,
		build("none", "int main(void) { return 0; }\n", "-Wl,--as-needed"):                                                    true, // it may run others
		script:                   true,
		dir + "/no-such-program": true,
	} {
		if got := maySpawn(path); got != want {
			t.Errorf("%s may spawn: %v", filepath.Base(path), got)
		}
	}
}
