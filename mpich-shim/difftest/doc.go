// Package difftest runs the same command lines with MPICH's mpiexec, as Debian has it,
// and with this one, and compares what comes out: standard output, the shape of
// standard error, and the exit status. The table of them (table_test.go) is what is
// known of how the two differ, and why.
package difftest
