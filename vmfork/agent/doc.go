// Package agent is the program in the guest, and the host's side of talking
// to it.
//
// # The way of a clone
//
//  1. [Main] is the guest's init: it mounts what a Linux process expects,
//     loads the modules of the initramfs, mounts the root disk, reads the
//     root's libraries into the page cache, and says that it is ready.
//  2. One goroutine reads orders from the control port (control.go, main.go). A
//     checkpoint finds it there, and so does each later fork, before which
//     [Control.Freeze] has had the session stand still, with nothing on its way,
//     and stopped all processes but the agent. What the next
//     order is tells the goroutine whether it is in the parent
//     ([Control.Thaw]) or in a clone ([Control.Identify]).
//  3. With an [Identity] the agent breaks what was the parent's (the session,
//     the streams of processes, TCP connections), and sets clock, random pool,
//     host name, machine and boot ids, virtual CPUs, MAC, address and
//     neighbours. A clone that cannot is an error, not a rank.
//  4. With [Control.Begin], the link is up: the shared folders are connected
//     anew, the post-clone hooks run, a session begins on the data port behind
//     a mark, the calls that made this clone return (calls.go), and the processes
//     go on.
//  5. In a session ([Dial], and [Over] for who has it relayed) the host opens
//     streams: each begins with one line of JSON, a request, and one line in
//     answer. What follows belongs to the request: the bytes of a terminal, of
//     PMI or SSH, or the signals and the end of a process. The agent opens
//     streams, too, for the calls of the VM fork API that the guest's processes
//     make on its socket.
//
// # The ports
//
// They are the guest ends of serial ports (package guestport) whose host ends are
// socket pairs that were made before the machine. Only the job's host daemon and
// the guest hold them, so neither end asks the other who it is. Both stay open
// from the first session on, in the machine that a fork goes on in, too.
//
// # Locking
//
// Orders are carried out by the goroutine that reads them. In a session one
// goroutine serves each stream. Processes are waited for by one goroutine alone
// (reaper.go), for init inherits every orphan. From freeze to thaw the freezer's
// lock keeps processes from being started: a child between vfork and exec in a
// frozen group would hold up the agent.
package agent
