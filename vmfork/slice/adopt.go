package slice

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/bits-and-blooms/bitset"
)

// pieceBlocks is what is read of a lender at a time, in blocks: 1 MB. The slice's lock is held over no more.
const pieceBlocks = chunkSize / BlockSize

// Adopt makes a frozen slice of which the given blocks are, for now, answered by from, at their offsets in the image;
// the others are absent. It is how a fork makes a slice of a suspended hypervisor process's private pages without a copy
// that its VM would have to wait for: from reads them where they are. They must not change, and are not verified by
// checksums. Settle copies them into the data file, which is made as Create makes it. A read that from fails, or cuts
// short, is an error that names the slice.
func Adopt(dataPath string, size int64, kind Kind, blocks *bitset.BitSet, from io.ReaderAt) (*Slice, error) {
	s, err := create(dataPath, size, kind)
	if err != nil {
		return nil, fmt.Errorf("adopt blocks: %w", err)
	}
	s.lent = bitset.New(uint(s.blocks))
	for b := range blocks.EachSet() {
		if int64(b) >= s.blocks {
			s.file.Close()
			os.Remove(dataPath)
			return nil, fmt.Errorf("adopt blocks: block %d is not inside %s of %d blocks", b, dataPath, s.blocks)
		}
		s.lent.Set(b)
	}
	s.from = from
	s.settling = make(chan struct{}, 1)
	s.frozen.Store(true)
	s.lending.Store(true)
	return s, nil
}

// Lent returns the number of blocks that Settle has not copied yet.
func (s *Slice) Lent() int64 {
	defer s.unlock(s.lock())
	if s.lent == nil {
		return 0
	}
	return int64(s.lent.Count())
}

// Settle copies what is still lent into the slice's own data file, with checksums, while readers go on; blocks of zeros
// are remembered as such and take no space. It returns the bytes that it stored. When it returns nil, no read of the
// lender is in flight and none will begin: its process may be killed. After an error, or when ctx ends, what was copied
// stays, the rest is still lent, and Settle can be called again. It has nothing to do for a slice that is settled, or
// was never lent anything.
func (s *Slice) Settle(ctx context.Context) (copied int64, err error) {
	if !s.lending.Load() {
		return 0, nil
	}
	select {
	case s.settling <- struct{}{}:
		defer func() { <-s.settling }()
	case <-ctx.Done():
		return 0, fmt.Errorf("settle %s: wait for another call that settles it: %w", s.path, ctx.Err())
	}
	if s.lent == nil { // the other call is done; only the holder of the token changes it
		return 0, nil
	}
	buf := make([]byte, pieceBlocks*BlockSize)
	for b, more := s.lent.NextSet(0); more; b, more = s.lent.NextSet(b) {
		if err := ctx.Err(); err != nil {
			return copied, fmt.Errorf("settle %s: %d blocks are still lent: %w", s.path, s.lent.Count(), err)
		}
		n, err := s.settlePiece(buf, int64(b))
		copied += n
		if err != nil {
			return copied, fmt.Errorf("settle %s: %w", s.path, err)
		}
	}
	s.mu.Lock() // waits for those who read the lender still
	defer s.mu.Unlock()
	s.lent, s.from = nil, nil
	s.lending.Store(false)
	return copied, nil
}

// settlePiece copies the lent blocks among the pieceBlocks from block first on, and returns how many bytes it stored.
// Readers are kept from the blocks only while the bits change hands, not while they are copied: until then they ask the
// lender.
func (s *Slice) settlePiece(buf []byte, first int64) (copied int64, err error) {
	end := min(first+pieceBlocks, s.blocks)
	found := make([]state, end-first)
	at := func(b int64) []byte { return buf[(b-first)*BlockSize:] }
	if err := s.borrow(buf, first, end); err != nil {
		return 0, err
	}
	for b := first; b < end; {
		n, has := s.run(b, end-b)
		if has != lent {
			b += n
			continue
		}
		for stop := b + n; b < stop; {
			zero := isZero(at(b)[:BlockSize])
			run := int64(1)
			for b+run < stop && isZero(at(b + run)[:BlockSize]) == zero {
				run++
			}
			has := zeros
			if !zero {
				has = stored
				data := at(b)[:min(run*BlockSize, s.size-b*BlockSize)]
				if _, err := s.file.WriteAt(data, b*BlockSize); err != nil {
					return 0, fmt.Errorf("write block %d: %w", b, err)
				}
				copied += int64(len(data))
			}
			for i := range run {
				found[b-first+i] = has
				if !zero {
					s.sums[b+i] = crc32.Checksum(at(b + i)[:BlockSize], castagnoli) // nobody looks at it yet
				}
			}
			b += run
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, has := range found {
		b := uint(first) + uint(i)
		switch has {
		case stored:
			s.stored.Set(b)
		case zeros:
			s.zero.Set(b)
		default:
			continue
		}
		s.lent.Clear(b)
	}
	return copied, nil
}

// borrow reads the lent blocks from block first up to end to their places in buf.
func (s *Slice) borrow(buf []byte, first, end int64) error {
	s.mu.RLock() // against Close
	defer s.mu.RUnlock()
	for b := first; b < end; {
		n, has := s.run(b, end-b)
		if has == lent {
			if err := s.readLent(buf[(b-first)*BlockSize:][:n*BlockSize], b); err != nil {
				return err
			}
		}
		b += n
	}
	return nil
}

// readLent reads lent blocks from their lender. The lock is held, so that Settle and Close wait for it.
func (s *Slice) readLent(dst []byte, first int64) error {
	fail := func(err error) error {
		return fmt.Errorf("read blocks %d to %d of %s where they are lent from: %w",
			first, first+int64(len(dst))/BlockSize-1, s.path, err)
	}
	if s.from == nil {
		return fail(os.ErrClosed)
	}
	want := min(int64(len(dst)), s.size-first*BlockSize) // the image may end inside its last block
	n, err := s.from.ReadAt(dst[:want], first*BlockSize)
	if int64(n) < want {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("it ends after %d of %d bytes: %w", n, want, io.ErrUnexpectedEOF) // its process is gone
		}
		return fail(err)
	}
	clear(dst[want:])
	return nil
}
