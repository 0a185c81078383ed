// Package store is a client of XenStore, the tree of small values by which the
// hypervisor's tools and the drivers of guests find each other (section 3.9 of
// the SnowFlock paper).
//
// # A request, from a caller to its answer
//
//  1. A caller enters its request under a number that no other request has, and
//     writes it: a header of type, number, transaction and length (u32 each,
//     little endian), and a body of at most 4096 bytes.
//  2. One goroutine reads all that comes. An answer has the request's type and
//     number, or the type of an error and the error's name, and goes to the caller
//     that waits under the number.
//  3. An event of a watch has a token, by which its [Watch] is found. Events say
//     that something may have changed, and are merged: who gets one looks.
//  4. A caller whose context ends leaves, and the answer is dropped when it comes.
//  5. A connection that ends, or on which nonsense comes, ends all that waits.
//
// # Locking
//
// A Client may be used by many goroutines at once. Client.mu guards the tables of
// those that wait; nothing waits under it. Client.writing is held over one write.
package store
