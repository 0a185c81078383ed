package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// PageSize is that of every page of a stream.
const PageSize = 4096

// PageType says what a PV guest uses a page for; the pages of other guests are
// [Normal]. The values are XEN_DOMCTL_PFINFO_*.
type PageType uint8

// Types of pages. L1 to L4 are page tables, and pinned with bit 3 set. The last
// three have no content.
const (
	Normal    PageType = 0
	L1        PageType = 1
	L4        PageType = 4
	L1Pinned  PageType = 9
	L4Pinned  PageType = 12
	Broken    PageType = 13
	AllocOnly PageType = 14
	Invalid   PageType = 15
)

// HasContent says whether a page of this type has 4096 bytes in a stream.
func (t PageType) HasContent() bool { return t < Broken }

// IsTable says whether a page of this type is a page table. In a stream its entries have the guest's own frame numbers, and
// where the guest runs those of the machine's frames.
func (t PageType) IsTable() bool { return t >= L1 && t <= L4Pinned }

func (t PageType) known() bool { return t <= L4 || t >= L1Pinned && t <= Invalid }

// Page is one page of a stream.
type Page struct {
	Frame   uint64 // the guest's frame number
	Type    PageType
	Content []byte // PageSize bytes, or none where the type has none
}

const frameBits = 52

// batch is how many pages a record may have: as many as Xen's own writer takes.
const batch = 1024

// pageReader reads PAGE_DATA records. It keeps its memory from one to the next: of a guest that uses little of its address space
// most list frames that are not there, and there are a thousand for every 4 GB of it.
type pageReader struct {
	numbers [8 * batch]byte
	content [PageSize]byte
}

// read gives each page of a record of so many bytes to page. What it gives is overwritten by the next.
func (b *pageReader) read(r io.Reader, length int64, page func(Page) error) error {
	short := func() error { return fmt.Errorf("%w: a record of pages has %d bytes", ErrCorrupt, length) }
	head := b.content[:8]
	if length < int64(len(head)) {
		return short()
	}
	if err := full(r, head); err != nil {
		return err
	}
	count := int64(binary.LittleEndian.Uint32(head))
	if count == 0 || count > batch || length < 8+8*count {
		return short()
	}
	numbers := b.numbers[:8*count]
	if err := full(r, numbers); err != nil {
		return err
	}
	want := 8 + 8*count
	for i := range count {
		p := pageOf(numbers[8*i:])
		if !p.Type.known() {
			return fmt.Errorf("%w: a page of type %d", ErrUnknown, p.Type)
		}
		if p.Type.HasContent() {
			want += PageSize
		}
	}
	if length != want {
		return short()
	}
	for i := range count {
		p := pageOf(numbers[8*i:])
		if p.Type.HasContent() {
			p.Content = b.content[:]
			if err := full(r, p.Content); err != nil {
				return err
			}
		}
		if err := page(p); err != nil {
			return err
		}
	}
	return nil
}

// pageOf reads a frame's number and type.
func pageOf(b []byte) Page {
	n := binary.LittleEndian.Uint64(b)
	return Page{Frame: n & (1<<frameBits - 1), Type: PageType(n >> 60)}
}

// writePages writes pages as PAGE_DATA records.
func writePages(w io.Writer, pages []Page) error {
	for some := range slices.Chunk(pages, batch) {
		length := 8 + 8*len(some)
		body := binary.LittleEndian.AppendUint64(nil, uint64(len(some)))
		for _, p := range some {
			if p.Frame >= 1<<frameBits || !p.Type.known() {
				return fmt.Errorf("%w: a page of frame %#x and type %d", ErrCorrupt, p.Frame, p.Type)
			}
			want := 0
			if p.Type.HasContent() {
				want = PageSize
			}
			if len(p.Content) != want {
				return fmt.Errorf("%w: a page of type %d has %d bytes", ErrCorrupt, p.Type, len(p.Content))
			}
			length += want
			body = binary.LittleEndian.AppendUint64(body, p.Frame|uint64(p.Type)<<60)
		}
		head := binary.LittleEndian.AppendUint32(nil, PageData)
		if _, err := w.Write(binary.LittleEndian.AppendUint32(head, uint32(length))); err != nil {
			return err
		}
		if _, err := w.Write(body); err != nil {
			return err
		}
		if err := writeContents(w, some); err != nil {
			return err
		}
	}
	return nil
}

// writeContents writes what is in pages, and what is consecutive in memory at once: for a guest's whole memory it is half of the work
// to copy it from page to page.
func writeContents(w io.Writer, pages []Page) error {
	var run []byte
	for _, p := range pages {
		if longer := len(run) + len(p.Content); len(run) > 0 && len(p.Content) > 0 && longer <= cap(run) && &run[:longer][len(run)] == &p.Content[0] {
			run = run[:longer]
			continue
		}
		if _, err := w.Write(run); err != nil {
			return err
		}
		run = p.Content
	}
	_, err := w.Write(run)
	return err
}
