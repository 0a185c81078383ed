// Package sshd is an SSH server for one connection: the way of a user's ssh
// into a virtual machine that has no network of the user's.
//
// # The way of a session
//
//  1. [Serve] does SSH's handshake on a connection that it is given. A client
//     is let in by a public key of [Config], whatever user it names, and by
//     nothing else.
//  2. The client opens sessions, several at once if it likes. Everything else
//     that a channel can be for is refused: this is no way past the virtual
//     machine's network, in either direction.
//  3. Before its program starts a session may ask for a terminal and set
//     variables of the locale. Then it asks for a program, once.
//  4. [Config].Start starts it. The package knows no processes: init starts and
//     waits for them in its own way.
//  5. The program's end is told at once; the session ends when all its output
//     has been sent, too, as with OpenSSH. When the client goes before that, the
//     program's terminal is hung up.
//
// # Locking
//
// One goroutine serves each session's requests, and one waits for its program.
// They share nothing but the program.
package sshd
