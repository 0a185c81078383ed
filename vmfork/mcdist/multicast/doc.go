// Package multicast distributes blocks of slices, and whole objects, from the host that has them to many hosts at once,
// by IP multicast over UDP (mcdist, section 3.5 of the SnowFlock paper).
//
// A host that is origin of anything has one Sender; a host that gets anything has one Receiver. What is distributed has
// an id. Each id has a multicast group of its own, whose address follows from the job's key, so nobody has to be asked
// for it; only hosts that have the id open join it, so a switch with IGMP snooping carries it to those alone. (All
// objects that an origin publishes share one address, with different ports, because a switch needs 10 to 40 ms to learn
// of a new member; see Attend.)
//
// As in the paper the server is minimal: it knows who is a member, paces what it sends, and answers requests in the
// order in which they come. That everything arrives is the receivers' business. They ask, and ask again after a time.
//
// # A block, from a request to the sink
//
//  1. A virtual CPU waits for a block. Fetch.Bring looks whether it is here, or in a batch that is just arriving, and
//     otherwise sends a want to the sender, by unicast. The want says up to which packet of the group it has seen.
//  2. Sender.receive opens the packet. Sender.wanted compares: if the block was sent in a packet that the receiver has
//     not seen yet, it is on its way, because others have asked for it (lockstep detection), and the want is ignored. If
//     it was sent in one that the receiver should have seen, it was lost, and is sent again.
//  3. One of the urgent workers reads the block, compresses it if that pays, cuts it into symbols that fit a packet each,
//     seals them and multicasts them. It waits for no queue, and not for the rate; what it has sent is taken off what
//     bulk may send.
//  4. At each member, Fetch.receive opens the packets and puts the symbols into an assembly. When there are enough of
//     them, Fetch.complete gives the blocks to the sink, whoever asked for them, and wakes those who wait.
//  5. If nothing came after a time that follows the measured round trip, Bring asks again, and says so. Then the answer
//     is unicast to this receiver alone, for the others have it (the paper's end-game), with more parity each time.
//
// # Many blocks, from a prefetch to the sink
//
//  1. Fetch.Prefetch asks for at most 32 MB ahead. The sender puts what is not queued or on its way at the end of the
//     id's queue: receivers that want the same, want it once.
//  2. Sender.bulk takes up to 32 blocks from the front of a queue, makes a batch of them, and sends its symbols and as much
//     parity as the reported losses demand, as fast as flow control allows.
//  3. Receivers put batches together. When a later batch begins to arrive, an earlier one that is not complete is short:
//     Fetch.tend reports how many symbols it lacks, every 10 ms.
//  4. The sender gathers reports for 4 ms, and then multicasts as many fresh parity symbols as the worst receiver lacks.
//     Each of them repairs a different loss at each receiver. Reports that were sent before an earlier repair could
//     have arrived are recognised by the counter in them, and ignored.
//  5. When nothing is left to send, a beacon says so. Now whatever is missing must be asked for: receivers report short
//     batches at once, and want again the blocks of which nothing has come (the end of the paper's end-game).
//
// Push (SenderConfig.Push) adds the paper's pool of counters: each want leaves a counter behind the wanted block, and when
// nothing else is to be done the counters are cycled through and their blocks sent. Nobody asks for what is lost of it.
//
// # Flow control
//
// One rate for all groups of a sender. Each member reports how much has come, what was lost, by how much packets came later
// than the fastest did, and how long they waited in its socket. If they were more than 12 ms late, or 1 MB waits, or it
// loses notably more than it did at lower rates, the rate is too high for it. If that is so for more than a quarter of the members, the rate falls to 92 % of what those members receive, and
// by 5 % if it is so for fewer; otherwise it grows, by half every 20 ms until it was too high for the first time, then by 2 to 8 %. A member that is
// alone in not following does not count any more; if it then gets less than half of what is sent for 1.5 s, it is moved
// to unicast: its fetch ends with ErrSlow, and SenderConfig.Moved hears of it.
//
// # Packets
//
// A packet is a header of 20 bytes, a sealed message and a tag of 16; see seal.go. Keys are derived from the job's key
// (HKDF), one for each group of a sender's session, and one for each way between a sender's session and a receiver's.
// A session is 8 random bytes, drawn when a Sender or Receiver is made. The receiver learns the sender's by way of the
// job's authenticated connections (Origin), and its own is in the keys for the two of them; so what was recorded from an
// earlier session opens nowhere. Within a session the counter is the nonce, and package replay refuses what came before.
// What does not open is dropped and counted, and never answered.
//
// The messages are in packet.go: data, beacon, welcome, pong, refuse from the sender; join, leave, want, report from a
// receiver. A data message has the number of its batch, k, the symbol's index, the length of the content, the sender's
// clock, which blocks the batch has, and the symbol. Each of a batch's packets says all of that, so that none is special.
// Packets are as long as the interface's MTU allows, up to 9000, and are never cut by IP.
// Where nothing gets lost, those of bulk are several times as long, and sent in pieces (pieces.go), so that header and tag
// cost less of the link.
//
// # Silence
//
// Members report at least each second; one that is silent for 4 s is dropped (ErrSilent). The group hears a beacon twice
// a second. A fetch that hears nothing of it joins the group again after 1.2 s, in case a switch has forgotten, and ends
// with ErrDeaf after 4 s of waiting (2 s if it never heard anything), or with ErrSilent if the origin does not answer at
// all. All of these are ErrUnicast: what is missing can be had by other means.
//
// # Locking
//
// A Sender's lock guards its maps, and all of a source and a member that is not said to be guarded by something else. It
// is never held while a source is read, a packet is sealed or a socket is used. source.reading is held shared during a
// read, so that Withdraw can wait for the last one; no other lock is taken under it. pace has its own lock and is a
// leaf. Openers belong to the one goroutine that receives from their socket; sealers count atomically and have no lock.
//
// A Receiver's lock guards its origins, an origin's lock its fetches and times, a Fetch's lock all that arrives. They are
// taken in that order, the last two never together. The sink is called without a lock.
package multicast
