// Package vmfork is VM fork: cloning a running virtual machine into many, each
// of which fetches of its memory only what it touches. It is the SnowFlock
// paper's API (Lagar-Cavilla et al., ACM TOCS 29(1), 2011, table I) for programs
// in such a machine; and its subpackages are the engine, one for each word of
// the paper. The second half of this comment says where to begin to read them.
//
// # The API
//
//	t, err := vmfork.RequestTicket(ctx, 4)
//	...
//	id, err := vmfork.Clone(ctx, t)
//	...
//	if id > 0 { // in clone id, with everything as it was
//		work(id, len(t.Clones))
//		vmfork.Exit(0)
//	}
//	statuses, err := vmfork.Join(ctx, t)
//
// [Clone] returns in the parent and in each clone. [CheckpointParent] and
// [CreateClones] are the same in two steps, which may be hours apart. Calls of
// a [Machine] with a name act on another machine, and [AwaitFork] is how that
// one hears of it. docs/api.md describes each call in all languages, and what
// of a machine survives its fork.
//
// # What a Go program should know of being copied
//
// The whole program is copied, in the middle of whatever it was doing: every
// goroutine is in every clone, locks and channels are as they were, and those
// that do not wait for a fork run on. A goroutine that must not run on in a
// clone asks [Whoami] at points of its choosing, or waits in [AwaitFork]
// beside the others. Another call that is under way when somebody else forks
// fails in the clones with [ErrCloned], for its answer belongs to the parent.
//
// Contexts are copied too, and a cancellation in one copy is unknown in the
// others. Deadlines, timers and tickers count the monotonic clock, which
// stands still while a copy does not run: a clone that is made of a checkpoint
// an hour later still has as much time left. The wall clock is set anew in
// every clone, so that [time.Now] is right, and the difference of two wall
// times across a fork holds the hour.
//
// TCP connections do not survive in clones: reads and writes fail. Connections
// over Unix sockets do, for both ends are copied. math/rand has the same state
// in all copies, so that clones should seed it with their ids; crypto/rand
// asks the kernel, which is reseeded.
//
// # Locking
//
// There is no state in this package: each call has a connection of its own, and
// all functions may be called from any goroutine.
//
// # The way of a page, from the parent's RAM to a clone's fault
//
//  1. hypervisor/qemu boots a guest whose RAM is a file, and stops it.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu.Driver.Boot]
//  2. slice seals that file: which blocks hold something, and their checksums.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/slice.Seal]
//  3. descriptor keeps the rest of the machine: the device state, and which
//     slices belong to it.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/descriptor.Descriptor]
//  4. memtap serves the image, a stack of slices, as a file.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/memtap.Tap.Deliver]
//  5. hypervisor/qemu makes a machine over a private mapping of that file and
//     loads the device state. Its vCPUs run, with no RAM yet.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu.Driver.Prepare]
//  6. A vCPU touches a page: a page fault, a FUSE READ, and memtap answers it
//     from the slice that has it, or with zeros. A write copies the page, and
//     from then on it is the clone's own.
//
// # The way of a live fork, from a call to its clones
//
// A machine forks while it runs, and nothing is copied while it pauses.
//
//  1. A process in the guest calls over the agent's socket; the agent passes
//     the call on to the daemon. [github.com/mpirun-sf/mpirun-sf/vmfork/api]
//  2. With the ticket already, hypervisors for the clones and for the machine's
//     own successor are started ahead. Their RAM is a file that memtap serves
//     and whose image is not known yet: who reads it waits.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/memtap.Tap.Expect]
//  3. The agent freezes the guest's processes, and frames to the machine queue
//     at its successor's interface.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/network.Network.HandOver]
//  4. The hypervisor writes the device state and is stopped. What it had
//     written of its RAM can still be read.
//  5. The disk's top slice is frozen, and gets a new top over it.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/slice.Image.Restack]
//  6. The successor loads the device state and runs, and the agent thaws the
//     processes. Meanwhile the written pages become a slice that reads from
//     the stopped process, and with it the image is whole: those who read it
//     wait no longer. [github.com/mpirun-sf/mpirun-sf/vmfork/slice.Adopt],
//     [github.com/mpirun-sf/mpirun-sf/vmfork/memtap.Tap.Deliver]
//  7. The clones load the same state. Each agent is told who it is, and with
//     that sets clock, random numbers, name, addresses and virtual CPUs, connects
//     the shares anew, runs the hooks, and thaws. The call returns, in every
//     copy.
//  8. In the background the pages are copied, and the stopped process goes.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/slice.Slice.Settle]
//
// # Around it
//
//   - ticket and allocator: how many clones there may be, and where.
//   - network: a private one for each job; share: the user's folders in it.
//   - guest: an image made from this machine; agent: the program inside.
//   - sfld: the host daemon, which puts all of these together for a job.
//
// Dependencies point one way: sfld stands on memtap, network, hypervisor,
// share, guest and agent; these on slice, descriptor and ticket; these on
// nothing of the project's but network's addresses.
package vmfork
