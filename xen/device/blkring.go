package device

import (
	"encoding/binary"
	"fmt"
)

// Of a disk's ring, struct blkif_sring for 64-bit x86.
const (
	blockSlot      = 112 // bytes of a request
	blockSlots     = 32  // the largest power of two that fits
	blockSegments  = 11  // of a request
	sectorSize     = 512
	sectorsPerPage = 4096 / sectorSize
)

// Operations of a disk.
const (
	blockRead  = 0
	blockWrite = 1
	blockFlush = 3
)

// Statuses of an answer.
const (
	blockOK          = 0
	blockFailed      = -1
	blockUnsupported = -2
)

// blockRequest is one request.
type blockRequest struct {
	op       byte
	id       uint64 // for the answer
	sector   uint64 // where it begins on the disk
	segments []blockSegment
}

// blockSegment is a part of a page that the guest has granted.
type blockSegment struct {
	ref         uint32
	first, last byte // sectors in the page
}

// parseBlockRequest reads a request; one with too many segments has none, and is refused
// for that.
func parseBlockRequest(b []byte) blockRequest {
	q := blockRequest{op: b[0], id: binary.LittleEndian.Uint64(b[8:]), sector: binary.LittleEndian.Uint64(b[16:])}
	if n := int(b[1]); n <= blockSegments {
		for i := range n {
			s := b[24+8*i:]
			q.segments = append(q.segments, blockSegment{binary.LittleEndian.Uint32(s), s[4], s[5]})
		}
	}
	return q
}

// bytes is how many a request moves, if that can be, on a disk of so many sectors.
func (q blockRequest) bytes(sectors uint64) (int, error) {
	n := uint64(0)
	for _, s := range q.segments {
		if s.first > s.last || s.last >= sectorsPerPage {
			return 0, fmt.Errorf("sectors %d to %d are not in a page", s.first, s.last)
		}
		n += uint64(s.last-s.first) + 1
	}
	if n == 0 || n > sectors || q.sector > sectors-n {
		return 0, fmt.Errorf("%d sectors at %d are not on the disk", n, q.sector)
	}
	return int(n) * sectorSize, nil
}

// answer makes the bytes of one.
func (q blockRequest) answer(status int16) []byte {
	b := binary.LittleEndian.AppendUint64(nil, q.id)
	b = append(b, q.op, 0)
	return binary.LittleEndian.AppendUint16(b, uint16(status))
}
