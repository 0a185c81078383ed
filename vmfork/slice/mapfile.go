package slice

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/bits-and-blooms/bitset"
)

const (
	mapMagic      = "SFSLICE\n"
	mapVersion    = 1
	mapHeaderSize = 64
	mapSumSize    = 4
)

// mapFile is what the map file of a slice holds. The layout is in the package comment.
type mapFile struct {
	kind   Kind
	id     ID
	size   int64
	stored *bitset.BitSet
	zero   *bitset.BitSet
	sums   []uint32 // by block, not by rank: a lookup is one index
}

func (m *mapFile) encode() []byte {
	count := m.stored.Count()
	words := bitmapWords(m.size)
	out := make([]byte, 0, mapHeaderSize+16*words+4*int64(count)+mapSumSize)
	out = append(out, mapMagic...)
	out = binary.LittleEndian.AppendUint32(out, mapVersion)
	out = binary.LittleEndian.AppendUint32(out, uint32(m.kind))
	out = append(out, m.id[:]...)
	out = binary.LittleEndian.AppendUint64(out, uint64(m.size))
	out = binary.LittleEndian.AppendUint32(out, BlockSize)
	out = binary.LittleEndian.AppendUint32(out, 0)
	out = binary.LittleEndian.AppendUint64(out, uint64(count))
	out = binary.LittleEndian.AppendUint64(out, uint64(m.zero.Count()))
	for _, bitmap := range []*bitset.BitSet{m.stored, m.zero} {
		for _, w := range bitmap.Words() {
			out = binary.LittleEndian.AppendUint64(out, w)
		}
	}
	for b := range m.stored.EachSet() {
		out = binary.LittleEndian.AppendUint32(out, m.sums[b])
	}
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// bitmapWords is the number of 64-bit words of a bitmap with one bit for each block.
func bitmapWords(size int64) int64 { return (blocksOf(size) + 63) / 64 }

// save writes the map under a temporary name and renames it, so that a map that exists is whole.
func (m *mapFile) save(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".map-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write slice map: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.Write(m.encode())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write slice map: %w", err)
	}
	return nil
}

// loadMap reads and checks a map file. What it allocates is bounded by the length of the file, a checked header, and
// a factor of 16 for the sparse table of checksums.
func loadMap(path string) (*mapFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var header [mapHeaderSize]byte
	n, err := io.ReadFull(f, header[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("read slice map: %w", err)
	}
	_, length, problem := parseHeader(header[:n])
	if problem != nil {
		problem.Path = path
		return nil, problem
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < length {
		return nil, &FileError{path, ErrTruncated, fmt.Sprintf("%d bytes of %d", st.Size(), length)}
	}
	data := make([]byte, min(st.Size(), length+1))
	copy(data, header[:])
	if _, err := io.ReadFull(f, data[mapHeaderSize:]); err != nil {
		return nil, fmt.Errorf("read slice map: %w", err)
	}
	m, problem := parseMap(data)
	if problem != nil {
		problem.Path = path
		return nil, problem
	}
	return m, nil
}

// parseHeader checks the header and says how long the whole file has to be.
func parseHeader(data []byte) (m *mapFile, length int64, problem *FileError) {
	if n := min(len(data), len(mapMagic)); !bytes.Equal(data[:n], []byte(mapMagic)[:n]) {
		return nil, 0, &FileError{Kind: ErrForeign, Detail: "its first bytes are not a slice map's"}
	}
	if len(data) < mapHeaderSize {
		return nil, 0, &FileError{Kind: ErrTruncated, Detail: fmt.Sprintf("%d bytes of a header of %d", len(data), mapHeaderSize)}
	}
	corrupt := func(format string, args ...any) (*mapFile, int64, *FileError) {
		return nil, 0, &FileError{Kind: ErrCorrupt, Detail: fmt.Sprintf(format, args...)}
	}
	le := binary.LittleEndian
	switch v := le.Uint32(data[8:]); {
	case v > mapVersion:
		return nil, 0, &FileError{Kind: ErrNewer, Detail: fmt.Sprintf("format %d, this program knows %d", v, mapVersion)}
	case v < 1:
		return corrupt("format %d", v)
	}
	m = &mapFile{kind: Kind(le.Uint32(data[12:])), id: ID(data[16:32])}
	if m.kind != Memory && m.kind != Disk {
		return corrupt("unknown %v", m.kind)
	}
	size := le.Uint64(data[32:])
	if size == 0 || size > MaxImageSize {
		return corrupt("image size of %d bytes", size)
	}
	m.size = int64(size)
	if bs, pad := le.Uint32(data[40:]), le.Uint32(data[44:]); bs != BlockSize || pad != 0 {
		return corrupt("block size %d, padding %d", bs, pad)
	}
	count, zero := le.Uint64(data[48:]), le.Uint64(data[56:])
	if n := uint64(blocksOf(m.size)); count > n || zero > n-count {
		return corrupt("%d stored and %d zero blocks of %d", count, zero, n)
	}
	return m, mapHeaderSize + 16*bitmapWords(m.size) + 4*int64(count) + mapSumSize, nil
}

// parseMap reads a whole map file.
func parseMap(data []byte) (*mapFile, *FileError) {
	m, length, problem := parseHeader(data)
	if problem != nil {
		return nil, problem
	}
	corrupt := func(detail string) (*mapFile, *FileError) {
		return nil, &FileError{Kind: ErrCorrupt, Detail: detail}
	}
	switch n := int64(len(data)); {
	case n < length:
		return nil, &FileError{Kind: ErrTruncated, Detail: fmt.Sprintf("%d bytes of %d", n, length)}
	case n > length:
		return corrupt(fmt.Sprintf("it goes on after its end at %d", length))
	}
	le := binary.LittleEndian
	body := data[:length-mapSumSize]
	if got, want := crc32.Checksum(body, castagnoli), le.Uint32(data[length-mapSumSize:]); got != want {
		return corrupt(fmt.Sprintf("checksum %08x instead of %08x", got, want))
	}
	blocks := blocksOf(m.size)
	rest := body[mapHeaderSize:]
	bitmap := func() *bitset.BitSet {
		words := make([]uint64, bitmapWords(m.size))
		for i := range words {
			words[i], rest = le.Uint64(rest), rest[8:]
		}
		return bitset.FromWithLength(uint(blocks), words)
	}
	m.stored, m.zero = bitmap(), bitmap()
	if count, zero := le.Uint64(data[48:]), le.Uint64(data[56:]); uint64(m.stored.Count()) != count || uint64(m.zero.Count()) != zero {
		return corrupt("the counts and the bitmaps differ")
	}
	for _, bits := range []*bitset.BitSet{m.stored, m.zero} {
		if last, ok := bits.PreviousSet(uint(bitmapWords(m.size)*64 - 1)); ok && int64(last) >= blocks {
			return corrupt("a bit is set beyond the image")
		}
	}
	if m.stored.IntersectionCardinality(m.zero) != 0 {
		return corrupt("a block is both stored and zero")
	}
	m.sums = make([]uint32, blocks)
	for b := range m.stored.EachSet() {
		m.sums[b], rest = le.Uint32(rest), rest[4:]
	}
	return m, nil
}
