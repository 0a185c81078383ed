// Package sfld is the host daemon: the coordinator of a job, and on other hosts
// what carries its machines.
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
// A daemon of another host ([HostMain]) has the same boundary there. It ends with
// its standard input, which an allocator holds, and with the link to the
// coordinator.
//
// # Machines, generations, grants
//
// A machine is a virtual machine of the job: a clone, or the first one of
// mpirun-sf vm run (machine.go). A host carries it (package carrier). A generation
// is a machine at one instant, frozen: what clones are made of, on whichever hosts
// (generation.go). The first generation is the checkpoint of the booted guest. A
// grant is a ticket, and what became of it (grant.go); site.go says where its
// clones are to be.
//
// # The way of a job
//
//  1. [Client.Join] has other hosts carry the job, too (join.go, host.go).
//  2. [Client.RequestTicket] reserves memory and says which clones it allows.
//  3. [Client.Prepare] finds or builds the guest image, finds or makes its
//     checkpoint for the wanted shape, and begins to start hypervisor processes
//     for the clones to come.
//  4. [Client.Clone] makes them, all at once (clone.go). [Client.StartVM] makes
//     one, which is nobody's clone.
//  5. [Client.Attach] opens streams to the agent of a machine. With [Client.Listen]
//     machines open connections to the launcher (listen.go).
//  6. Machines, and the host through [Client.API], call the VM fork API
//     (calls.go); fork.go is what clone and checkpoint-parent do to a machine that
//     runs.
//  7. [Client.Close] ends the daemon, and with it the job.
//
// # The connection
//
// A socket pair with yamux on it. One stream carries net/rpc; one the daemon's
// notices to the launcher (progress, a machine's death); each stream to an agent,
// each connection to the API, and each from a machine to the launcher is one more.
//
// # Locking
//
// Engine.mu guards the tables of an engine, and what says so in machines, grants
// and generations; nothing waits under it. machine.forking is held over a fork of
// a machine and over its end, and is taken before Engine.mu. Calls of the API may
// come at any time, from anybody; the launcher makes its own one after another.
package sfld
