// Package device is the host's side of a guest's para-virtual devices, in this
// process: no kernel back end, no hotplug script and no device model, so that what a
// machine has is what its owner gave it, file by file, and ends with it.
//
// # How a guest finds a device
//
//  1. [Bus.Announce] writes two folders into XenStore: one for the guest, below its own,
//     which says where the other is; and that other one, the host's. Each side
//     writes its state into its own and watches the other's.
//  2. The guest's driver allots a ring of shared memory and an event channel, writes
//     both into its folder, and is Initialised.
//  3. The host maps the ring, binds the channel, and is Connected; then so is the guest.
//  4. Closed, the host's side forgets the ring and removes both folders.
//
// A guest that was restored begins with 2 anew, with an empty ring: what was in the
// old one has to be out of it before. A guest that resumes goes on with its ring.
//
// The host's folders have types of their own, so that no back end of the kernel or of
// another program takes them for its own.
//
// # A serial port
//
// A guest's console (console.go), other than its first, is a serial port: two rings of bytes. What the host writes
// to the port stays in the port's socket until the guest has taken it out of its ring,
// where it is only a copy: so a guest's successor gets what the guest did not. What the guest has written is in the socket
// before a suspension is over ([Console.Drain]). In the guest it is a terminal, and not always one that
// hears, or hears bytes as they are: so the guest begins with a greeting ([guestport.Ready]), and is told nothing before.
//
// # A disk
//
// A guest's disk (disk.go) is a ring of requests; what they move is copied by Xen between the guest's
// pages and this process's, and read from or written to a file. Requests are done side by
// side, for the file may be memtap's, and a read a fetch from another host.
//
// # A network device
//
// A guest's network device (network.go) has a ring of frames that it sends and one of pages that
// it offers for frames. They go to a tap and come from one, whole and with checksums,
// of which the guest leaves some to be completed (checksum.go). No
// frame is taken from the tap before the guest has room for it, so that what comes for a
// machine that stands still waits there.
//
// # Hostile guests
//
// A guest can write to its ring at any time. Indices are read once and checked; a
// ring with impossible ones is given up, and the guest with it.
//
// # What runs
//
// All that differs between devices is what their drivers offer and the ways that bytes take (run.go): one goroutine for
// each way of a console and of a network device, one for a disk's ring and one for each of its requests. Drain stops all
// of them, Resume begins again, Close stops them for good; these are called one at a time.
//
// # Locking
//
// Device.mu guards the reason for which a device does not go on. Disk.ringMu is held over each look at its ring.
// Console.takeMu guards what its two ways share, how much of the socket is in the ring; nothing waits under it. The rings
// of a network device have a goroutine each, and nobody else touches them.
package device
