// Package pmi wires up MPI programs of the MPICH family: it speaks PMI ("simple PMI", versions 1.1, 1.2 and 2.0) with the
// ranks, so that they find each other. It knows nothing of virtual machines: bytes come in on one stream and go out on
// another.
//
// # Concepts
//
// A process group (Group) is ranks that start together and know each other from the start. It has a key-value space, the
// KVS: a rank puts how it can be reached, all ranks meet in a barrier, and then each gets what the others have put. A job
// has one group at first. MPI_Comm_spawn makes further ones, each with a KVS, a Server and proxies of its own; what they
// share is the job's name service (Names).
//
// A Server, in the launcher, holds a group's state. A Proxy, in the agent of each clone, serves the group's ranks there:
// each rank has a connection, which it finds by its environment, and whose other end is given to ServeRank. The proxies
// talk to the server, each over one reliable, ordered stream.
//
// The proxy answers what it can. Of what MPICH asks between start and end, only the barrier waits for the network:
//
//	PMI-1                             PMI-2
//	init, get_maxes, get_appnum,      fullinit, job-getid,      answered by the proxy; init and finalize are also told
//	get_my_kvsname, finalize,         finalize,                 to the server
//	get_universe_size                 info-getjobattr
//	put, create_kvs, destroy_kvs      kvs-put                   accepted by the proxy; goes up with the next barrier
//	get                               kvs-get                   from the cache; asks the server for what is not there
//	getbyidx                                                    from the cache
//	barrier_in                        kvs-fence, ring           one message up when all local members are in, with what
//	                                                            was put; one down when all are in, with what is new. A
//	                                                            barrier of one clone's ranks does not leave it
//	                                  info-putnodeattr,         kept by the proxy, for the ranks of its clone
//	                                  info-getnodeattr
//	publish_name, lookup_name,        name-publish,             asked of the server
//	unpublish_name                    name-lookup, name-unpublish
//	spawn                             spawn                     handed to the launcher, whose answer the rank waits for
//	abort                             abort                     goes up at once; has no answer, the rank waits to be killed
//
// What is not known is answered with the failure that the client expects, and reported.
//
// # Flow
//
//  1. The launcher makes a Group (which rank is on which clone is in it), a Names and a Server, and sends the group to
//     each clone's agent with the list of ranks that it is to run.
//  2. For each clone the launcher calls Serve on its end of a stream, and the agent makes a Proxy and calls Run on the
//     other. They greet each other; a version, group or rank list that does not match is refused with the reason.
//  3. For each rank the agent makes a socket pair, calls ServeRank on one end, and starts the program with the other end
//     and Environ's variables. The agent must close its copy of the program's end, or it will not see the rank hang up.
//     In port mode it calls ServePort once instead, and starts the programs with PortEnviron's variables.
//  4. The rank's first request, init, says which version it speaks. It is a line for both; those of PMI-2 go on with
//     packets, and each request is answered in its own syntax. Requests go as above. Events tell the launcher of each init
//     and finalize, of MPI_Abort, of spawns, and of what a rank should not have sent.
//  5. For a spawn the launcher decides where the new ranks go, makes SpawnRequest.Group, a Server with the same Names, and
//     proceeds with it as from 1. When the programs run, or cannot be started, it calls SpawnRequest.Answer. The ranks of
//     both groups then connect to each other by what is preput in the new group's KVS, which is none of PMI's business.
//  6. A rank's connection ends. ServeRank returns, and Events.Closed tells the launcher the state that the rank was left
//     in. Whether the job goes on is decided there: the other ranks are served on, and one that waits in a barrier for
//     the lost rank waits until the launcher ends it.
//  7. The rank's exit status reaches the launcher by the agent's own way, which may be faster than the stream. WaitClosed
//     puts the two in order: a rank whose final state is Initialized has died between init and finalize, whatever its
//     status. (The agent can also wait for ServeRank and send RankState with the exit status.)
//  8. When all ranks of a clone are closed the server says goodbye, and both Run and Serve return nil. For a program that
//     could not be started the agent closes the pair, as if the rank had ended; in port mode it calls Absent.
//
// A program that was started without a launcher asks for one when it first needs one. Singleton is what that launcher
// does in place of 1 to 4.
//
// # Visibility
//
// A put is seen by gets of the same clone at once and by those of other clones after the next barrier that both clones have
// members in, which is what PMI promises; a get that the cache cannot answer may see it sooner. A key that is put again
// takes the new value. Where two ranks put one key before the same barrier of everybody, all ranks see the same one of the
// two values afterwards.
//
// # Limits
//
// Guests are not trusted. Lines, packets, spawns, keys, values, names, frames and the bytes that each rank may hold in the
// KVS are bounded, as are the barriers that it waits in and the spawns that are not answered, and so is what either side
// queues. What a rank sends beyond its bounds is reported under its number and ends its connection. A proxy that breaks the
// protocol ends its Serve, and no other. A value cannot carry a line end from one clone to the ranks of another, nor a
// message a control character to the launcher's terminal. The strings of a SpawnRequest are the guest's, unchanged.
//
// MaxValue is smaller than the 1024 that other launchers announce, so that the longest put fits the line buffer of
// MPICH's client, which hangs otherwise. PMI-2 announces nothing, and its values have up to 1024 bytes.
//
// # Known trouble that is not solved here
//
// Debian's MPICH 4.0.2 (UCX) can hang in MPI_Finalize across hosts: it stops communicating while it waits for the last
// barrier's answer, which a peer needs to get there. No server can help; the rank's read of PMI_FD has to go on driving UCX.
//
// # Locking
//
// Server.mu guards all of a server's state. It is never held over I/O or an Event: answers are queued for the peer's writer,
// and a queue that is full means a proxy that asks without reading, whose stream is ended. Names.mu is taken under it.
//
// Proxy.mu guards all of a proxy's state and is never held over I/O. Proxy.writing orders writes to the stream, and what
// goes into them where that depends on the state: it is taken before mu, never with mu held. Writers may wait for the
// server's reader, which never waits; the proxy's reader never writes.
//
// Each ServeRank has a goroutine that reads and one that answers; what waits for other ranks (barriers, node attributes)
// has one each, and link.writing keeps their answers apart. The reader alone handles abort and the end of the connection,
// so that both are noticed while the rank waits.
package pmi
