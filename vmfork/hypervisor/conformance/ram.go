package conformance

import (
	"bytes"
	"errors"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// memoryFor is a RAM file for a clone, for the time of a test.
func (s *suite) memoryFor(t *testing.T, name string) string {
	t.Helper()
	if s.g.Shared {
		return s.memory
	}
	return s.copyMemory(t, name)
}

// emptyMemory makes a RAM file, for the time of the suite.
func (s *suite) emptyMemory(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(s.dir, name+".memory")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(s.g.Shape.Memory); err != nil {
		t.Fatal(err)
	}
	return path
}

// copyMemory makes a sparse copy of the guest's RAM file, for the time of a test.
func (s *suite) copyMemory(t *testing.T, name string) string {
	t.Helper()
	path := s.emptyMemory(t, name)
	t.Cleanup(func() { os.Remove(path) })
	out, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s.content(t, func(block []byte, at int64) {
		if _, err := out.WriteAt(block, at); err != nil {
			t.Fatal(err)
		}
	})
	return path
}

// content passes on what of the guest's RAM file is not zero, in order. Most is
// holes, which it does not look at: the suite runs where processors are slow.
func (s *suite) content(t *testing.T, pass func(block []byte, at int64)) {
	t.Helper()
	in, err := os.Open(s.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		at, err = unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		at -= at % int64(len(block))
		n, err := in.ReadAt(block, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			pass(block[:n], at)
		}
		at += int64(n)
	}
}

// sum tells whether the guest's RAM file changes. No cryptographic one: where processors
// are translated, those of an image took longer than its guest's boot.
func (s *suite) sum(t *testing.T) uint64 {
	t.Helper()
	var h maphash.Hash
	h.SetSeed(s.seed)
	s.content(t, func(block []byte, at int64) {
		maphash.WriteComparable(&h, at)
		h.Write(block)
	})
	return h.Sum64()
}
