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
// the usual size: a read of 4 KB takes 0.7 µs from a stack of one and 1.2 µs from the bottom of one of 50.
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
// An Image has two locks. Writers take the first over a whole write, because a write to part of a block is a read first.
// Readers share the second over a whole read. Restack takes both, so it waits for the reads and writes in flight and comes
// between none of them. The order is: the image's first, its second, the slice's.
package slice
