package xen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/xen/paging"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// sink takes the pages of a domain that is being saved.
type sink struct {
	layout  layout
	frames  stream.Frames
	kept    []stream.Page // not RAM: they go with the device state
	ram     func(offset int64, content []byte) error
	machine *translation // to be filled, if it is not nil
	content int          // pages of RAM
}

// keptLimit is how many pages may be outside of RAM: a PVH guest has about twenty.
const keptLimit = 4096

// take is for stream.Read.
func (s *sink) take(p stream.Page) error {
	if err := s.place(p); err != nil || s.machine == nil {
		return err
	}
	return s.machine.take(p)
}

// read reads a saved domain, and takes its pages.
func (s *sink) read(r io.Reader) (*stream.Domain, error) {
	d := &stream.Domain{}
	if s.machine != nil {
		s.machine.saved = d
	}
	if err := d.ReadWith(r, s.take); err != nil {
		return nil, err
	}
	if s.machine != nil {
		return d, s.machine.end()
	}
	return d, nil
}

// place puts a page where it belongs.
func (s *sink) place(p stream.Page) error {
	if err := s.frames.Add(p.Frame, p.Type); err != nil {
		return err
	}
	if !p.Type.HasContent() {
		return nil
	}
	if offset, ok := s.layout.offset(p.Frame); ok {
		s.content++
		return s.ram(offset, p.Content)
	}
	if len(s.kept) == keptLimit {
		return fmt.Errorf("the guest has more than %d pages outside of its RAM", keptLimit)
	}
	s.kept = append(s.kept, stream.Page{Frame: p.Frame, Type: p.Type, Content: bytes.Clone(p.Content)})
	return nil
}

var zeroPage [pageSize]byte

// imageWriter writes pages of RAM to the memory file, consecutive ones at once. Pages of
// zeros stay holes where there were some.
type imageWriter struct {
	f      *os.File
	whole  bool // the file may have something in it already
	offset int64
	buf    []byte
}

const writeSize = 1 << 20

func (w *imageWriter) write(offset int64, content []byte) error {
	if !w.whole && bytes.Equal(content, zeroPage[:]) {
		return nil
	}
	if offset != w.offset+int64(len(w.buf)) || len(w.buf) == writeSize {
		if err := w.flush(); err != nil {
			return err
		}
		w.offset = offset
	}
	w.buf = append(w.buf, content...)
	return nil
}

func (w *imageWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.f.WriteAt(w.buf, w.offset)
	w.buf = w.buf[:0]
	return err
}

// comparer finds the pages that are not as in the memory file.
type comparer struct {
	f       io.ReaderAt
	size    int64
	at      int64 // of window in the file
	window  []byte
	dirtied *bitset.BitSet
}

func newComparer(f io.ReaderAt, size int64) *comparer {
	return &comparer{f: f, size: size, at: -1, window: make([]byte, 0, writeSize), dirtied: bitset.New(uint(size / pageSize))}
}

func (c *comparer) compare(offset int64, content []byte) error {
	if c.at < 0 || offset < c.at || offset+pageSize > c.at+int64(len(c.window)) {
		c.at = offset / writeSize * writeSize
		c.window = c.window[:min(writeSize, c.size-c.at)]
		if n, err := c.f.ReadAt(c.window, c.at); n < len(c.window) {
			return fmt.Errorf("read its memory file: %w", err)
		}
	}
	if !bytes.Equal(c.window[offset-c.at:][:pageSize], content) {
		c.dirtied.Set(uint(offset / pageSize))
	}
	return nil
}

// fillWorkers fill a domain's memory side by side; what they wait for is mostly the
// memory file.
const fillWorkers = 4

// chunk is how many frames are mapped at once.
const chunk = 512

// fill gives a domain the frames that its guest had, and what was in them.
func fill(ctx context.Context, xen *privcmd.Handle, id privcmd.Domain, l layout, frames *stream.Frames, memory io.ReaderAt) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(fillWorkers)
	for p := range l.pieces(frames) {
		if err := populate(ctx, xen, id, p); err != nil {
			return errors.Join(err, work.Wait())
		}
		for some := range p.Parts(chunk) {
			work.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return fillPiece(xen, id, some, memory)
			})
		}
	}
	return work.Wait()
}

// populate gives a domain the memory of a piece, in superpages where it can.
func populate(ctx context.Context, xen *privcmd.Handle, id privcmd.Domain, p paging.Piece) error {
	super, single := split(p)
	done, err := xen.Populate(id, super, privcmd.SuperOrder)
	if err != nil && !errors.Is(err, unix.ENOMEM) {
		return err
	}
	for _, f := range super[done:] { // the host's memory is in smaller pieces
		for i := range uint64(privcmd.SuperFrames) {
			single = append(single, f+i)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = xen.Populate(id, single, 0)
	return err
}

// fillPiece copies from the memory file, also zeros: what Xen gives a domain need not
// be clean.
func fillPiece(xen *privcmd.Handle, id privcmd.Domain, p paging.Piece, memory io.ReaderAt) error {
	content, err := p.Read(memory)
	if err != nil {
		return err
	}
	m, err := xen.Map(id, p.Frames(), true)
	if err != nil {
		return err
	}
	copy(m.Bytes, content)
	return m.Unmap()
}

// ram reads a domain's RAM by offset in the memory file.
type ram struct {
	xen    *privcmd.Handle
	id     privcmd.Domain
	frame  func(offset int64) (frame uint64, ok bool) // by which Xen maps it
	tables map[int64][]byte                           // pages, by offset, that are others in the domain than in the file
	gone   <-chan struct{}                            // closed when the domain must not be touched any more
}

// ReadAt implements io.ReaderAt.
func (r *ram) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		select {
		case <-r.gone:
			return n, fmt.Errorf("read RAM of domain %d: %w", r.id, os.ErrClosed)
		default:
		}
		at := off + int64(n)
		if t := r.tables[at/pageSize*pageSize]; t != nil {
			n += copy(p[n:], t[at%pageSize:])
			continue
		}
		var frames []uint64
		for o := at / pageSize * pageSize; o < off+int64(len(p)) && len(frames) < chunk && r.tables[o] == nil; o += pageSize {
			frame, ok := r.frame(o)
			if !ok {
				return n, fmt.Errorf("read RAM of domain %d: offset %d is not RAM", r.id, o)
			}
			frames = append(frames, frame)
		}
		m, err := r.xen.Map(r.id, frames, false)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], m.Bytes[at%pageSize:])
		if err := m.Unmap(); err != nil {
			return n, err
		}
	}
	return n, nil
}
