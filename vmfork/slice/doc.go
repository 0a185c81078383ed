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
// A sealed slice never changes and is read without a lock by any number of goroutines and images. A slice from Create
// has a lock for its bitmaps and checksums, held over one run of blocks at a time, so that a reader never sees data of
// one write with the checksum of another. An Image has one more lock that only writers take, over a whole write, because
// a write to part of a block is a read first. It is taken before the slice's.
package slice
