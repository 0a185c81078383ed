package slice

import (
	"context"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/bits-and-blooms/bitset"
)

// Create makes an empty writable slice of an image of size bytes: the top of a clone's disk, or what a clone's dirty
// pages are copied into when it forks. The data file must not exist; it gets mode 0600. Nothing is kept of the slice
// but its data file until Seal writes the map.
func Create(dataPath string, size int64, kind Kind) (*Slice, error) {
	s, err := create(dataPath, size, kind)
	if err != nil {
		return nil, fmt.Errorf("create slice: %w", err)
	}
	return s, nil
}

func create(dataPath string, size int64, kind Kind) (*Slice, error) {
	if size <= 0 || size > MaxImageSize || (kind != Memory && kind != Disk) {
		return nil, fmt.Errorf("%s: a %v image of %d bytes cannot be", dataPath, kind, size)
	}
	f, err := os.OpenFile(dataPath, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		os.Remove(dataPath)
		return nil, err
	}
	blocks := blocksOf(size)
	return &Slice{
		file: f, path: dataPath,
		id: newID(), kind: kind, size: size, blocks: blocks,
		created: true,
		stored:  bitset.New(uint(blocks)), zero: bitset.New(uint(blocks)), sums: make([]uint32, blocks),
	}, nil
}

// Freeze makes a slice from Create refuse writes from now on, and goes on answering reads. Nothing is written, so it
// takes no time: a VM can stay suspended over it. Whoever writes must have stopped, or loses the rest of its write. A
// slice that is frozen already stays as it is.
func (s *Slice) Freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen.Store(true)
}

// Seal freezes a slice from Create, and writes the map of a slice from Create, Adopt or Far to mapPath. It keeps its bitmaps:
// what was overwritten with zeros keeps hiding the slices below. It takes milliseconds whatever the size of the data,
// since every write has left its checksum. After an error the slice is frozen and has no map; Seal can be tried again.
// A slice with lent blocks has to be settled first, and every block of a far one must have come.
func (s *Slice) Seal(ctx context.Context, mapPath string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("seal %s: %w", s.path, err)
	}
	if !s.created {
		return fmt.Errorf("seal %s: %w", s.path, ErrReadOnly)
	}
	s.Freeze()
	if s.lending.Load() {
		return fmt.Errorf("seal %s: %d of its blocks are only lent: settle it first", s.path, s.Lent())
	}
	if n := s.Awaited(); n > 0 {
		return fmt.Errorf("seal %s: %d of its blocks are still on another host", s.path, n)
	}
	// Nothing changes any more, so no lock is held over the writing.
	m := &mapFile{kind: s.kind, id: s.id, size: s.size, stored: s.stored, zero: s.zero, sums: s.sums}
	if err := m.save(mapPath); err != nil {
		return fmt.Errorf("seal %s: %w", s.path, err)
	}
	return nil
}

// WriteBlocks stores whole blocks from block first on, without a look at any slice below. Blocks of zeros take no space
// and are remembered as zeros. After an error each block holds its old or its new contents; one that failing storage
// left torn in its middle is ErrCorrupt until it is written again.
func (s *Slice) WriteBlocks(p []byte, first int64) error {
	n := int64(len(p)) / BlockSize
	if int64(len(p)) != n*BlockSize || first < 0 || first+n > s.blocks {
		return fmt.Errorf("write %d bytes at block %d of %s: not whole blocks inside the image of %d blocks",
			len(p), first, s.path, s.blocks)
	}
	for len(p) > 0 {
		zero := isZero(p[:BlockSize])
		n := int64(1)
		for n*BlockSize < int64(len(p)) && isZero(p[n*BlockSize:(n+1)*BlockSize]) == zero {
			n++
		}
		var err error
		if zero {
			err = s.ZeroBlocks(first, n)
		} else {
			err = s.store(p[:n*BlockSize], first)
		}
		if err != nil {
			return err
		}
		p, first = p[n*BlockSize:], first+n
	}
	return nil
}

// ZeroBlocks makes n blocks read as zeros, hiding what is below, and gives their space back.
func (s *Slice) ZeroBlocks(first, n int64) error {
	if first < 0 || n < 0 || first+n > s.blocks {
		return fmt.Errorf("zero %d blocks from block %d of %s: the image has %d", n, first, s.path, s.blocks)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen.Load() {
		return ErrReadOnly
	}
	for b := first; b < first+n; {
		run, has := s.run(b, first+n-b)
		if has == stored {
			// The bitmap makes them zero; the hole only saves space, where the file system has holes.
			_ = punchHole(s.file, b*BlockSize, run*BlockSize)
		}
		for i := b; i < b+run; i++ {
			s.stored.Clear(uint(i))
			s.zero.Set(uint(i))
		}
		b += run
	}
	return nil
}

// store writes whole blocks and their checksums. The lock makes the two one for readers.
func (s *Slice) store(p []byte, first int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen.Load() {
		return ErrReadOnly
	}
	off := first * BlockSize
	data := p[:min(int64(len(p)), s.size-off)] // the image may end inside its last block
	n, err := s.file.WriteAt(data, off)
	done := int64(n) / BlockSize
	if err == nil {
		done = int64(len(p)) / BlockSize
	}
	for i := range done {
		s.sums[first+i] = crc32.Checksum(p[i*BlockSize:(i+1)*BlockSize], castagnoli)
		s.stored.Set(uint(first + i))
		s.zero.Clear(uint(first + i))
	}
	if err != nil {
		return fmt.Errorf("write block %d: %w", first+done, err)
	}
	return nil
}
