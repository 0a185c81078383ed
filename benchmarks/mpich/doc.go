// Package mpich builds MPICH from Debian's source package, with its tests, for programs that test and measure launchers.
//
// Debian's own build is for ch4:ucx. Its MPI_Comm_spawn and MPI_Open_port do not work, and across hosts it can wait forever in
// MPI_Finalize, both under hydra as well; so no launcher can be compared with hydra on it. ch3:nemesis has neither fault.
// The library has the name of Debian's, and programs that were linked with that run on this one by LD_LIBRARY_PATH.
//
// # Flow
//
//  1. [Open] looks for a build in the cache. What it was made of is in the name of its folder.
//  2. [Make] makes it otherwise: the source package is fetched ([debian.Source]); MPICH is configured without what launchers
//     have no part in, made, and installed in the cache; then the folders of its test suite that are about launchers are made
//     with it.
//
// Locking is that of package debian.
package mpich
