// Package sfld is the host daemon: it owns everything that a job has on one
// machine, and makes clones there.
//
// # A job's boundary
//
// [Start] runs the daemon as the first process of a PID namespace, in a mount
// namespace of its own, and the job's network is a namespace too. What a job
// creates lives in these: hypervisor processes, taps, memtap's mount, the job
// folder (a tmpfs). The kernel takes all of it down when the daemon ends, and
// the daemon ends when its connection to the launcher breaks. So SIGKILL of
// either leaves nothing, without anyone to clean up; what does have a name
// outside (a reservation of memory, a half-made cache entry) is under a lock
// that goes with its holder, and the next job removes it.
//
// # The way of a fork
//
//  1. [Client.RequestTicket] reserves memory and says which clones it allows.
//  2. [Client.Prepare] finds or builds the guest image, finds or makes its
//     checkpoint for the wanted shape (checkpoint.go), serves its memory, and
//     begins to start hypervisor processes for the clones to come.
//  3. [Client.Clone] makes them, all at once (clone.go): restore, identity,
//     link up. The first answer from a clone is that it is itself.
//  4. [Client.Attach] connects to a clone's agent. The bytes are not looked at.
//  5. [Client.Close] ends the daemon, and with it the job.
//
// # The connection
//
// A socket pair with yamux on it. One stream carries net/rpc; one the daemon's
// notices to the launcher (progress, a clone's death); each attached clone has
// one.
//
// # Locking
//
// Engine.mu guards the tables of an engine; nothing waits under it. Long calls
// are serialised by the launcher, which makes them one after another; Counters
// and Attach may come at any time.
package sfld
