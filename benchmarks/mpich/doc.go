// Package mpich builds MPICH from Debian's source package, with its tests, for programs that test and measure launchers.
//
// Debian's own build is for ch4:ucx. Its MPI_Comm_spawn and MPI_Open_port do not work, and across hosts it can wait forever in
// MPI_Finalize, both under hydra as well; so no launcher can be compared with hydra on it. ch3:nemesis has neither fault.
// The library has the name of Debian's, and programs that were linked with that run on this one by LD_LIBRARY_PATH.
//
// # Flow
//
//  1. [Open] looks for a build in the cache. What it was made of is in the name of its folder.
//  2. [Make] makes it otherwise. apt fetches the source package, with lists of its own in the cache, so that the machine's
//     configuration is neither needed nor touched (source.go).
//  3. MPICH is configured without what launchers have no part in, made, and installed in the cache; then the folders of its test suite
//     that are about launchers are made with it (build.go). The output of each step is in a file beside it.
//
// # Locking
//
// A build is made under a lock of its file (flock), which goes with the process. It is complete when it has a file that says so; one that is
// not is thrown away.
package mpich
