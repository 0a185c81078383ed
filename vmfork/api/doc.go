// Package api is the VM fork protocol: what a program says to fork the machine
// it runs in (paper table I, and the transitive calls of 2.3), and what it
// hears. Every language binding speaks it; docs/api.md has its grammar. The
// package knows lines and calls. It knows nothing of machines.
//
// # A call
//
// A call is one line each way on a Unix stream socket:
//
//		request-ticket clones=2
//		ok ticket=t7 asked=2 granted=2 clone=1:clone-1:10.7.0.2:1:host clone=2:clone-2:10.7.0.3:1:host
//		clone ticket=t7
//		ok id=0
//
//	 1. The client writes a [Request] and waits. [Conn.Do]
//	 2. The server parses the line and checks it against the table of calls, so
//	    that a [Handler] sees only calls that exist, with the arguments that
//	    they have, each of them well formed. [ServeConn], [Request.Check]
//	 3. The handler takes as long as it takes, under a context that ends when
//	    the client closes the connection: a client that is killed takes its
//	    waiting call with it.
//	 4. Its [Reply] goes back, and the next call of the connection is taken up.
//
// The socket is of the same machine as the client, so a fork copies both ends
// of it. That is how one call of clone is answered many times: each copy of
// the server answers its copy of the client.
//
// # Locking
//
// A server's connection has two goroutines: one reads ahead, and so notices
// the end of the connection at any time; one calls the handler and writes. The
// queue between them is bounded, and a client that fills it is cut off. A
// [Conn] may be used from many goroutines, whose calls take turns; for calls
// that wait, one connection each is better.
package api
