// Command mpichsuite runs the part of MPICH's own test suite that is about launchers, on clones and under MPICH's own
// launcher, and says where they differ.
//
//	make test-mpich                                    # everything, on all sides
//	make test-mpich ARGS="-run spawn/ -sides clones"   # what is run anew replaces its own results
//	go run ./benchmarks/mpichsuite -build              # only what needs no root: the source, MPICH, the tests
//
// # Flow
//
//  1. MPICH and its tests are built, or found in the cache of the user (benchmarks/mpich).
//  2. Each folder's testlist says which programs to run, with how many ranks, and what becomes of it if all is well
//     (testlist.go).
//  3. Each entry runs on each side, in the folder that MPICH's own runtests runs it in (run.go), and its output and exit
//     status are judged by the rules of runtests (verdict.go).
//  4. What is found replaces the results of the same entries and sides in mpich-suite.json. A table of it is written at the
//     end of docs/mpich-suite.md (table.go). The exit status is 1 when fewer entries pass on some side than under hydra.
//
// # The sides
//
//   - hydra: the mpiexec.hydra of the same build, on this machine without clones;
//   - clones: mpirun-sf under the name mpiexec, which has hydra's options, with each rank in a clone of its own;
//   - no-clone: the same with --no-clone, on this machine;
//   - mpirun-sf: mpirun-sf by its own name, which has none of the options that testlists give to mpiexec.
//
// Clones without KVM are slow, and others may want the machine. A limit of time is that of the testlist, stretched on all
// sides alike (-stretch), as runtests has it (MPITEST_TIMEOUT_MULTIPLIER).
package main
