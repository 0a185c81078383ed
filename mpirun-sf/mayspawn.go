package main

import (
	"debug/elf"
	"slices"
	"strings"
)

// ofAnyProgram begin the names of libraries that spawn nothing of their own accord.
var ofAnyProgram = []string{
	"libc.", "libm.", "libmvec.", "libpthread.", "librt.", "ld-linux", "libgcc_s.", "libstdc++.", "libgfortran.", "libquadmath.", "libgomp.",
	"libmpi.", "libmpich", "libmpi_", "libmpifort.", "libmpicxx.", "libopen-",
}

// maySpawn tells whether a program may come to MPI_Comm_spawn. It errs on that side:
// that a program does not is known of those alone that call MPI themselves, do not
// refer to that function, and load nothing that could do so for them. An
// interpreter, for one, does not refer to MPI at all.
func maySpawn(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return true
	}
	for _, l := range libraries {
		if !slices.ContainsFunc(ofAnyProgram, func(known string) bool { return strings.HasPrefix(l, known) }) {
			return true
		}
	}
	symbols, err := f.ImportedSymbols()
	if err != nil {
		return true
	}
	mpi := false
	for _, s := range symbols {
		// MPI_X and PMPI_X in C, mpi_x_ and the like in Fortran.
		name := strings.TrimPrefix(strings.ToLower(s.Name), "p")
		if strings.HasPrefix(name, "mpi_comm_spawn") || s.Name == "dlopen" {
			return true
		}
		mpi = mpi || strings.HasPrefix(name, "mpi_")
	}
	return !mpi
}
