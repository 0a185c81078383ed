// Package pmi wires up MPI programs of the MPICH family: it speaks PMI-1 ("simple PMI", version 1.1) with the ranks, so
// that they find each other. It knows nothing of virtual machines: bytes come in on one stream and go out on another.
//
// # Concepts
//
// A process group (Group) is the ranks of one job. It has a key-value space, the KVS: a rank puts how it can be reached,
// all ranks meet in a barrier, and then each gets what the others have put.
//
// A Server, in the launcher, holds the group's state. A Proxy, in the agent of each clone, serves the ranks there: each
// rank has a socket pair, one end of which it finds by the environment variable PMI_FD (Environ), while the other is given
// to ServeRank. The proxies talk to the server, each over one reliable, ordered stream.
//
// The proxy answers what it can. Of what MPICH asks between start and end, only the barrier waits for the network:
//
//	init, get_maxes, get_appnum,      answered by the proxy; init and finalize are also told to the server
//	get_my_kvsname, get_universe_size,
//	finalize
//	put                               accepted by the proxy; goes up with the next barrier
//	get                               from the cache; asks the server for what is not there, and answers what it says
//	barrier_in                        one message up when all local ranks are in, with their puts; one down when all
//	                                  ranks are in, with what everybody put since the last barrier
//	abort                             goes up at once; has no answer, the rank waits to be killed
//	spawn, publish_name, ...          answered with the failure that the client expects, and reported
//
// # Flow
//
//  1. The launcher makes a Group (the layout of ranks as Mapping writes it) and a Server, and sends the group to each
//     clone's agent with the list of ranks that it is to run.
//  2. For each clone the launcher calls Serve on its end of a stream, and the agent makes a Proxy and calls Run on the
//     other. They greet each other; a version, group or rank list that does not match is refused with the reason.
//  3. For each rank the agent makes a socket pair, calls ServeRank on one end, and starts the program with the other end
//     and Environ's variables. The agent must close its copy of the program's end, or it will not see the rank hang up.
//  4. init, put, get, barrier_in and finalize go as above. Events tell the launcher of each init and finalize, of MPI_Abort,
//     and of what a rank should not have sent.
//  5. A rank's connection ends. ServeRank returns, and Events.Closed tells the launcher the state that the rank was left
//     in. Whether the job goes on is decided there: the other ranks are served on, and one that waits in a barrier for
//     the lost rank waits until the launcher ends it.
//  6. The rank's exit status reaches the launcher by the agent's own way, which may be faster than the stream. WaitClosed
//     puts the two in order: a rank whose final state is Initialized has died between init and finalize, whatever its
//     status. (The agent can also wait for ServeRank and send RankState with the exit status.)
//  7. When all ranks of a clone are closed the server says goodbye, and both Run and Serve return nil. For a program that
//     could not be started the agent closes the pair, as if the rank had ended.
//
// # Visibility
//
// A put is seen by gets of the same clone at once and by those of other clones after the next barrier, which is what PMI
// promises; a get that the cache cannot answer may see it sooner. A key that is put again takes the new value. Where two
// ranks put one key before the same barrier, all ranks see the same one of the two values afterwards.
//
// # Limits
//
// Guests are not trusted. Lines, multi-line commands, keys, values, frames and the bytes that each rank may hold in the KVS
// are bounded, and so is what either side queues. What a rank sends beyond its bounds is reported under its number and
// ends its connection. A proxy that breaks the protocol ends its Serve, and no other. A value cannot carry a line end from
// one clone to the ranks of another, nor a message a control character to the launcher's terminal.
//
// MaxValue is smaller than the 1024 that other launchers announce, so that the longest put fits the line buffer of
// MPICH's client, which hangs otherwise.
//
// # Known trouble that is not solved here
//
// Debian's MPICH 4.0.2 (UCX) can hang in MPI_Finalize across hosts: it stops communicating while it waits for the last
// barrier's answer, which a peer needs to get there. No server can help; the rank's read of PMI_FD has to go on driving UCX.
//
// # Locking
//
// Server.mu guards all of a server's state. It is never held over I/O or an Event: answers are queued for the peer's writer,
// and a queue that is full means a proxy that asks without reading, whose stream is ended.
//
// Proxy.mu guards all of a proxy's state and is never held over I/O. Proxy.writing orders writes to the stream, and is
// never taken with mu held. Writers may wait for the server's reader, which never waits; the proxy's reader never writes.
//
// Each ServeRank has a goroutine that reads and one that answers. The reader alone handles abort and the end of the
// connection, so that both are noticed while the rank waits in a barrier.
package pmi
