// Package mcdist gets the blocks of slices, and whole small objects such as descriptors, from the host that has them to
// those that want them (section 3.5 of the SnowFlock paper, which calls it so, too).
//
// Each host of a job has one Node. Any of them can be the origin of a slice, and then serves it; the others fetch what
// their clones need, when they need it. The origin is as simple as it can be: it remembers nothing of who has got what.
// All that is sent was asked for by the one who gets it, so a slow receiver, a broken connection or a host that is gone
// is nobody's business but its own. Even a push is an offer, of which a receiver asks for what it has not got.
//
// # The flow of a fault
//
//  1. A read of a far slice meets blocks that are not here, and calls Fetch.Bring.
//  2. Those of them that were asked for already, by another Bring or shortly before in bulk, are waited for. The others are
//     named in one request, whatever their number (fetch.go).
//  3. The request goes over the urgent lane to the origin: a stream of its own, on which nothing else goes that is larger
//     than a few bytes. Whoever faults writes it; nobody has to be woken (lane.go).
//  4. The origin reads the blocks and answers, at most 64 KB in a frame and a write (serve.go). Bulk waits meanwhile, for 2 ms
//     at most.
//  5. The lane's reader gives the blocks to the sink, and wakes those who wait for them.
//
// # The flow of bulk
//
//  1. Prefetch takes blocks from its caller, in the caller's order; a push comes as an offer from the origin, of which the
//     same is made (offer.go).
//  2. As much is asked for, over the bulk lane, 16 KB at a time, as fits into the way to the host and back at the rate at
//     which blocks come, and 32 KB more (pace.go). So an urgent answer never finds more than some 64 KB before it in the
//     buffers between, however large they are; and how fast the network is need not be known.
//  3. The host sends pieces of at most 32 KB, compressed if that is faster (compress.go), each when no fault is being
//     answered (feed.go).
//
// # Trees
//
// Where many hosts fetch the same, they can be relays for each other (tree.go): a host asks its parent in the tree
// instead of the origin, in bulk, and the parent asks its own. Each piece is sent on as soon as it has come. So a host sends
// everything twice, and none more often. A relay that has nothing of the slice says so; one that says nothing for a second
// is given up; in both cases the rest is asked of the origin. Faults go to the origin at once: what a relay could answer was
// mostly meant for this host as well, so it would have to ask in its turn.
//
// # Multicast
//
// Package multicast has the paper's own way: what one host asks for is sent to all. It has sockets of its own, and finds the
// origin by what the nodes tell each other over their streams. A Fetch that hears the origin's multicast (cast.go) asks that
// way, and any block that comes is the sink's, whoever has asked for it. What does not come in time is asked for over the
// streams too, and a host that is deaf, or was found too slow for the others, uses only them. Nothing is lost by a
// change: a Fetch knows what has come, and in which way does not matter.
//
// # Which way
//
// An origin decides (way.go). With [Auto] and more than one other host it sends each of them a small object by multicast, and
// asks over the streams whether it has come. If it has, at two hosts or more and at half of them or more, it takes
// multicast; otherwise the tree, for four hosts or more; otherwise unicast. Receivers ask which it is, those that were asked
// whether they hear it at once. Until they know they fetch by unicast, so nobody waits for that; an origin that calls
// [Node.Prepare] early has it decided in time, and its hosts in the group of its objects, which a switch takes some 20 ms to
// learn.
//
// Five hosts at a switch of 1 Gbit/s (BenchmarkNetwork; this machine has two processors for all of them), 24 MB of blocks,
// half of which can be compressed, to each of four: 0.50 s and 50 MB sent by the origin by unicast, 0.48 s and 25 MB by
// the tree, 0.17 s and 14 MB by multicast. A fault took 0.1 ms alone by unicast, and 0.3 ms beside that bulk; by multicast
// 0.2 ms, and 0.2 ms.
//
// # Connections
//
// A stream is for the requests of the host that dialed it. When it breaks it is dialed again, for as long as anybody waits,
// and what had not come is asked for again. Who waits is told when the host has been silent for Config.Patience, 20 s.
//
// # Frames, little endian
//
//	 0  length of the body (u32)         6  of blocks: streams fed in bulk; of a want: MB/s (u16)
//	 4  kind (u8), 5 flags (u8)          8  number of the request (u32); 0 for hello, bye and what is wrong with the stream
//
//	hello   "SFMC", version (u8), lane (u8)     the first frame of who dials
//	want    id (16), runs of blocks             a run: first (u64), number (u32); at most 4096 of them
//	blocks  first (u64), number (u32), data     at most 16; the last one of an answer has a flag
//	refuse  reason (u8), text                   instead of an answer, or of the rest of it
//	ask     id (16)                             answered with object, when it is published
//	object  size (u64), SHA-256 (32)
//	offer   id (16), size (u64), SHA-256 (32), number of receivers (u32), receivers (u32 each), runs of blocks
//	probe   id (16), a multicast origin         "do you hear this?"; answered with done, or refused
//	way     nothing                             "how do you distribute?"; answered with
//	way     mode (u8), a multicast origin, if it is multicast
//	done    nothing                             the answer to an offer, or a probe
//	cancel  nothing                             nobody waits for the request of this number
//	bye     nothing                             the node ends, and will answer nothing
//
// No frame is larger than 64 KB and a little. Whatever breaks the rules ends the stream.
//
// # Locking
//
// A Node's lock guards its tables, a lane's its requests and its buffer, a Fetch's what has come and who waits, an inbound's
// what it still has to send. They are taken in this order: node, inbound; and lane, fetch; and lane, pace. None is held over
// a write, a read of a source, a call of a sink, a call of package multicast (but to make its ends), or a wait. A served
// source has a lock that its readers share, and that Withdraw takes.
package mcdist
