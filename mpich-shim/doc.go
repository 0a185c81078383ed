// Package mpichshim reads what a user of MPICH says to its mpiexec, which is called
// Hydra, and answers as that does. It starts nothing: it turns a command line, the
// environment and files into a description, and a job's end into what Hydra would
// have said of it.
//
// # Flow
//
//  1. [Parse] reads the command line, then a file of options (named by -configfile
//     or HYDRA_CONFIG_FILE, ~/.mpiexec.hydra.conf or that of /etc), and then the
//     variables that stand for options. What was said first counts. The result is a
//     [Command], or what to print instead of running anything.
//  2. [Command.Nodes] are the hosts with their slots, and [Layout] says which ranks
//     go where. A program without a number of ranks gets as many as there are slots.
//  3. [Command.Environ] is the environment of a program's ranks.
//  4. [Printer] writes what ranks write: with a prefix, into files, or of one rank only.
//  5. [Ends] takes the end of each rank, and says what became of the job: exit status
//     and the banners.
//
// The meaning of all of it was measured with Hydra 4.0.2 as Debian has it, and what is
// done differently is a row with its reason in a table that a test reads
// (mpirun-sf/e2e, TestHydra).
//
// # Locking
//
// Only [Printer] is used from many goroutines, and has a mutex.
package mpichshim
