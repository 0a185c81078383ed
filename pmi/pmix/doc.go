// Package pmix wires up MPI programs of the Open MPI family, without Open MPI's own daemons: it is a PMIx server that is
// spread over the clones of a job. It knows nothing of virtual machines: bytes come in on one stream and go out on another.
//
// # Concepts
//
// PMIx is a library rather than a protocol: what goes between a rank and its server is libpmix's own affair. So in each
// clone runs a helper, a small C program (helper/, see sfpmix.h for its threads) that is linked with the libpmix there. It
// serves the ranks of one namespace, as PMIx calls a process group, on that clone: a node. What libpmix asks of its host
// and cannot do alone, the helper passes on, over its standard input and output, to the Server, in the launcher:
//
//	fence                      an exchange: the Server answers with what every node has contributed, one behind the other
//	direct modex               what one rank has put, asked of the helper of the node where that rank is
//	publish, lookup, unpublish the job's name service (names.go)
//	connect, disconnect        a meeting of ranks of several namespaces; each helper first learns what it lacks of them
//	spawn                      an event, that the launcher answers when the new ranks are there, or not
//	abort, connected, finalized events
//	log                        texts that Open MPI has its launcher show (message.go)
//
// # Flow
//
//  1. The launcher makes a Server and adds its Job. It has each clone start a helper, which Command describes, and
//     calls Attach with a stream of the helper's output and input.
//  2. The helper says hello, with its version of the protocol. It is sent the job, registers it, and says what it
//     wants to be in the environment of each of its ranks. That is what Attach returns, as a Node.
//  3. The launcher starts the ranks with Node.Environ, and calls Node.Serve, which lasts as long as the helper.
//  4. A rank's exit may reach the launcher before what it said last. Settle asks its helper, whose answer comes behind
//     all of that: a rank whose state is then Initialized has died between MPI_Init and MPI_Finalize.
//  5. The end of the stream's input ends the helper, which removes what it has made.
//
// # Trust
//
// Guests are not trusted, and a helper is a guest's. Frames, counts and what each node may have waiting or published
// are bounded; a node that oversteps, or says what is not its to say, loses its stream, and nobody else does. What waits for
// such a node is answered with a failure. What ranks put and publish crosses the Server unread. The environment that a
// helper asks for goes to ranks on its own clone only.
//
// # Locking
//
// Server.mu guards all of a Server's state. It is never held over I/O or an event: answers are queued for the node's writer. A
// queue holds as much as the node has asked for, and what that may be is bounded.
package pmix
