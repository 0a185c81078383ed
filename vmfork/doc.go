// Package vmfork is the engine of VM fork: cloning a running virtual machine
// into many, each of which fetches of its memory only what it touches. It is
// one package for each word of the SnowFlock paper (Lagar-Cavilla et al., ACM
// TOCS 29(1), 2011); this one only says where to begin.
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
//     [github.com/mpirun-sf/mpirun-sf/vmfork/memtap.Tap.AddMemory]
//  5. hypervisor/qemu makes a machine over a private mapping of that file and
//     loads the device state. Its vCPUs run, with no RAM yet.
//     [github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu.Driver.Prepare]
//  6. A vCPU touches a page: a page fault, a FUSE READ, and memtap answers it
//     from the slice that has it, or with zeros. A write copies the page, and
//     from then on it is the clone's own.
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
