// Package openmpi runs Open MPI's own launcher on clones (section 3.9.1 of the paper): orterun starts its daemon, orted,
// in each of them, and the daemons start the ranks.
//
// # The way of a job
//
//  1. The launcher has clones, and a session with the agent in each of them. It makes two keys for the job, which are
//     never written to a file: one that SSH clients show, and one that the clones' SSH servers show.
//  2. It listens on an abstract socket for remote shell agents ([Job.Environ]), and where clones reach it, at the
//     gateway of their private network, for orted's connections.
//  3. orterun is started, by the launcher or by a user, with this program for its remote shell agent: for each clone it
//     runs AGENT HOST COMMAND-LINE ([Agent]).
//  4. The agent tells the launcher host and command line. It proves that it belongs to the job by a token in its
//     environment, and the kernel says whose process it is.
//  5. The launcher answers with the keys and the command line as the clone is to run it: where orterun is, is now the
//     launcher's address on the private network. The connection then carries SSH to the clone's agent, and ssh's exec
//     request runs orted there, as the job's user.
//  6. orted connects to that address. The launcher sees which clone that is, connects to orterun's own port, and carries
//     bytes both ways. Nothing else of this machine is reached that way, and nobody but the job's clones gets it.
//  7. orted starts ranks; those speak with each other over the private network.
//  8. orterun ends, and its exit status is the job's. When a clone is lost, its orted's connection is closed, which orterun
//     takes for the end of that daemon.
//
// # mpirun-sf ompi allocate
//
// An orterun that the launcher did not start (the plugin's) has the same from
//
//	mpirun-sf ompi allocate -np N [-ppn K] [options of mpirun-sf] PROGRAM [ARGUMENTS]
//
// Its stdin has to be a pipe or a socket that closes when orterun ends, however it does: then all clones end, and so
// does the process, with 0. It says on stdout, each in one line that ends in a line feed, whose last field is the rest of
// the line:
//
//	host NAME SLOTS ADDRESS   a clone: its host name, ranks for it, IPv4 address on the private network
//	mca NAME VALUE            a parameter that orterun must have when it launches its daemons
//	env NAME VALUE            a variable that orterun must have in its own environment when it starts remote shell agents;
//	                          a secret, so it is never part of a command line, and no rank gets it
//	ready                     the clones are there
//	error TEXT                it failed, and exits with 1
//
// First all host lines, in the order in which ranks fill them, then mca and env lines in any order, then ready; or error
// instead of any. After ready there may be an error, when a clone is lost: its orted's connection has been closed by
// then, so orterun notices too, and the process goes on until its stdin closes. Progress is told on stderr.
//
// In a virtual machine the fork copies the launcher, too. Its copies in the clones wait for what is said here, and hear
// neither a line nor an end as long as they live; they must not give up by themselves, for a script may go on after them.
//
// The parameters are plm_rsh_agent, plm_rsh_no_tree_spawn and such that are about how orterun launches; what orted
// needs is put into its command line by the agent.
//
// # Locking
//
// [Server].mu guards who has connected, and nothing waits under it. One goroutine serves each connection, and ends it
// for both of its ends when the server's context ends.
package openmpi
