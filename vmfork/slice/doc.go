// Package slice keeps the state of a frozen VM, its memory and its disks, as stacks of copy-on-write slices
// (section 3.6 of the SnowFlock paper; here memory uses the same mechanism).
//
// # What a slice is
//
// A slice is two files. The data file is sparse and holds each block at the offset that the block has in the image,
// so that a RAM file that a hypervisor wrote, or an ext4 image, becomes a slice without a copy. The map file beside it
// says for every block of BlockSize bytes which of three things the slice knows:
//
//	absent   nothing: the slice below answers
//	stored   the data file holds it, and the map its CRC-32C
//	zero     it reads as zeros, whatever the slice below holds; the data file has a hole there
//
// An Image is a stack of slices, read from the top. A block that every slice leaves absent reads as zeros.
//
// # From a running VM to a clone's read
//
//  1. The parent is suspended. Its RAM file, and the disk image made for it, are turned into slices by Seal: blocks of
//     zeros become holes, and every other block gets its checksum.
//  2. A clone's disk gets a slice of its own from Create, on top of the sealed ones: NewImage(own, sealed...).
//  3. A read, Image.ReadStat, cuts its range into runs of blocks for which one slice answers, reads each run with one
//     pread and verifies every block of it. Zeros are made here and read from nowhere.
//  4. A write, Image.WriteStat, goes to the top. A whole block fetches nothing, part of a block fetches that block first.
//  5. A clone that forks in its turn freezes its own slice with Slice.Seal. The bitmaps are kept as they are: a block
//     overwritten with zeros stays, because it hides the one below.
//
// # From a VM that runs to its clones, and on
//
// A VM that is forked while it runs waits for none of its data to be written, whatever there is of it.
//
//  1. It is suspended. The top of its disk is frozen with Slice.Freeze, which only refuses writes from then on, and its
//     disk image gets a new top above the frozen one with Image.Restack. The clones' disks are stacked over the same
//     frozen slices.
//  2. It runs again, in a new hypervisor process. The old one stays suspended, and its private pages, those that the VM
//     has written since its memory was last an image, become a slice with Adopt. It answers for them by reading them
//     where they are (2.4 µs for 4 KB); their number makes no difference. Above the slices of the former image it is
//     the memory image of this fork.
//  3. In the background, Slice.Settle copies the pages into the slice's data file, with checksums, and finds the zeros
//     among them. When it is done nobody reads the old process any more, and it is killed.
//
// So each fork makes stacks deeper by one slice. A read asks each slice of the stack once, which takes about 10 ns for
// the usual size: a read of 4 KB takes 0.7 µs from a stack of one and 1.2 µs from the bottom of one of 50. If neighbouring
// blocks are in different slices, each is a read of its own: 128 KB take 7 µs from one slice and 30 µs from 50.
//
// # Chains of forks that are folded
//
// A slice costs an open file and 1 MB of checksums for each GB of memory, so a VM that forks for days must not keep them
// all.
//
//  1. After a fork, and when what is lent has settled, Foldable names two adjacent layers of the stack that are worth
//     being one: the lower stores at most twice as much as the upper. The layers of the cached checkpoint never are.
//  2. Fold copies both into a new slice, in the background, with the checksums that they have.
//  3. Image.Replace puts it in their place, in each image that has them. Who else has them keeps them.
//  4. Again, until Foldable names none. Layers then at least double downwards: 200 forks that wrote 8 new blocks each
//     had at most 6 layers, and copied each block 7 times.
//
// # From another host
//
// Clones on another host read the same slices, and few of the blocks (section 3.3). There each is a far slice.
//
//  1. The host that has the slice sends its Map: which blocks hold data, and which are zeros. It is 64 KB for
//     each GB at most, packed.
//  2. Far makes a slice of it, frozen from the start and empty. It is stacked, and served, like any other: an absent block
//     is looked for below, and a zero is answered at once.
//  3. A read that meets stored blocks which are not here stops before it has read anything. It lets go of the image's
//     lock, has all of them brought at once (one call of bring for each run of blocks), and begins again.
//  4. What comes, whoever asked for it, is given to Arrive: it gets its checksum, goes to its place in the data file, and
//     only then a bit says that it is here. What is here already is dropped, in 10 ns for 128 KB.
//  5. A working set that is known is brought in bulk, before anybody waits for it, by Image.Prefetch.
//  6. When all has come, Arrived is closed, and the slice is one like others; Seal can keep it. A read costs the same
//     before that, too, if its own blocks are here: nothing is locked for it.
//
// A far slice can be served in turn (ReadBlocks), by a relay, and forks of its VM are stacked above it. One that was folded
// on its host need not be fetched again: Inherit takes what is here of the slices it was folded from.
//
// Between hosts there is no checksum of the origin's: what brings the blocks has to see to it that they are the right ones,
// as TLS does. The checksum made on arrival finds what this host's storage does to them.
//
// # Map file, version 1, little endian
//
//	 0  magic "SFSLICE\n"       32  image size, bytes (u64)
//	 8  format version (u32)    40  block size, bytes (u32)
//	12  kind (u32)              44  zero (u32)
//	16  slice id (16 bytes)     48  stored blocks (u64), 56 zero blocks (u64)
//	64  bitmap of stored blocks, bitmap of zero blocks (u64 words, bit 0 first)
//	    CRC-32C (Castagnoli) of each stored block, in the order of the blocks (u32 each)
//	    CRC-32C of everything before it (u32)
//
// A last block that the image ends in the middle of is padded with zeros for its checksum.
//
// # Locking
//
// A slice that is frozen and lends nothing never changes again and is read without a lock by any number of goroutines and
// images. A slice from Create has a lock for its bitmaps and checksums, held over one run of blocks at a time, so that a
// reader never sees data of one write with the checksum of another.
//
// A slice from Adopt uses the same lock until it is settled. Whoever reads lent blocks, Settle too, holds it shared over
// that read, of at most 1 MB; Settle takes it alone to change who answers for the blocks of a piece, and once more at its
// end. So a reader finds each block with the lender or in the file, never in between, and the lender has no reader left
// once Settle has had the lock for the last time. Only one Settle runs at a time; others wait for it.
//
// A far slice needs no lock to be read. Its bitmap of the blocks that are here is atomic words, and the checksum and the
// data of a block are written before its bit: under a lock that arrivals have among themselves, so that Arrive never
// returns before what it was given can be read, although another goroutine may write it. No lock of a slice or an image is
// held while blocks are brought, however long that takes: Close, Restack and those who read something else wait for no
// other host. After the wait a read begins again, and so sees one stack, perhaps a new one; a slice that has left the stack
// meanwhile, and was closed, is no error. A write of a part of a block lets go of its lock while that block is brought.
//
// An Image has two locks. Writers take the first over a whole write, because a write to part of a block is a read first.
// Readers share the second over a whole read. Restack takes both, so it waits for the reads and writes in flight and comes
// between none of them. The order is: the image's first, its second, the slice's.
package slice
