package descriptor

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/bits-and-blooms/bitset"
	"github.com/klauspost/compress/zstd"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Write writes the descriptor to w, in many small writes: buffer what is slow.
func Write(w io.Writer, d *Descriptor) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("write descriptor: %w", err)
	}
	meta := *d
	meta.Format = metadataFormat
	metadata, err := json.Marshal(&meta)
	if err != nil {
		return fmt.Errorf("write descriptor: %w", err)
	}
	zeroPages, err := packBitmap(d.ZeroPages)
	if err != nil {
		return fmt.Errorf("write descriptor: %w", err)
	}
	type section struct {
		kind    uint32
		content []byte
	}
	sections := []section{{sectionMetadata, metadata}, {sectionZeroPages, zeroPages}, {sectionDeviceState, d.DeviceState}}
	for _, m := range d.Maps {
		content, err := m.MarshalBinary()
		if err != nil {
			return fmt.Errorf("write descriptor: %w", err)
		}
		sections = append(sections, section{sectionMap, content})
	}
	if len(d.WorkingSet) > 0 {
		sections = append(sections, section{sectionWorkingSet, d.WorkingSet})
	}
	s, err := newSectionWriter(w)
	for _, sec := range sections {
		if uint64(len(sec.content)) > limits[sec.kind] {
			return fmt.Errorf("write descriptor: section of type %d has %d bytes, more than %d", sec.kind, len(sec.content), limits[sec.kind])
		}
		if err == nil {
			err = s.section(sec.kind, sec.content)
		}
	}
	if err == nil {
		err = s.end()
	}
	if err != nil {
		return fmt.Errorf("write descriptor: %w", err)
	}
	return nil
}

// Read reads one descriptor from r, up to its trailer and no further. Its errors are ErrTruncated, ErrForeign, ErrNewer,
// ErrCorrupt, or r's own.
func Read(r io.Reader) (*Descriptor, error) {
	s, err := newSectionReader(r)
	if err != nil {
		return nil, err
	}
	var d *Descriptor
	seen := make(map[uint32]bool)
	for {
		kind, content, err := s.next()
		if err != nil {
			return nil, err
		}
		if kind != sectionEnd && (seen[kind] && kind != sectionMap || seen[sectionMetadata] == (kind == sectionMetadata)) {
			return nil, corrupt("section %d of type %d comes twice or before the metadata", s.count, kind)
		}
		seen[kind] = true
		switch kind {
		case sectionMetadata:
			d, err = parseMetadata(content)
		case sectionZeroPages:
			d.ZeroPages, err = unpackBitmap(content, d.Memory/PageSize)
		case sectionDeviceState:
			d.DeviceState = content
		case sectionMap:
			var m slice.Map
			if err := m.UnmarshalBinary(content); err != nil {
				return nil, corrupt("map %d: %v", len(d.Maps), err)
			}
			d.Maps = append(d.Maps, m)
		case sectionWorkingSet:
			d.WorkingSet = content
		case sectionEnd:
			if !seen[sectionMetadata] || !seen[sectionZeroPages] || !seen[sectionDeviceState] {
				return nil, corrupt("one of its sections is missing")
			}
			if err := d.Validate(); err != nil {
				return nil, corrupt("%v", err)
			}
			return d, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func parseMetadata(content []byte) (*Descriptor, error) {
	// The version first, alone: the rest may have changed its form.
	var v struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(content, &v); err != nil {
		return nil, corrupt("its metadata cannot be parsed: %v", err)
	}
	if v.Format > metadataFormat {
		return nil, &FormatError{Kind: ErrNewer, Detail: fmt.Sprintf("metadata format %d, this program knows %d", v.Format, metadataFormat)}
	}
	d := new(Descriptor)
	if err := json.Unmarshal(content, d); err != nil {
		return nil, corrupt("its metadata cannot be parsed: %v", err)
	}
	// Before the bitmap is unpacked to a size that follows from it.
	if d.Memory <= 0 || d.Memory > MaxMemory || d.Format < 1 {
		return nil, corrupt("metadata format %d, %d bytes of memory", d.Format, d.Memory)
	}
	return d, nil
}

func packBitmap(bits *bitset.BitSet) ([]byte, error) {
	raw := make([]byte, 0, 8*len(bits.Words()))
	for _, w := range bits.Words() {
		raw = binary.LittleEndian.AppendUint64(raw, w)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("pack zero pages: %w", err)
	}
	defer enc.Close()
	return enc.EncodeAll(raw, nil), nil
}

func unpackBitmap(content []byte, pages int64) (*bitset.BitSet, error) {
	size := int((pages + 63) / 64 * 8)
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(max(size, 1<<10))))
	if err != nil {
		return nil, fmt.Errorf("unpack zero pages: %w", err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(content, nil)
	if err != nil || len(raw) != size {
		return nil, corrupt("its zero-page bitmap unpacks to %d bytes instead of %d (%v)", len(raw), size, err)
	}
	words := make([]uint64, size/8)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(raw[8*i:])
	}
	if beyond := pages % 64; beyond != 0 && words[len(words)-1]>>beyond != 0 {
		return nil, corrupt("its zero-page bitmap has bits beyond the memory")
	}
	return bitset.FromWithLength(uint(pages), words), nil
}

// Save writes the descriptor to a file of mode 0600, under a temporary name first, so that a file that exists is whole.
// Device state holds registers and buffers of the guest: it is as secret as its memory.
func (d *Descriptor) Save(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".descriptor-*") // mode 0600
	if err != nil {
		return fmt.Errorf("save descriptor: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	buf := bufio.NewWriter(f)
	err = Write(buf, d)
	if err == nil {
		err = buf.Flush()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("save descriptor: %w", err)
	}
	return nil
}

// Load reads a file that Save wrote.
func Load(path string) (*Descriptor, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load descriptor: %w", err)
	}
	defer f.Close()
	buf := bufio.NewReader(f)
	d, err := Read(buf)
	if err == nil {
		if _, more := buf.ReadByte(); more == nil {
			err = corrupt("it goes on after its trailer")
		}
	}
	var problem *FormatError
	if errors.As(err, &problem) {
		problem.Path = path
	}
	if err != nil {
		return nil, fmt.Errorf("load descriptor: %w", err)
	}
	return d, nil
}
