// Package ninep is the wire format of 9P2000.L, the dialect of 9P that the 9p file system of Linux speaks.
//
// A message is size[4] type[1] tag[2] and fields, all numbers little endian; size counts itself. A request (T…) is
// answered by the reply of the next higher type (R…) with the same tag, or by Rlerror with an errno of Linux. Each
// message is a struct here whose fields have the order that they have on the wire, and whose layout method names that
// order once for both directions.
//
// The package knows no files and keeps no state. Source: the protocol description of the diod project (protocol.md)
// for the messages of .L, the Plan 9 manual's section 5 for the rest, and include/net/9p/9p.h of Linux for constants.
package ninep
