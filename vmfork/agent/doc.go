// Package agent is the program in the guest, and the host's side of talking
// to it.
//
// # The way of a clone
//
//  1. [Main] is the guest's init: it mounts what a Linux process expects,
//     loads the modules of the initramfs, mounts the root disk, reads the
//     root's libraries into the page cache, and says that it is ready.
//  2. There the host takes its checkpoint. Every clone wakes up in the agent's
//     next read of the channel and knows from what it reads that it is a clone.
//  3. [Greet], on the host, sends an [Identity]. The agent sets host name,
//     MAC, address, neighbours, random pool, clock, machine and boot ids, and
//     runs the post-clone hooks, then answers. A clone that cannot is an
//     error, not a rank.
//  4. [Dial] begins a session: yamux over the channel. The host opens streams;
//     each begins with one line of JSON, a request, and one line in answer.
//     What follows belongs to the request: the bytes of a shared terminal, of
//     PMI, or the signals and the end of a process.
//
// # The channel
//
// It is the guest end of a virtio-serial port whose host end is a socket pair
// that was made before the hypervisor's process. Only the job's host daemon
// and the guest hold it, so neither end asks the other who it is.
//
// # Locking
//
// In the guest one goroutine serves each stream. Processes are waited for by
// one goroutine alone (reaper.go), for init inherits every orphan.
package agent
