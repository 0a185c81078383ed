// Package launch runs the ranks of an MPI job in clones that are ready.
//
// # The flow
//
//  1. [Job.Run] opens, in every clone at once, the PMI proxy's upstream and
//     the standard streams of its ranks: rank 0 alone gets an input.
//  2. When every clone has answered, all ranks start; those that have not
//     after [Job.StartLimit] are named, and none of the job goes on.
//  3. Output comes as lines and goes out as lines, whole, labelled if asked
//     (output.go).
//  4. Each rank's end is judged by its exit and by how far it had come in PMI
//     (verdict.go): a rank that leaves its peers waiting ends the job.
//  5. Signals go to every rank; a second SIGINT ends the job by force.
//
// The clones are the caller's. Run ends the ranks of a job that failed, but not
// the clones: whoever made them does, and that ends what may still run in them.
//
// # Locking
//
// One goroutine, Run's, holds the job's state and receives everything that
// happens as an event. Others only send events.
package launch
