package slice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/bits-and-blooms/bitset"
)

// Image is a stack of slices seen as one file: the memory or the disk of a VM. Its methods may be called from any
// number of goroutines. It does not own its slices; several images share the frozen ones.
type Image struct {
	size int64
	kind Kind

	writing sync.Mutex   // held over a whole write; taken before mu
	mu      sync.RWMutex // held shared over a whole read, but never while blocks are brought from another host
	layers  []*Slice     // top first; changed with both locks, so that either is enough to look
}

// Stat says where the blocks of a read or a write came from, in blocks.
type Stat struct {
	Fetched int // read from a slice below a writable top, or from a frozen stack: what a remote host would have to send
	Local   int // read from the writable top
	Zero    int // made here: every slice leaves them absent, or one knows that they are zeros
	Far     int // of Fetched, those that had to be brought from another host first
}

// NewImage stacks slices, the top one first. All are of one kind and size, and none but the top is writable.
func NewImage(layers ...*Slice) (*Image, error) {
	if err := fit(layers); err != nil {
		return nil, fmt.Errorf("stack slices: %w", err)
	}
	return &Image{size: layers[0].size, kind: layers[0].kind, layers: slices.Clone(layers)}, nil
}

// fit says why slices do not make a stack.
func fit(layers []*Slice) error {
	if len(layers) == 0 {
		return errors.New("there are none")
	}
	top := layers[0]
	for i, l := range layers {
		switch {
		case l.size != top.size || l.kind != top.kind:
			return fmt.Errorf("%s is a %v slice of %d bytes, and %s on top of it a %v slice of %d",
				l.path, l.kind, l.size, top.path, top.kind, top.size)
		case i > 0 && l.Writable():
			return fmt.Errorf("%s is not the top and not frozen: freeze it first", l.path)
		}
	}
	return nil
}

// Restack replaces the whole stack, under the conditions of NewImage and without a change of size or kind: a VM that was
// forked goes on with a new top above the one that was frozen, and a clone's disk gets its lower slices when they are
// known. Every read and every write sees either the old stack or the new one. Restack waits for those in flight, so the
// slices that are no longer in the stack may be closed when it returns. It does not wait for what is brought from another
// host: who waits for that reads the new stack afterwards. After an error the stack is the old one.
func (im *Image) Restack(layers ...*Slice) error {
	if err := fit(layers); err != nil {
		return fmt.Errorf("restack slices: %w", err)
	}
	if top := layers[0]; top.size != im.size || top.kind != im.kind {
		return fmt.Errorf("restack slices: %s is a %v slice of %d bytes, and the image a %v image of %d",
			top.path, top.kind, top.size, im.kind, im.size)
	}
	layers = slices.Clone(layers)
	im.writing.Lock()
	defer im.writing.Unlock()
	im.mu.Lock()
	defer im.mu.Unlock()
	im.layers = layers
	return nil
}

// Layers returns a copy of the stack, the top slice first.
func (im *Image) Layers() []*Slice {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return slices.Clone(im.layers)
}

// Size returns the size in bytes.
func (im *Image) Size() int64 { return im.size }

// Kind returns what it is an image of.
func (im *Image) Kind() Kind { return im.kind }

// Writable reports whether the top slice takes writes.
func (im *Image) Writable() bool {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return im.layers[0].Writable()
}

// IDs returns the names of the slices, the top one first, as a descriptor lists them.
func (im *Image) IDs() []ID {
	im.mu.RLock()
	defer im.mu.RUnlock()
	ids := make([]ID, len(im.layers))
	for i, l := range im.layers {
		ids[i] = l.id
	}
	return ids
}

// Zero reports whether the block reads as zeros without reading any slice.
func (im *Image) Zero(block int64) bool {
	im.mu.RLock()
	defer im.mu.RUnlock()
	for _, l := range im.layers {
		locked := l.lock()
		has := l.state(block)
		l.unlock(locked)
		if has != absent {
			return has == zeros
		}
	}
	return true
}

// Zeros returns the bitmap of all blocks for which Zero holds: the descriptor's zero-page bitmap (section 3.4).
func (im *Image) Zeros() *bitset.BitSet {
	im.mu.RLock()
	defer im.mu.RUnlock()
	data := bitset.New(uint(blocksOf(im.size)))
	for _, l := range slices.Backward(im.layers) {
		locked := l.lock()
		data.InPlaceUnion(l.stored)
		if l.lent != nil {
			data.InPlaceUnion(l.lent)
		}
		data.InPlaceDifference(l.zero)
		l.unlock(locked)
	}
	return data.Complement()
}

