// Package conformance tests that a [hypervisor.Driver] does what VM fork needs
// of it. Every driver's own tests call [Run], and [Parent.RunMemory].
//
// # What Run tests, in order
//
//  1. A guest boots and is heard on its channel.
//  2. Suspended, it is silent, its RAM file does not change any more, and it
//     can be killed, also twice, without an error.
//  3. Three clones of it, side by side, go on from where it stood, each on its
//     own: same memory, same counter, and a clone's end does not touch others.
//  4. A clone is suspended in its turn, and goes on in another machine, and so does a
//     clone of it.
//  5. Device states that are not one, or only a part of one, are errors that
//     say so, and end the machine.
//  6. A machine that ends by itself is noticed, and its reason told.
//  7. Contexts that end, end what waits for them.
//  8. In the end no process, descriptor or file is left.
//
// Clones get the plain RAM file, or copies of it (Guest.Shared): how memory comes to a
// clone is not the driver's matter.
//
// # What RunMemory tests
//
// What a hypervisor makes of a page that comes late, or never, is the driver's matter. So
// there are clones over files of memtap. [Traits] say what drivers differ in.
//
//  1. Clones of one file go on from where their parent stood, and cause reads of
//     what they touch and of no more: of the window's size, where they map the file.
//  2. Where guests report what they free: it leaves the parent's RAM file; its clone can take
//     it without a fetch, and what the clone frees is not among its own pages any more.
//  3. A page that is on its way does not hinder a kill, and one that comes late
//     lets the clone go on.
//  4. A page that cannot be had, and a memtap that is gone, end the machine, with
//     a reason: it neither hangs nor goes on.
//
// 3 and 4 are for clones that have nothing when they are restored, and for those that run,
// where pages come on demand.
package conformance
