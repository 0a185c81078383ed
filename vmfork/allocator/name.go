package allocator

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
)

// nameDigits are enough to tell programs apart.
const nameDigits = 32

// NameOf names a program of that many bytes by its content, in hexadecimal digits. What
// Go's linker has made says itself what its content is, so that nobody has to read all of it:
// twenty megabytes are more than a small job takes without that.
func NameOf(program io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	if id := buildID(program); id != nil {
		fmt.Fprintf(h, "go %d %s", size, id)
	} else if _, err := io.Copy(h, io.NewSectionReader(program, 0, size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil))[:nameDigits], nil
}

// goNote is the type of the note in which Go's linker writes what it calls a program, and maxNotes
// bounds, in bytes, what is looked through for it.
const (
	goNote   = 4
	maxNotes = 64 << 10
)

// buildID is what Go's linker calls a program, nil for a program of another linker. Of
// its four parts the last is a hash of the content (cmd/go/internal/work/buildid.go).
func buildID(program io.ReaderAt) []byte {
	f, err := elf.NewFile(program)
	if err != nil {
		return nil
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			continue
		}
		if id := noteOf(notes, f.ByteOrder, "Go\x00\x00", goNote); bytes.Count(id, []byte{'/'}) == 3 {
			return id
		}
	}
	return nil
}

// noteOf is the content of a note (elf(5)): three numbers of 32 bits, the length of its name,
// that of its content and its type; then both, each filled up to four bytes.
func noteOf(notes []byte, order binary.ByteOrder, name string, kind uint32) []byte {
	for len(notes) >= 12 {
		n, c, t := order.Uint32(notes), order.Uint32(notes[4:]), order.Uint32(notes[8:])
		at, end := 12+(uint64(n)+3)&^3, uint64(0)
		if end = at + uint64(c); end > uint64(len(notes)) {
			return nil
		}
		if t == kind && uint64(n) == uint64(len(name)) && string(notes[12:12+n]) == name {
			return notes[at:end]
		}
		notes = notes[min((end+3)&^3, uint64(len(notes))):]
	}
	return nil
}
