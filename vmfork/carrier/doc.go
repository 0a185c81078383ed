// Package carrier carries the machines of a job on one host: it makes them, forks
// them, and ends them, as the job's coordinator says.
//
// # Who does what
//
// The coordinator (package sfld) has tickets, owners and joins, and says which
// machine is to be where. A carrier knows none of that. It has what one host has
// for the job: hypervisor processes, memtap's mount, the host's part of the
// private network, slices. [Host] is what the coordinator asks of it. A [Carrier]
// is a host that is this process's own; a [Remote] is one that another daemon
// looks after, for which the calls go over a link (remote.go, daemon.go). The
// coordinator does not tell them apart.
//
// # Bodies and generations
//
// A body is a machine as it is here: a process, two ports, a disk, a tap
// (body.go). A generation is a machine at one instant, frozen: what clones are
// made of, and what the machine itself goes on from (generation.go). The first
// one is the checkpoint of the booted guest (checkpoint.go).
//
// # The way of a clone
//
//  1. [Host.Prepare] starts its hypervisor over a generation that may be still
//     to come: the memory's file is there, and who reads it waits.
//  2. [Host.Freeze] forks its parent (fork.go). If the clone is to be on another
//     host, the generation goes there (fabric.go): [Host.Export] publishes its
//     descriptor, [Host.Import] gets it and opens the slices that it names.
//  3. [Host.Start] loads the device state, tells the agent who it is, and lets
//     the link go up.
//  4. Its memory comes as it reads it: from the kernel's cache, if another clone
//     on this host has read it; from a slice here; or by mcdist from the host
//     that has the slice.
//  5. [Host.Open] opens streams to its agent; what its processes call goes to
//     [Events].
//  6. [Host.End] ends it.
//
// # Connections between hosts
//
// A [Mesh] connects the daemons of a job with each other: one link between any two
// that have something to say (package link). Over it go calls, events, streams to
// agents, and, on connections of their own, blocks.
//
// # Locking
//
// Carrier.mu guards the tables of a carrier, and what says so in bodies and
// generations; nothing waits under it but the end of reads that are under way, in
// fold.go. body.forking is held over a fork of a machine, and over its making and
// its end; body.orders over an order to its agent. Both are taken before
// Carrier.mu, and in this order. Mesh.mu guards the links; nothing waits under it.
package carrier
