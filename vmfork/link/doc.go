// Package link connects the daemons of a job's hosts with each other.
//
// Between two daemons is one link: mutual TLS 1.3 whose ends know each other's public key beforehand, and nothing else of
// each other. There is no certificate authority, no password, and no port that answers a stranger.
//
// # Flow
//
//  1. Each daemon makes an [Identity] for the job: a key that is never written anywhere. Its [Fingerprint] is public.
//  2. Fingerprints travel over the byte stream that an allocator has to a daemon that it started (hello.go): the launcher
//     writes a [Welcome], with the keys that may connect; the daemon answers with a [Hello], its own key, where it
//     listens, what its host has, and what it lacks.
//  3. The daemon listens ([Listen], [Listener.Allow]), the head connects ([Dial], [DialAny]). In the handshake both prove
//     that they have the key that the other expects. A stranger is sent away before anything is parsed of what he sends
//     beyond TLS.
//  4. The first bytes after the handshake (preface.go) say whether this is a new link or one more connection of a link.
//     Until the listener has answered them, the dialler does not know whether its key was accepted.
//  5. Over a link both ends open streams ([Link.Open], yamux) and connections of their own ([Link.Dial]), each with a byte
//     that says what it is for; the other end gets both by [Link.Accept].
//  6. A control stream (control.go) carries questions and answers every now and then. They tell that the peer lives, how
//     its clock differs ([Link.Clock]), and carry the listener's wish for a connection.
//  7. A link ends once, and for everything in it: [Link.Done], and [Link.Err] says in words what happened.
//
// # Streams and connections
//
// All streams of a link share one TCP connection, so a small message waits behind the bulk of others, by as much as
// lies in the socket's buffer. Who cannot have that takes a connection: TCP and TLS of its own, to the same port, with the
// same two keys, and with the link's token, 16 random bytes that only the two ends have seen. Either end may ask for one. Only
// the end that dialled the link can open TCP connections to the other, for the listener does not know where the dialler could
// be reached, nor whether a firewall stands there; so the listener asks over the control stream, and the dialler dials. A
// connection lives no longer than its link.
//
// # Who is alive
//
// A peer is taken for dead when not a byte has come from it for a time ([Silence], 10 s unless told). It is what comes that
// counts, not whether answers to our own questions come in time: those wait behind our bulk. The peer's own questions do not.
// A network that is cut for a second or two is mended by TCP, and nobody above notices more than that it took longer.
// Time in which this process itself was stopped does not count.
//
// A host's death, its daemon's end and a closed link look different on the wire: nothing comes any more; the kernel closes
// the connection; a farewell comes before that. Err tells them apart.
//
// # Versions
//
// The protocol's number is in the name that TLS negotiates (ALPN). Daemons of different numbers still agree on a name
// without one, prove their keys, and tell each other their numbers, so that both can name both.
//
// # Locking
//
// Listener.mu guards who may connect and which links there are. Link.mu guards the link's connections, and the calls for
// some that wait. Neither is held with the other, nor while anything waits for a peer.
package link
