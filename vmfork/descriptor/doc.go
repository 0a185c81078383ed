// Package descriptor is the architectural VM descriptor (section 3.2 of the SnowFlock paper): the little that has to
// travel before a clone can start, all but its memory and its disk. It wraps the hypervisor's own device state, which
// this package does not look into, in an envelope that has a version and checksums, and that says what a restoring host
// must know beforehand: the shape of the VM, which hypervisor wrote it, and which slices its memory and disks are.
//
// # From a suspended VM to a clone
//
//  1. The driver fills a Descriptor: Hypervisor, VCPUs, Devices, MemoryMap, and the DeviceState as the hypervisor gave it.
//  2. The sealed images give their slice ids (MemoryImage, Disks) and the ZeroPages, which no clone ever fetches (3.4).
//  3. Save or Write; the file, or the stream, is read by Load or Read on every host that gets clones.
//  4. There the images are opened by their ids, memtap serves them, and the driver restores DeviceState.
//
// # Format, version 1, little endian
//
//	magic "SFDESCR\n", version (u32), zero (u32)
//	section, …: type (u32), CRC-32C of type, length and content (u32), length (u64), content
//	trailer: 0 (u32), CRC-32C of everything before it (u32), number of sections (u64)
//
// Section 1 is the metadata as JSON, and is the first one. Section 2 is the bitmap of zero pages, a bit for each page of
// memory, compressed with zstd. Section 3 is the device state. A descriptor for other
// hosts has a section 4 for each slice, what the slice knows of each of its blocks, and may have a working set. A type with its highest bit set is optional: a reader that
// does not know it skips it. One without it is not, and such a descriptor is ErrNewer.
//
// # Hostile input
//
// Read allocates in step with what it has read, never by what a length field claims, and refuses sections beyond the
// limits in section.go. The zero bitmap unpacks to the size that the metadata implies, at most MaxMemory/PageSize/8 bytes.
//
// # Locking
//
// There is none: a Descriptor is filled by one goroutine, and then only read.
package descriptor
