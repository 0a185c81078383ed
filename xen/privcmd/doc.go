// Package privcmd makes the hypercalls that a toolstack needs of Xen, through
// /dev/xen/privcmd, and maps the memory of other domains.
//
// # A hypercall
//
//  1. What it points to is put into a buffer that the hypervisor can read at any
//     time: memory that the kernel neither moves nor shares with a child.
//  2. An ioctl hands number and arguments to the kernel, and the kernel to Xen.
//  3. What Xen wrote is read out of the buffer, and the buffer given back.
//
// # Stable and unstable
//
// Memory operations, HVM parameters, the version and the mapping of foreign
// memory belong to Xen's stable interface. Domain control (domctl) does not: each call says which
// version of the interface it means, and Xen refuses all but its own. [Open]
// finds out which one that is, and refuses one that it does not know. Of what is
// used here, versions 0x15 to 0x18 (Xen 4.17 to 4.22) have the same layout.
// Memory paging is a compile-time option of the hypervisor's, and its events have a version of their own: [Handle.Paging] asks for both.
//
// # Locking
//
// A Handle may be used by many goroutines at once. Each call has a buffer of its
// own, and waits for one while all are in use.
package privcmd
