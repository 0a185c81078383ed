package rig

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// Offsets in a 64-bit ELF file (elf(5)).
const (
	sectionsAt     = 0x28 // where the list of sections is
	sectionEntry   = 0x3a // their size, number, and which has their names
	segmentsAt     = 0x20 // where the list of segments is
	segmentEntry   = 0x36 // their size
	segmentSize    = 56
	segmentContent = 32 // how much of it is in the file
)

// trim takes zeros from the ends of a kernel's segments: who loads it makes those itself, and else copies them, as a Xen that
// has to move what it was given does byte by byte. Of a Debian 12's kernel they are a third. The sections go too, which nobody who
// loads it looks at.
func trim(kernel []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return nil, fmt.Errorf("trim the kernel: %w", err)
	}
	le := binary.LittleEndian
	if size := le.Uint16(kernel[segmentEntry:]); f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB || len(f.Progs) == 0 || size != segmentSize {
		return nil, fmt.Errorf("trim the kernel: it is of %v and %v, with %d segments of %d bytes", f.Class, f.Data, len(f.Progs), size)
	}
	kernel = bytes.Clone(kernel)
	first := le.Uint64(kernel[segmentsAt:])
	end := first + uint64(len(f.Progs))*segmentSize
	for i, p := range f.Progs {
		content := p.Filesz
		if p.Off > uint64(len(kernel)) || content > uint64(len(kernel))-p.Off {
			return nil, fmt.Errorf("trim the kernel: segment %d is said to be at %d of %d bytes, and to have %d", i, p.Off, len(kernel), content)
		}
		if p.Type == elf.PT_LOAD {
			content = uint64(len(bytes.TrimRight(kernel[p.Off:p.Off+content], "\x00")))
			le.PutUint64(kernel[first+uint64(i)*segmentSize+segmentContent:], content)
		}
		end = max(end, p.Off+content)
	}
	clear(kernel[sectionsAt : sectionsAt+8])
	clear(kernel[sectionEntry : sectionEntry+6])
	return kernel[:end], nil
}
