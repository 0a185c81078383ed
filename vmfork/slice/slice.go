package slice

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

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

// Slice is one layer of an image. It comes from Open or Seal, sealed; from Create, writable until it is frozen; from
// Adopt, frozen, with blocks that are somebody else's until Settle has copied them; or from Far, frozen, with blocks that
// are on another host until they are read.
type Slice struct {
	file *os.File
	path string

	id     ID
	kind   Kind
	size   int64 // bytes
	blocks int64

	created  bool          // by Create, Adopt or Far: it has no map until Seal writes one
	frozen   atomic.Bool   // never false again; set with mu
	lending  atomic.Bool   // there are lent blocks; never true again; cleared with mu
	settling chan struct{} // holds a token while a Settle runs; nil unless from Adopt
	remote   bool          // from Far

	away atomic.Pointer[distance] // blocks are on another host; nil again once all have come

	mu     sync.RWMutex // guards what follows until the slice is frozen and lends nothing; a far slice's sums follow distance.here
	stored *bitset.BitSet
	zero   *bitset.BitSet // disjoint from stored
	sums   []uint32       // CRC-32C by block; meaningful where stored
	lent   *bitset.BitSet // disjoint from both; nil if lending is false
	from   io.ReaderAt    // answers for the lent blocks; nil once it must not be used
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
	s := &Slice{
		file: f, path: dataPath,
		id: m.id, kind: m.kind, size: m.size, blocks: blocksOf(m.size),
		stored: m.stored, zero: m.zero, sums: m.sums,
	}
	s.frozen.Store(true)
	return s, nil
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

// Writable reports whether the slice takes writes: it is from Create and not frozen yet.
func (s *Slice) Writable() bool { return !s.frozen.Load() }

// Present reports whether the slice answers for the block, with data or with zeros.
func (s *Slice) Present(block int64) bool {
	defer s.unlock(s.lock())
	return s.state(block) != absent
}

// Count returns the number of stored blocks and of blocks known to be zeros; the others are absent. Lent blocks count as
// stored, although Settle may still find that they are zeros.
func (s *Slice) Count() (stored, zero int64) {
	defer s.unlock(s.lock())
	stored = int64(s.stored.Count())
	if s.lent != nil {
		stored += int64(s.lent.Count())
	}
	return stored, int64(s.zero.Count())
}

// Close closes the data file, and uses nothing that was lent any more once it returns. Images that hold the slice fail
// from then on, with os.ErrClosed, and so do reads that wait for another host.
func (s *Slice) Close() error {
	s.leave()
	if s.lending.Load() {
		s.mu.Lock()
		s.from = nil
		s.mu.Unlock()
	}
	return s.file.Close()
}

// lock locks for reading what can still change, and nothing otherwise: frozen slices are shared by many images, whose
// readers would only keep each other waiting for the lock's memory.
func (s *Slice) lock() (locked bool) {
	if s.frozen.Load() && !s.lending.Load() {
		return false
	}
	s.mu.RLock()
	return true
}

func (s *Slice) unlock(locked bool) {
	if locked {
		s.mu.RUnlock()
	}
}

// ReadBlocks reads len(dst)/BlockSize blocks from block first on and verifies each. It is for those who ask for this slice
// and no other, as a server of slices does; anybody else reads an Image. Of a far slice, it brings those that have not
// come. Zeros are answered like others, since a map that was sent (Map) may have them as stored. A block that is absent is
// ErrAbsent.
func (s *Slice) ReadBlocks(dst []byte, first int64) error {
	n := int64(len(dst)) / BlockSize
	if int64(len(dst)) != n*BlockSize || first < 0 || first+n > s.blocks {
		return fmt.Errorf("read %d bytes from block %d of %s: not whole blocks inside the image of %d blocks",
			len(dst), first, s.path, s.blocks)
	}
	for n > 0 {
		got, has, err := s.read(dst, first, n)
		if err == errAwaited {
			if gaps := s.gaps(nil, first, got); len(gaps) > 0 {
				if err := errors.Join(bring(context.Background(), gaps)...); err != nil {
					return err
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		switch has {
		case absent:
			return fmt.Errorf("read block %d of %s: %w", first, s.path, ErrAbsent)
		case zeros:
			clear(dst[:got*BlockSize])
		}
		dst, first, n = dst[got*BlockSize:], first+got, n-got
	}
	return nil
}

// Verify reads every stored block and returns the first error that it meets. Of a far slice it reads those that have come.
func (s *Slice) Verify(ctx context.Context) error {
	buf := make([]byte, 1<<20)
	for b := int64(0); b < s.blocks; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify %s: %w", s.path, err)
		}
		n, _, err := s.read(buf, b, min(int64(len(buf))/BlockSize, s.blocks-b))
		if err == errAwaited {
			if n = s.come(b, n); n == 0 {
				b++
				continue
			}
			n, _, err = s.read(buf, b, n)
		}
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
	lent // stored, but elsewhere: only Settle and the functions below tell it from stored
)

// read answers for block first and for as many of the following, at most limit, as it can answer in the same way.
// Stored blocks are read into dst and verified; otherwise dst is not touched. If some of the n blocks are stored, but on
// another host only, it reads none and the error is errAwaited.
func (s *Slice) read(dst []byte, first, limit int64) (n int64, has state, err error) {
	defer s.unlock(s.lock())
	n, has = s.run(first, limit)
	switch has {
	case stored:
		if d := s.away.Load(); d != nil {
			if _, missing := d.lacks(s.stored, first, n); missing > 0 {
				return n, has, errAwaited
			}
		}
		err = s.readStored(dst[:n*BlockSize], first)
	case lent:
		n, has = min(n, pieceBlocks), stored
		err = s.readLent(dst[:n*BlockSize], first)
	}
	return n, has, err
}

// run finds what the slice knows of block first, and of how many blocks from there, at most limit, it knows the same.
// It looks no further than limit, which is short: a search for the next set bit could cross all of a large sparse disk.
// A deep stack makes one such call for each of its slices, so it takes a word of the bitmaps at a time.
func (s *Slice) run(first, limit int64) (n int64, has state) {
	has = s.state(first)
	for n < limit {
		bit := uint64(first+n) % 64
		same := bits.TrailingZeros64(^(s.word((first+n)/64, has) >> bit))
		n += int64(same)
		if bit+uint64(same) < 64 {
			break
		}
	}
	return min(n, limit), has
}

// word returns one word of the bitmap of the blocks in a state.
func (s *Slice) word(i int64, has state) uint64 {
	switch has {
	case stored:
		return s.stored.Words()[i]
	case zeros:
		return s.zero.Words()[i]
	case lent:
		return s.lent.Words()[i]
	}
	known := s.stored.Words()[i] | s.zero.Words()[i]
	if s.lent != nil {
		known |= s.lent.Words()[i]
	}
	return ^known
}

func (s *Slice) state(block int64) state {
	switch b := uint(block); {
	case s.stored.Test(b):
		return stored
	case s.zero.Test(b):
		return zeros
	case s.lent != nil && s.lent.Test(b):
		return lent
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
