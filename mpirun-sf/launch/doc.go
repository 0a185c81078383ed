// Package launch runs the ranks of an MPI job in clones that are ready.
//
// # The flow
//
//  1. [Job.Run] makes the job's process group (group.go): its ranks, numbered
//     through its programs, in the places that the caller has for them.
//  2. In every clone at once it prepares how the ranks find each other (wire.go)
//     and opens their standard streams: rank 0 alone gets an input.
//  3. When every clone has answered, all ranks start; those that have not
//     after [Job.StartLimit] are named, and none of the job goes on.
//  4. Output comes as lines and goes out as lines, whole, labelled if asked, or
//     to where the caller wants it (output.go).
//  5. Each rank's end is judged by its exit and by how far it had come in MPI
//     (verdict.go, or the caller's rules): a rank that leaves its peers waiting
//     ends the job.
//  6. A rank that wants more ranks (MPI_Comm_spawn, spawn.go) is given another
//     group, beside its own, in places that the caller finds for it.
//  7. Signals go to every rank; a second SIGINT ends the job by force.
//
// The clones are the caller's. Run ends the ranks of a job that failed, but not
// the clones: whoever made them does, and that ends what may still run in them.
//
// # In a virtual machine
//
//  1. [Fork.Checkpoint] keeps the machine as it is before the job. The launcher
//     is in what is kept; it holds a secret and knows where it listens.
//  2. [Fork.Clones] makes clones of that, at any time and for any ticket. In each
//     the launcher's copy comes out of the checkpoint's call, finds itself in a
//     clone, connects to the original, proves that it has the secret, says which
//     clone of which ticket it is (handshake.go), and serves as a guest's agent
//     does.
//  3. The original lets them in as long as the fork is open (gather.go), and
//     watches over the machines.
//  4. A copy whose original is gone ends its clone. The ticket and the checkpoint
//     are held: the daemon ends them when the launcher's process is no more.
//
// # Locking
//
// One goroutine, Run's, holds the job's state and receives everything that
// happens as an event. Others only send events; a group that starts is the
// starting goroutine's until the event that says so. A fork's mutex guards which
// tickets' clones are awaited; several may be made at once.
package launch
