package stream

import (
	"encoding/binary"
	"fmt"
)

// P2M says where a PV guest keeps which machine frame each of its frames is. A guest of another kind does not know.
type P2M struct {
	Frames uint64   // how many of the guest's frames it is about, from 0 on
	Pages  []uint64 // frames of the pages that it is in, each of which has [P2MEntries] entries
}

// P2MEntries is how many entries of 8 bytes, each the number of a machine frame, a page of the list has.
const P2MEntries = PageSize / 8

// pvWidth is the size of a word of a guest, in bytes, and pvLevels that of its page tables: those of 32 bits have others.
const pvWidth, pvLevels = 8, 4

// P2M is that of a PV guest of 64 bits. It may be called as soon as there was a page: the record comes before them.
func (d *Domain) P2M() (P2M, error) {
	b, ok := d.Record(PVInfo)
	if !ok || len(b) != 8 {
		return P2M{}, fmt.Errorf("%w: it does not say what kind of PV guest it is", ErrCorrupt)
	}
	if b[0] != pvWidth || b[1] != pvLevels {
		return P2M{}, fmt.Errorf("%w: a PV guest with words of %d bytes and page tables of %d levels", ErrUnknown, b[0], b[1])
	}
	b, ok = d.Record(P2MFrames)
	if !ok || len(b) < 8 {
		return P2M{}, fmt.Errorf("%w: it has no list of machine frames", ErrCorrupt)
	}
	first, last := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	p := P2M{Frames: uint64(last) + 1}
	if b = b[8:]; first != 0 || uint64(len(b)) != (p.Frames+P2MEntries-1)/P2MEntries*8 {
		return P2M{}, fmt.Errorf("%w: a list of machine frames for %#x to %#x has %d bytes", ErrCorrupt, first, last, len(b))
	}
	for ; len(b) > 0; b = b[8:] {
		p.Pages = append(p.Pages, binary.LittleEndian.Uint64(b))
	}
	return p, nil
}
