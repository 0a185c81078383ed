// Package stream reads and writes what "xl save" makes of a domain, and takes
// the domain's memory out of it: what is left is the device state of a VM
// descriptor (section 3.2 of the SnowFlock paper).
//
// # What a saved domain is
//
// Three formats, one in the other. Fields are little endian unless said
// otherwise, and bodies of records are padded to 8 bytes with zeros.
//
//	xl       magic (32 bytes), byte order (u32), mandatory flags (u32), optional flags (u32), length (u32), and
//	         so many bytes: the domain's configuration
//	libxl    "LibxlFmt", version 2 (u32), options (u32), both big endian; records: type (u32), length (u32), body.
//	         Version 2 of Xen's docs/specs/libxl-migration-stream
//	libxc    in the place of the body of the record LIBXC_CONTEXT: 8 bytes of ones, "XENF", version 3 (u32),
//	         options (u16), all big endian, 6 zeros; type of guest (u32), page shift (u16), 2 zeros, version of Xen
//	         (u32, u32); records as in libxl. Version 3 of Xen's docs/specs/libxc-migration-stream
//
// # The way of a saved domain
//
//  1. "xl save" writes to a pipe, and [Read] reads it as it comes: each page goes
//     to the caller, with its frame number and type, and is not kept; all else
//     is the [Domain].
//  2. The caller puts pages into the image of the VM's memory, and keeps back
//     those few that must be there before a clone runs. [Frames] remembers
//     which frames there were.
//  3. [Domain.Write] writes a stream again, with any pages or none: "xl restore"
//     takes one without, and leaves the frames that it lacks unpopulated. Of a PV guest ([P2M]) it wants them all.
//
// # Hostile input
//
// Read allocates in step with what it has read, never by what a length claims,
// and refuses records above the limits that Xen's own reader has. It refuses
// mandatory records that it does not know, as the specification demands.
//
// # Locking
//
// There is none: a Domain is filled by one goroutine, and then only read.
package stream
