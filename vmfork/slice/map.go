package slice

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/bits-and-blooms/bitset"
	"github.com/klauspost/compress/zstd"
)

// Map says which blocks a frozen slice answers for, and how: all that another host has to know of a slice to stack it
// (Far), and to fetch no zeros (section 3.4).
type Map struct {
	ID     ID
	Kind   Kind
	Size   int64          // of the image, bytes
	Stored *bitset.BitSet // blocks that hold data; they have to be sent
	Zero   *bitset.BitSet // blocks that read as zeros, whatever is below; disjoint from Stored
}

// Map returns the map of a frozen slice. Lent blocks count as stored, also those that Settle will find to be zeros:
// ReadBlocks answers for them in either case. The bitmaps are copies.
func (s *Slice) Map() Map {
	defer s.unlock(s.lock())
	m := Map{ID: s.id, Kind: s.kind, Size: s.size, Stored: s.stored.Clone(), Zero: s.zero.Clone()}
	if s.lent != nil {
		m.Stored.InPlaceUnion(s.lent)
	}
	return m
}

// check says why there is no slice with this map.
func (m Map) check() error {
	if m.Kind != Memory && m.Kind != Disk {
		return fmt.Errorf("unknown %v", m.Kind)
	}
	if m.Size <= 0 || m.Size > MaxImageSize {
		return fmt.Errorf("an image of %d bytes cannot be", m.Size)
	}
	if m.Stored == nil || m.Zero == nil {
		return errors.New("a bitmap is missing")
	}
	blocks := blocksOf(m.Size)
	for _, bitmap := range []*bitset.BitSet{m.Stored, m.Zero} {
		words := bitmap.Words()
		for i := (blocks - 1) / 64; i < int64(len(words)); i++ {
			beyond := words[i]
			if i*64 < blocks {
				beyond &^= span(i*64, min(i*64+64, blocks))
			}
			if beyond != 0 {
				return fmt.Errorf("block %d is not inside the image of %d blocks", i*64+int64(bits.TrailingZeros64(beyond)), blocks)
			}
		}
	}
	if m.Stored.IntersectionCardinality(m.Zero) != 0 {
		return errors.New("a block is both stored and zero")
	}
	return nil
}

// fitted copies a bitmap, with exactly one bit for each block.
func (m Map) fitted(bitmap *bitset.BitSet) *bitset.BitSet {
	words := make([]uint64, bitmapWords(m.Size))
	copy(words, bitmap.Words())
	return bitset.FromWithLength(uint(blocksOf(m.Size)), words)
}

// The encoding of a map that is sent: the fields, little endian, and the words of the two bitmaps as one zstd frame.
//
//	0  magic "SFMAP\n\0\0"    12  kind (u32)              32  size, bytes (u64)
//	8  format version (u32)   16  slice id (16 bytes)     40  zstd: stored, zero (u64 words, bit 0 first)
//	   CRC-32C (Castagnoli) of everything before it (u32)
const (
	wireMagic   = "SFMAP\n\x00\x00"
	wireVersion = 1
	wireHeader  = 40
	wireSum     = 4
	// wirePiece is what is unpacked at a time, in bytes.
	wirePiece = 1 << 20
)

// MarshalBinary packs the map: at most 64 KB for each GB of the image, and little of that where neighbours are alike.
func (m Map) MarshalBinary() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("pack slice map: %w", err)
	}
	raw := make([]byte, 0, 16*bitmapWords(m.Size))
	for _, bitmap := range []*bitset.BitSet{m.Stored, m.Zero} {
		for _, w := range m.fitted(bitmap).Words() {
			raw = binary.LittleEndian.AppendUint64(raw, w)
		}
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(wirePiece))
	if err != nil {
		return nil, fmt.Errorf("pack slice map: %w", err)
	}
	defer enc.Close()
	out := append(make([]byte, 0, 4<<10), wireMagic...)
	out = binary.LittleEndian.AppendUint32(out, wireVersion)
	out = binary.LittleEndian.AppendUint32(out, uint32(m.Kind))
	out = append(out, m.ID[:]...)
	out = binary.LittleEndian.AppendUint64(out, uint64(m.Size))
	out = enc.EncodeAll(raw, out)
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli)), nil
}

// UnmarshalBinary unpacks a map that another host sent. It allocates nothing for a size that is only claimed: the bitmaps
// grow with what is unpacked, to 1 GB for the largest image that there can be. Whoever knows the size of the image, as a
// descriptor does, compares. After an error m is as it was.
func (m *Map) UnmarshalBinary(data []byte) error {
	got, err := unpackMap(data)
	if err != nil {
		return fmt.Errorf("unpack slice map: %w", err)
	}
	*m = got
	return nil
}

func unpackMap(data []byte) (m Map, err error) {
	if !bytes.HasPrefix(data, []byte(wireMagic)) {
		return m, ErrForeign
	}
	if len(data) < wireHeader+wireSum {
		return m, fmt.Errorf("it %w: %d bytes", ErrTruncated, len(data))
	}
	corrupt := func(format string, args ...any) (Map, error) {
		return Map{}, fmt.Errorf("it %w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	le := binary.LittleEndian
	if v := le.Uint32(data[8:]); v != wireVersion {
		return m, fmt.Errorf("it %w: format %d, this program knows %d: use one version on all hosts", ErrNewer, v, wireVersion)
	}
	body := data[:len(data)-wireSum]
	if got, want := crc32.Checksum(body, castagnoli), le.Uint32(data[len(body):]); got != want {
		return corrupt("checksum %08x instead of %08x", got, want)
	}
	size := le.Uint64(data[32:])
	if size == 0 || size > MaxImageSize {
		return corrupt("image size of %d bytes", size)
	}
	m = Map{ID: ID(data[16:32]), Kind: Kind(le.Uint32(data[12:])), Size: int64(size)}
	raw, err := unzip(body[wireHeader:], 16*bitmapWords(m.Size))
	if err != nil {
		return corrupt("%v", err)
	}
	bitmap := func() *bitset.BitSet {
		words := make([]uint64, bitmapWords(m.Size))
		for i := range words {
			words[i], raw = le.Uint64(raw), raw[8:]
		}
		return bitset.FromWithLength(uint(blocksOf(m.Size)), words)
	}
	m.Stored, m.Zero = bitmap(), bitmap()
	if err := m.check(); err != nil {
		return corrupt("%v", err)
	}
	return m, nil
}

// unzip unpacks one zstd frame of exactly want bytes, with memory for no more than the frame really has.
func unzip(frame []byte, want int64) ([]byte, error) {
	dec, err := zstd.NewReader(bytes.NewReader(frame), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(wirePiece), zstd.WithDecoderMaxMemory(uint64(max(want, wirePiece))))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	raw, err := io.ReadAll(io.LimitReader(dec, want+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != want {
		return nil, fmt.Errorf("the bitmaps have %d bytes or more instead of %d", len(raw), want)
	}
	return raw, nil
}
