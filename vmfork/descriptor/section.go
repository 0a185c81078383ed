package descriptor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
)

const (
	magic      = "SFDESCR\n"
	version    = 1
	headerSize = 16 // of the file, of each section, and of the trailer
)

// Section types. The highest bit marks those that a reader may skip.
const (
	sectionEnd         uint32 = 0
	sectionMetadata    uint32 = 1
	sectionZeroPages   uint32 = 2
	sectionDeviceState uint32 = 3
	sectionMap         uint32 = 4 // one for each slice
	sectionWorkingSet  uint32 = 5 | optional
	optional           uint32 = 1 << 31
)

// limits of the sections' lengths, in bytes: far above what any VM needs, and low enough to hold.
var limits = map[uint32]uint64{
	sectionMetadata:    1 << 20,
	sectionZeroPages:   MaxMemory/PageSize/8 + 1<<20, // compressed, yet it may be incompressible
	sectionDeviceState: 256 << 20,
	sectionMap:         MaxMemory/PageSize/4 + 1<<20, // two bitmaps, compressed
	sectionWorkingSet:  16 << 20,
}

const (
	optionalLimit = 1 << 30 // skipped, so it costs time but no memory
	sectionsLimit = 1 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sectionWriter writes the envelope.
type sectionWriter struct {
	w     io.Writer
	sum   hash.Hash32 // of everything written
	count uint64
}

func newSectionWriter(w io.Writer) (*sectionWriter, error) {
	s := &sectionWriter{sum: crc32.New(castagnoli)}
	s.w = io.MultiWriter(w, s.sum)
	header := binary.LittleEndian.AppendUint32([]byte(magic), version)
	_, err := s.w.Write(binary.LittleEndian.AppendUint32(header, 0))
	return s, err
}

func (s *sectionWriter) section(kind uint32, content []byte) error {
	s.count++
	if _, err := s.w.Write(sectionHeader(kind, sectionSum(kind, content), uint64(len(content)))); err != nil {
		return err
	}
	_, err := s.w.Write(content)
	return err
}

func (s *sectionWriter) end() error {
	_, err := s.w.Write(sectionHeader(sectionEnd, s.sum.Sum32(), s.count))
	return err
}

func sectionHeader(kind, sum uint32, length uint64) []byte {
	h := binary.LittleEndian.AppendUint32(make([]byte, 0, headerSize), kind)
	h = binary.LittleEndian.AppendUint32(h, sum)
	return binary.LittleEndian.AppendUint64(h, length)
}

// sectionSum covers type and length, so that a damaged header is not taken for a section of another type.
func sectionSum(kind uint32, content []byte) uint32 {
	sum := crc32.Checksum(sectionHeader(kind, 0, uint64(len(content))), castagnoli)
	return crc32.Update(sum, castagnoli, content)
}

// sectionReader reads the envelope.
type sectionReader struct {
	r     io.Reader
	sum   hash.Hash32
	count uint64
}

func newSectionReader(r io.Reader) (*sectionReader, error) {
	s := &sectionReader{sum: crc32.New(castagnoli)}
	s.r = io.TeeReader(r, s.sum)
	var h [headerSize]byte
	n, err := io.ReadFull(s.r, h[:])
	if m := min(n, len(magic)); string(h[:m]) != magic[:m] {
		return nil, &FormatError{Kind: ErrForeign, Detail: "its first bytes are not a descriptor's"}
	}
	if err != nil {
		return nil, s.short(err, "in its header")
	}
	switch v := binary.LittleEndian.Uint32(h[8:]); {
	case v > version:
		return nil, &FormatError{Kind: ErrNewer, Detail: fmt.Sprintf("format %d, this program knows %d", v, version)}
	case v < 1:
		return nil, corrupt("format %d", v)
	}
	if binary.LittleEndian.Uint32(h[12:]) != 0 {
		return nil, corrupt("its header is not padded with zeros")
	}
	return s, nil
}

// next returns the next section that this version knows, or sectionEnd. The content's checksum has been verified.
func (s *sectionReader) next() (kind uint32, content []byte, err error) {
	for {
		before := s.sum.Sum32()
		var h [headerSize]byte
		if _, err := io.ReadFull(s.r, h[:]); err != nil {
			return 0, nil, s.short(err, fmt.Sprintf("after section %d", s.count))
		}
		kind = binary.LittleEndian.Uint32(h[:])
		sum, length := binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint64(h[8:])
		if kind == sectionEnd {
			if sum != before || length != s.count {
				return 0, nil, corrupt("its trailer has checksum %08x for %d sections, and it is %08x for %d", sum, length, before, s.count)
			}
			return kind, nil, nil
		}
		if s.count++; s.count > sectionsLimit {
			return 0, nil, corrupt("it has more than %d sections", sectionsLimit)
		}
		limit, known := limits[kind]
		if !known {
			limit = optionalLimit
		}
		if length > limit {
			return 0, nil, corrupt("section %d of type %#x has %d bytes, more than %d", s.count, kind, length, limit)
		}
		got := crc32.New(castagnoli)
		got.Write(sectionHeader(kind, 0, length))
		var buf bytes.Buffer // grows with what comes, whatever length says
		into := io.Writer(got)
		if known {
			into = io.MultiWriter(got, &buf)
		}
		if _, err := io.CopyN(into, s.r, int64(length)); err != nil {
			return 0, nil, s.short(err, fmt.Sprintf("in section %d", s.count))
		}
		switch {
		case got.Sum32() != sum:
			return 0, nil, corrupt("section %d of type %#x has checksum %08x instead of %08x", s.count, kind, got.Sum32(), sum)
		case known:
			return kind, buf.Bytes(), nil
		case kind&optional == 0:
			return 0, nil, &FormatError{Kind: ErrNewer, Detail: fmt.Sprintf("section %d has type %#x, which this program does not know", s.count, kind)}
		}
	}
}

// short turns the end of the input into ErrTruncated, and leaves other errors of the reader alone.
func (s *sectionReader) short(err error, where string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &FormatError{Kind: ErrTruncated, Detail: "it ends " + where}
	}
	return fmt.Errorf("read descriptor: %w", err)
}
