// Package conformance tests that a [hypervisor.Driver] does what VM fork needs
// of it. Every driver's own tests call [Run].
//
// # What is tested, in order
//
//  1. A guest boots and is heard on its channel.
//  2. Suspended, it is silent, its RAM file does not change any more, and it
//     can be killed, also twice, without an error.
//  3. Three clones of it, side by side, go on from where it stood, each on its
//     own: same memory, same counter, and a clone's end does not touch others.
//  4. Device states that are not one, or only a part of one, are errors that
//     say so, and end the machine.
//  5. A machine that ends by itself is noticed, and its reason told.
//  6. Contexts that end, end what waits for them.
//  7. In the end no process, descriptor or file is left.
//
// Clones get plain copies of the RAM file: how memory comes to a clone is not
// the driver's matter. But what a hypervisor makes of a page that comes late, or
// never, is, and [RunMemory] tests it with memtap, for drivers whose machines map
// its files:
//
//  1. Clones of one file go on from where their parent stood, and cause reads of
//     the window's size and no others.
//  2. What a guest frees leaves its RAM file; its clone can take it without a fetch,
//     and what the clone frees is not among its own pages any more.
//  3. A page that is on its way does not hinder a kill, and one that comes late
//     lets the clone go on.
//  4. A page that cannot be had, and a memtap that is gone, end the machine, with
//     a reason: it neither hangs nor goes on.
package conformance
