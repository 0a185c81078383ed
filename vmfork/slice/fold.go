package slice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// foldBlocks is what Fold looks at between two looks at its context, in blocks: 8 MB.
const foldBlocks = 2048

// Fold makes one frozen slice of two, of which upper lay on top of lower: it answers as the two do together, and leaves
// absent what both do. The data file is made at path as Create makes it. Blocks are copied with the checksums that they
// have, shared with the sources where the file system can (reflink), and not verified: a damaged one is noticed when it is
// read. Nobody waits for Fold; the sources stay in use until Image.Replace.
//
// Both must be frozen, settled and complete.
func Fold(ctx context.Context, path string, upper, lower *Slice) (*Slice, error) {
	fail := func(err error) (*Slice, error) {
		return nil, fmt.Errorf("fold %v onto %v: %w", upper.id, lower.id, err)
	}
	if err := fit([]*Slice{upper, lower}); err != nil {
		return fail(err)
	}
	for _, s := range []*Slice{upper, lower} {
		if err := s.whole(); err != nil {
			return fail(err)
		}
	}
	s, err := create(path, upper.size, upper.kind)
	if err != nil {
		return fail(err)
	}
	s.frozen.Store(true)
	if err := s.fold(ctx, upper, lower); err != nil {
		s.Close()
		os.Remove(path)
		return fail(err)
	}
	return s, nil
}

// whole says why not all that a slice answers with is in its data file.
func (s *Slice) whole() error {
	switch {
	case s.Writable():
		return fmt.Errorf("%s is still written: freeze it first", s.path)
	case s.lending.Load():
		return fmt.Errorf("%d blocks of %s are only lent: settle it first", s.Lent(), s.path)
	case s.Awaited() > 0:
		return fmt.Errorf("%d blocks of %s are still on another host", s.Awaited(), s.path)
	}
	return nil
}

// fold copies into a slice that nobody else knows yet.
func (s *Slice) fold(ctx context.Context, upper, lower *Slice) error {
	c := copier{to: s.file}
	for b := int64(0); b < s.blocks; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d of %d blocks are done: %w", b, s.blocks, err)
		}
		from := upper
		n, has := upper.run(b, min(foldBlocks, s.blocks-b))
		if has == absent {
			from = lower
			n, has = lower.run(b, n)
		}
		switch has {
		case stored:
			off := b * BlockSize
			if err := c.copy(from.file, off, min(n*BlockSize, s.size-off)); err != nil {
				return fmt.Errorf("copy blocks %d to %d of %s: %w", b, b+n-1, from.path, err)
			}
			copy(s.sums[b:b+n], from.sums[b:])
			setBits(s.stored.Words(), b, n)
		case zeros:
			setBits(s.zero.Words(), b, n)
		}
		b += n
	}
	return nil
}

// setBits sets n bits of a bitmap from bit first on.
func setBits(words []uint64, first, n int64) {
	for end := first + n; first < end; {
		stop := min((first/64+1)*64, end)
		words[first/64] |= span(first, stop)
		first = stop
	}
}

// copier copies ranges between files, each to the same offset.
type copier struct {
	to    *os.File
	plain bool   // the kernel does not copy between these files
	buf   []byte // for then
}

