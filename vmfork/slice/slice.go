package slice

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"github.com/bits-and-blooms/bitset"
)

// BlockSize is the unit of presence, of checksums and of fetches, in bytes: a page of memory, and the same for disks
// (section 3.6).
const BlockSize = 4096

// MaxImageSize bounds what a map file may claim, in bytes.
const MaxImageSize = 16 << 40

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Kind is what a slice is a slice of.
type Kind uint32

// The two kinds. The format does not distinguish them otherwise.
const (
	Memory Kind = 1
	Disk   Kind = 2
)

func (k Kind) String() string {
	switch k {
	case Memory:
		return "memory"
	case Disk:
		return "disk"
	}
	return fmt.Sprintf("kind %d", uint32(k))
}

// ID names a slice for ever, on every host. It is drawn at random when the slice is made.
type ID [16]byte

func newID() (id ID) {
	rand.Read(id[:]) // never fails: it ends the process instead
	return id
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes the id as 32 hexadecimal digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads 32 hexadecimal digits.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(id)) {
		return fmt.Errorf("parse slice id: %d characters instead of %d", len(text), hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return fmt.Errorf("parse slice id: %w", err)
	}
	return nil
}

// Slice is one layer of an image. It comes from Open or Seal, sealed, or from Create, writable until its own Seal.
type Slice struct {
	file *os.File
	path string

	id     ID
	kind   Kind
	size   int64 // bytes
	blocks int64

	created bool         // by Create: it changes, or once did, and mu is needed
	mu      sync.RWMutex // guards what follows if created
	frozen  bool
	stored  *bitset.BitSet
	zero    *bitset.BitSet // disjoint from stored
	sums    []uint32       // CRC-32C by block; meaningful where stored
}

// Open opens a sealed slice for reading. Both files are validated except for the data itself, whose blocks are
// verified as they are read (or all at once by Verify).
func Open(dataPath, mapPath string) (*Slice, error) {
	m, err := loadMap(mapPath)
	if err != nil {
		return nil, fmt.Errorf("open slice: %w", err)
	}
	f, err := os.Open(dataPath)
	if err != nil {
		return nil, fmt.Errorf("open slice: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open slice: %w", err)
	}
	if st.Size() != m.size {
		f.Close()
		kind := ErrTruncated
		if st.Size() > m.size {
			kind = ErrCorrupt
		}
		return nil, fmt.Errorf("open slice: %w", &FileError{dataPath, kind,
			fmt.Sprintf("%d bytes, but its map %s is for %d", st.Size(), mapPath, m.size)})
	}
	return &Slice{
		file: f, path: dataPath,
		id: m.id, kind: m.kind, size: m.size, blocks: blocksOf(m.size),
		frozen: true, stored: m.stored, zero: m.zero, sums: m.sums,
	}, nil
}

func blocksOf(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// ID returns the slice's name.
func (s *Slice) ID() ID { return s.id }

// Kind returns what it is a slice of.
func (s *Slice) Kind() Kind { return s.kind }

// Size returns the size of the image that it is a slice of, in bytes.
func (s *Slice) Size() int64 { return s.size }

// Blocks returns the number of blocks of the image; the last one may be a part of a block.
func (s *Slice) Blocks() int64 { return s.blocks }

// Path returns the data file's path.
func (s *Slice) Path() string { return s.path }

// Writable reports whether the slice takes writes: it is from Create and not sealed yet.
func (s *Slice) Writable() bool {
	s.lock()
	defer s.unlock()
	return !s.frozen
}

// Present reports whether the slice answers for the block, with data or with zeros.
func (s *Slice) Present(block int64) bool {
	s.lock()
	defer s.unlock()
	return s.state(block) != absent
}

// Count returns the number of stored blocks and of blocks known to be zeros; the others are absent.
func (s *Slice) Count() (stored, zero int64) {
	s.lock()
	defer s.unlock()
	return int64(s.stored.Count()), int64(s.zero.Count())
}

// Close closes the data file. Images that hold the slice fail from then on.
func (s *Slice) Close() error { return s.file.Close() }

func (s *Slice) lock() {
	if s.created {
		s.mu.RLock()
	}
}

func (s *Slice) unlock() {
	if s.created {
		s.mu.RUnlock()
	}
}

// ReadBlocks reads len(dst)/BlockSize stored blocks from block first on and verifies each. It is for those who ask for
// this slice and no other, as a server of slices does; anybody else reads an Image. A block that is not stored is
// ErrAbsent.
func (s *Slice) ReadBlocks(dst []byte, first int64) error {
	n := int64(len(dst)) / BlockSize
	if int64(len(dst)) != n*BlockSize || first < 0 || first+n > s.blocks {
		return fmt.Errorf("read %d bytes from block %d of %s: not whole blocks inside the image of %d blocks",
			len(dst), first, s.path, s.blocks)
	}
	for n > 0 {
		got, has, err := s.read(dst, first, n)
		if err != nil {
			return err
		}
		if has != stored {
			return fmt.Errorf("read block %d of %s: %w", first, s.path, ErrAbsent)
		}
		dst, first, n = dst[got*BlockSize:], first+got, n-got
	}
	return nil
}

// Verify reads every stored block and returns the first error that it meets.
func (s *Slice) Verify(ctx context.Context) error {
	buf := make([]byte, 1<<20)
	for b := int64(0); b < s.blocks; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify %s: %w", s.path, err)
		}
		n, _, err := s.read(buf, b, min(int64(len(buf))/BlockSize, s.blocks-b))
		if err != nil {
			return fmt.Errorf("verify slice: %w", err)
		}
		b += n
	}
	return nil
}

// state is what a slice knows of a block.
type state int

const (
	absent state = iota
	stored
	zeros
)

// read answers for block first and for as many of the following, at most limit, as it can answer in the same way.
// Stored blocks are read into dst and verified; otherwise dst is not touched.
func (s *Slice) read(dst []byte, first, limit int64) (n int64, has state, err error) {
	s.lock()
	defer s.unlock()
	n, has = s.run(first, limit)
	if has == stored {
		err = s.readStored(dst[:n*BlockSize], first)
	}
	return n, has, err
}

// run finds what the slice knows of block first, and of how many blocks from there, at most limit, it knows the same.
// It looks no further than limit, which is short: a search for the next set bit could cross all of a large sparse disk.
func (s *Slice) run(first, limit int64) (n int64, has state) {
	has = s.state(first)
	for n = 1; n < limit && s.state(first+n) == has; n++ {
	}
	return n, has
}

func (s *Slice) state(block int64) state {
	switch b := uint(block); {
	case s.stored.Test(b):
		return stored
	case s.zero.Test(b):
		return zeros
	default:
		return absent
	}
}

// readStored reads whole blocks and compares each with its checksum.
func (s *Slice) readStored(dst []byte, first int64) error {
	off := first * BlockSize
	n, err := s.file.ReadAt(dst, off)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("read block %d: %w", first, err)
		}
		if off+int64(n) < s.size {
			return &FileError{s.path, ErrTruncated, fmt.Sprintf("it ends at %d instead of %d", off+int64(n), s.size)}
		}
		clear(dst[n:]) // the image ends inside its last block
	}
	for i := int64(0); len(dst) > 0; i++ {
		if got, want := crc32.Checksum(dst[:BlockSize], castagnoli), s.sums[first+i]; got != want {
			return &BlockError{Path: s.path, Block: first + i, Want: want, Got: got}
		}
		dst = dst[BlockSize:]
	}
	return nil
}
