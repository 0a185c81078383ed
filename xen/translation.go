package xen

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// translation is what has to be known of a PV guest that was suspended to read its RAM as a memory file has it: which machine frames
// it has, by which alone others can map them, and its page tables, which name machine frames where they are.
type translation struct {
	saved   *stream.Domain // as far as it was read
	layout  layout
	dirtied *bitset.BitSet

	frames  uint64           // of the guest
	leaves  map[uint64][]int // which pages of the list of machine frames a frame has
	pages   [][]byte         // the list, as far as it came
	missing int              // pages of it
	tables  map[int64][]byte // dirtied page tables as they were saved, by their offset in the memory file
}

// take looks at a page as it is saved, when it was compared with the memory file.
func (t *translation) take(p stream.Page) error {
	if t.leaves == nil {
		if err := t.begin(); err != nil {
			return err
		}
	}
	for _, i := range t.leaves[p.Frame] {
		if t.pages[i] == nil && p.Type.HasContent() {
			t.pages[i] = bytes.Clone(p.Content)
			t.missing--
		}
	}
	if offset, ok := t.layout.offset(p.Frame); ok && p.Type.IsTable() && t.dirtied.Test(uint(offset/pageSize)) {
		t.tables[offset] = bytes.Clone(p.Content)
	}
	return nil
}

// begin looks up where the list is.
func (t *translation) begin() error {
	list, err := t.saved.P2M()
	if err != nil {
		return err
	}
	t.frames, t.missing = list.Frames, len(list.Pages)
	t.pages, t.tables, t.leaves = make([][]byte, len(list.Pages)), map[int64][]byte{}, map[uint64][]int{}
	for i, frame := range list.Pages {
		t.leaves[frame] = append(t.leaves[frame], i)
	}
	return nil
}

// end is called when all pages have come.
func (t *translation) end() error {
	if t.leaves == nil || t.missing > 0 {
		return fmt.Errorf("%w: of its list of machine frames %d pages did not come", stream.ErrCorrupt, t.missing)
	}
	return nil
}

// notThere are bits of what the list has of a frame that the guest has not, or that is another domain's.
const notThere = 3 << 62

// machine is the machine frame of the page at an offset of the memory file.
func (t *translation) machine(offset int64) (frame uint64, ok bool) {
	frame, ok = t.layout.frame(offset)
	if !ok || frame >= t.frames {
		return 0, false
	}
	frame = binary.LittleEndian.Uint64(t.pages[frame/stream.P2MEntries][frame%stream.P2MEntries*8:])
	return frame, frame&notThere == 0
}