func (c *copier) copy(from *os.File, off, n int64) error {
	for n > 0 && !c.plain {
		done, err := copyRange(c.to, from, off, n)
		switch {
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			c.plain = true
		case err != nil:
			return err
		case done == 0:
			return fmt.Errorf("it ends at %d: %w", off, ErrTruncated)
		default:
			off, n = off+done, n-done
		}
	}
	if n > 0 && c.buf == nil {
		c.buf = make([]byte, chunkSize)
	}
	for n > 0 {
		p := c.buf[:min(n, int64(len(c.buf)))]
		if _, err := from.ReadAt(p, off); err != nil {
			return err
		}
		if _, err := c.to.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// copyRange is copy_file_range, safe against a Close of either file meanwhile.
func copyRange(to, from *os.File, off, n int64) (done int64, err error) {
	in, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	out, err := to.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = in.Control(func(r uintptr) {
		err := out.Control(func(w uintptr) {
			offIn, offOut := off, off
			var got int
			for {
				if got, failed = unix.CopyFileRange(int(r), &offIn, int(w), &offOut, int(n), 0); failed != unix.EINTR {
					break
				}
			}
			done = int64(got)
		})
		failed = errors.Join(failed, err)
	})
	return done, errors.Join(failed, err)
}

// Foldable says which two layers of a stack, top first, are best folded: layers[i] and the one below. It is -1 if none
// are. Of the last keep layers, a cached checkpoint's, which other jobs share, none is ever folded, and none that is
// written, lent or still on another host.
//
// Worth folding are two of which the lower stores at most twice as much as the upper: then a chain of forks, each folded
// until nothing is left to fold, has layers that at least double downwards, a number of them that is the logarithm of what
// they store, and has copied each block about as many times. Among several it is the two that store least.
func Foldable(layers []*Slice, keep int) (i int) {
	i = -1
	var least, above int64
	aboveIs := false
	for j, l := range layers[:max(0, len(layers)-keep)] {
		if l.whole() != nil {
			aboveIs = false
			continue
		}
		count, _ := l.Count()
		if aboveIs && count <= 2*above && (i < 0 || count+above < least) {
			i, least = j-1, count+above
		}
		above, aboveIs = count, true
	}
	return i
}

// Replace puts the slice that two adjacent layers were folded into in their place. They may be closed when it returns,
// unless other images have them. Forks may have changed the stack meanwhile; if the two are not in it one above the other
// any more, it is an error, and the stack stays as it is.
func (im *Image) Replace(upper, lower, folded *Slice) error {
	im.writing.Lock()
	defer im.writing.Unlock()
	i := slices.Index(im.layers, upper)
	if i < 0 || i+1 == len(im.layers) || im.layers[i+1] != lower {
		return fmt.Errorf("replace slices: %v is not on top of %v in this stack", upper.id, lower.id)
	}
	layers := slices.Concat(im.layers[:i], []*Slice{folded}, im.layers[i+2:])
	if err := fit(layers); err != nil {
		return fmt.Errorf("replace slices: %w", err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.layers = layers
	return nil
}

// Inherit gives a far slice, which another host has folded, what of its blocks is here already in the slices that it was
// folded from, top first, and returns how many blocks that were. They are verified. It brings nothing.
func (s *Slice) Inherit(ctx context.Context, parts ...*Slice) (blocks int64, err error) {
	fail := func(err error) (int64, error) { return blocks, fmt.Errorf("inherit blocks for %v: %w", s.id, err) }
	if err := fit(append([]*Slice{s}, parts...)); err != nil {
		return fail(err)
	}
	whole, err := NewImage(parts...)
	if err != nil {
		return fail(err)
	}
	buf := make([]byte, pieceBlocks*BlockSize)
	for b := int64(0); b < s.blocks; b += pieceBlocks {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		for _, g := range s.gaps(nil, b, min(pieceBlocks, s.blocks-b)) {
			for end := g.first + g.n; g.first < end; {
				n, here := whole.here(g.first, end-g.first)
				if here {
					p := buf[:n*BlockSize]
					data := p[:min(n*BlockSize, s.size-g.first*BlockSize)]
					clear(p[len(data):]) // the image ends inside its last block
					if _, err := whole.readAll(data, g.first*BlockSize); err != nil {
						return fail(err)
					}
					if err := s.Arrive(p, g.first); err != nil {
						return fail(err)
					}
					blocks += n
				}
				g.first += n
			}
		}
	}
	return blocks, nil
}

// here says of block first, and of how many from there, at most limit, whether a slice answers for it without bringing it.
func (im *Image) here(first, limit int64) (n int64, here bool) {
	for _, l := range im.layers {
		locked := l.lock()
		got, has := l.run(first, limit)
		l.unlock(locked)
		switch limit = got; has {
		case absent:
			continue
		case stored:
			if limit = l.come(first, limit); limit == 0 {
				return 1, false
			}
		}
		return limit, true
	}
	return limit, false
}