// ReadAt is io.ReaderAt.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read image: offset %d", off)
	}
	n := int(max(0, min(int64(len(p)), im.size-off)))
	if _, err := im.ReadStat(context.Background(), p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ReadStat fills p from offset off and says where the blocks came from. The range must lie inside the image. On an
// error nothing in p may be used: a block that fails its checksum is ErrCorrupt. It does not allocate, unless it has to
// bring blocks from another host; only that looks at ctx.
func (im *Image) ReadStat(ctx context.Context, p []byte, off int64) (stat Stat, err error) {
	if err := im.inside(len(p), off); err != nil {
		return stat, fmt.Errorf("read image: %w", err)
	}
	if stat, err = im.readAll(p, off); err != errAwaited {
		return stat, err
	}
	return im.readFar(ctx, p, off)
}

// readAll reads from one stack. If it meets blocks that have not come from another host, the error is errAwaited.
func (im *Image) readAll(p []byte, off int64) (stat Stat, err error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	for len(p) > 0 {
		block, skip := off/BlockSize, off%BlockSize
		var n int64 // bytes
		if skip == 0 && len(p) >= BlockSize {
			n, err = im.readRun(p, block, int64(len(p))/BlockSize, &stat)
			n *= BlockSize
		} else {
			n, err = im.readPart(p, block, skip, &stat)
		}
		if err != nil {
			return stat, err
		}
		p, off = p[n:], off+n
	}
	return stat, nil
}

func (im *Image) inside(n int, off int64) error {
	if off < 0 || off > im.size || int64(n) > im.size-off {
		return fmt.Errorf("%d bytes at %d are not inside the image of %d", n, off, im.size)
	}
	return nil
}

// readRun fills the start of dst with blocks that one slice answers for, from block first on, at most limit, and returns
// how many they were. One of the image's locks is held.
func (im *Image) readRun(dst []byte, first, limit int64, stat *Stat) (int64, error) {
	for i, l := range im.layers {
		n, has, err := l.read(dst, first, limit)
		if err == errAwaited {
			return 0, err
		}
		if err != nil {
			return 0, fmt.Errorf("read slice: %w", err)
		}
		switch has {
		case stored:
			if i == 0 && l.Writable() {
				stat.Local += int(n)
			} else {
				stat.Fetched += int(n)
			}
			return n, nil
		case zeros:
			stat.Zero += int(n)
			clear(dst[:n*BlockSize])
			return n, nil
		}
		limit = n // the slices below answer for the blocks that are absent here, and for no more
	}
	stat.Zero += int(limit)
	clear(dst[:limit*BlockSize])
	return limit, nil
}

var scratch = sync.Pool{New: func() any { return new([BlockSize]byte) }}

// readPart reads a part of one block; the whole of it has to be read for its checksum.
func (im *Image) readPart(p []byte, block, skip int64, stat *Stat) (int64, error) {
	buf := scratch.Get().(*[BlockSize]byte)
	defer scratch.Put(buf)
	if _, err := im.readRun(buf[:], block, 1, stat); err != nil {
		return 0, err
	}
	return int64(copy(p, buf[skip:])), nil
}

// WriteAt is io.WriterAt for an image with a writable top.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	if _, err := im.WriteStat(context.Background(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteStat writes p at offset off to the top slice and says which blocks had to be read for it: none for whole blocks
// (section 3.6), and at most the first and the last otherwise. It looks at ctx only while one of these is brought from
// another host.
func (im *Image) WriteStat(ctx context.Context, p []byte, off int64) (stat Stat, err error) {
	if err := im.inside(len(p), off); err != nil {
		return stat, fmt.Errorf("write image: %w", err)
	}
	if stat.Far, err = im.lockToWrite(ctx, off, int64(len(p))); err != nil {
		return stat, fmt.Errorf("write image: %w", err)
	}
	defer im.writing.Unlock()
	for len(p) > 0 {
		block, skip := off/BlockSize, off%BlockSize
		n := int64(len(p)) / BlockSize * BlockSize
		if skip == 0 && n > 0 {
			err = im.layers[0].WriteBlocks(p[:n], block)
		} else {
			n, err = im.writePart(p, block, skip, &stat)
		}
		if err != nil {
			return stat, fmt.Errorf("write image: %w", err)
		}
		p, off = p[n:], off+n
	}
	return stat, nil
}

// writePart writes a part of one block over the rest of it, as it reads now.
func (im *Image) writePart(p []byte, block, skip int64, stat *Stat) (int64, error) {
	buf := scratch.Get().(*[BlockSize]byte)
	defer scratch.Put(buf)
	end := min(BlockSize, im.size-block*BlockSize)
	if skip > 0 || int64(len(p)) < end {
		if _, err := im.readRun(buf[:], block, 1, stat); err != nil {
			return 0, err
		}
	} else {
		clear(buf[end:]) // all of the image's last block, which is not a whole one
	}
	n := int64(copy(buf[skip:end], p))
	return n, im.layers[0].WriteBlocks(buf[:], block)
}

// Discard makes n bytes at off read as zeros. Whole blocks fetch nothing and give their space back: a guest's trim. Its
// context is as WriteStat's.
func (im *Image) Discard(ctx context.Context, off, n int64) (stat Stat, err error) {
	if err := im.inside(0, off); err != nil || n < 0 || n > im.size-off {
		return stat, fmt.Errorf("discard: %d bytes at %d are not inside the image of %d", n, off, im.size)
	}
	if stat.Far, err = im.lockToWrite(ctx, off, n); err != nil {
		return stat, fmt.Errorf("discard: %w", err)
	}
	defer im.writing.Unlock()
	for end := off + n; off < end; {
		block, skip := off/BlockSize, off%BlockSize
		step := (end - off) / BlockSize * BlockSize
		if end == im.size {
			step = blocksOf(end-off) * BlockSize // the image's last block counts as whole
		}
		if skip == 0 && step > 0 {
			err = im.layers[0].ZeroBlocks(block, step/BlockSize)
		} else {
			step, err = im.writePart(zeroBlock[:min(end-off, BlockSize-skip)], block, skip, &stat)
		}
		if err != nil {
			return stat, fmt.Errorf("discard: %w", err)
		}
		off += step
	}
	return stat, nil
}
