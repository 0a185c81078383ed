// Package memtap gives clones their memory on demand (section 3.3 of the SnowFlock paper), and their disks. It is a FUSE
// server with one flat directory. A memory file is the frozen RAM of the parent, which every clone maps privately; a
// disk file is a clone's own, with a writable slice on top.
//
// # The way of a page
//
//  1. A virtual CPU touches a page of a clone for the first time. The hypervisor's process has mapped the memory file
//     with MAP_PRIVATE, so this is a page fault in the host's kernel.
//  2. Another clone on this host may have read the page before: the files are immutable, so the kernel keeps their pages
//     (FOPEN_KEEP_CACHE), maps this one and is done. Memtap does not hear of it.
//  3. Otherwise the kernel sends a READ for the page and for its neighbours within the window (Options.Window): one
//     fetch for several faults, if neighbours are wanted, and bytes for nothing if they are not.
//  4. filesystem.Read asks the image. Blocks that are zero in the parent are answered at once (3.4); for the others the
//     slices are read and every block's checksum is verified.
//  5. The kernel wakes the virtual CPU. If it was a write, the kernel now copies the page for this clone alone.
//
// A block that fails its checksum, or a memtap that is dead, is EIO: SIGBUS for the hypervisor, never a hang. Tap.Err
// keeps the reason.
//
// # Files whose image is not known yet
//
// Hypervisor processes take long to start, compared with a fork. So they are started before it, over the memory of a VM
// that still runs.
//
//  1. Tap.Expect makes the file appear, with its size. It can be opened and mapped at once.
//  2. A READ of it waits, in its own goroutine: the virtual CPU that faulted stands still, nothing else does. The kernel
//     counts the reads of faults as background requests and sends twelve at a time by default; the mount asks for as many
//     as there can be, so that those that wait take nothing from other files.
//  3. The fork knows what the memory is, and Tap.Deliver brings the image. Every waiting READ goes on with it.
//  4. Without one, waits end as errors do, with EIO and a reason in Tap.Err: at Tap.Remove, at Unmount, or when a thread
//     has waited for Options.Patience. The kernel reads a page again that it got an error for; it gets the next at once.
//
// A process that waits can be killed. The kernel calls off a read from a disk, and a read of memory that is not a fault's
// read-ahead; memtap answers EINTR. Of the others it keeps the request, which then waits for nobody until one of the above.
//
// # Memory of another host
//
// A clone's memory may be of a parent on another host. Some layers of the image are far slices then, and nothing else is
// different (package slice, "From another host"): a READ of blocks that are not here waits in its own goroutine until they
// have come, for this clone and for all others here.
//
//  1. A fault costs the way to the host and back, and some 15 to 30 µs more than one on a block that is here.
//     Counters.FarReads and BytesFar say how many there were.
//  2. A host that does not answer is the business of those who bring the blocks. Their error is EIO, with a reason in
//     Tap.Err; until there is one, the virtual CPU stands still.
//  3. Push brings what it pushes in bulk, pieces of up to 4 MB, the next on its way while one is stored.
//  4. Remove waits for no other host. Unmount calls the waiting reads off. A process that waits can be killed; a read that
//     the kernel does not call off then goes on until its blocks have come, or their slice is closed.
//
// # What is brought before it is asked for
//
// VMs over one file after the other, each the fork of the last, ask first for much the same pages, and each READ is some
// 70 µs in which a virtual CPU stands still: most of the pause of a live fork was this. Hence, as in REAP (Ustiugov et
// al., ASPLOS 2021):
//
//  1. Each memory file keeps a trace of the blocks that were read through it, in order, no block twice (trace.go).
//  2. When the next file has its image, Tap.Push puts the blocks of that trace into the kernel's cache of it, with
//     FUSE_NOTIFY_STORE, while its VM starts (push.go). Blocks that were read meanwhile, or whose READ waits, are left out.
//  3. The next file's trace is what was pushed, then what was read all the same. It is bounded; what was pushed first is
//     the first to be forgotten, so that what is not wanted any more drops out, and what is comes back as a READ.
//
// A trace can be kept in a file (Trace.MarshalBinary), for the first VM of another job.
//
// # A clone's disk
//
// Disk files bypass the page cache (FOPEN_DIRECT_IO): the guest has one of its own. A whole block that is written is
// not fetched (3.6). Since the disk vanishes with its clone, flushes do nothing.
//
// # Rules for callers
//
// Never map or open a file of a mount in the process that serves it: a fault there can wait for a goroutine that has no
// thread to run on. For the same reason the private pages of a hypervisor that a slice is made of (slice.Adopt) are read
// only where it has its own: any other page of its RAM is a fault in this mount. A clone's balloon punches holes into the memory file as pages are reported free. This succeeds and
// changes nothing; the kernel drops the range from its cache, so it is read again if another clone wants it.
//
// # Locking
//
// Tap's methods may be called from any goroutine. The filesystem's lock guards its tables and what becomes of expected
// images, and is never held over a read of an image, a wait for one, or a message to the kernel, because the kernel may
// hold its own locks while it waits for us. Tap's lock is taken before it. Remove and Unmount end the waits before they
// speak to the kernel, which may wait for the pages of those. Counters are atomic. Images lock for themselves. A file's
// recorder, which makes its trace, has a lock of its own, under which nothing waits.
//
// A message of Push waits in the kernel for a page that a READ has locked. Nothing waits for Push: go-fuse has no lock over
// its writes to the device, and no lock of memtap's is held over the message, so the READ is answered and the page unlocked.
// A fault on a page that Push has locked waits for the copy and finds it there.
package memtap
