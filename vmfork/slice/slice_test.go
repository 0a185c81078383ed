package slice

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// raw writes a file of the given blocks: 0 is a hole, 'z' zeros that were written, anything else a block of that byte.
// extra bytes of 'e' follow the last block.
func raw(t testing.TB, pattern string, extra int) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "raw")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content = make([]byte, len(pattern)*BlockSize+extra)
	for i, c := range []byte(pattern) {
		block := content[i*BlockSize : (i+1)*BlockSize]
		if c != 'z' && c != '0' {
			copy(block, bytes.Repeat([]byte{c}, BlockSize))
		}
		if c != '0' {
			if _, err := f.WriteAt(block, int64(i)*BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	tail := content[len(pattern)*BlockSize:]
	copy(tail, bytes.Repeat([]byte("e"), extra))
	if _, err := f.WriteAt(tail, int64(len(pattern))*BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func sealed(t testing.TB, kind Kind, pattern string, extra int) (*Slice, []byte) {
	t.Helper()
	path, content := raw(t, pattern, extra)
	s, _, err := Seal(context.Background(), path, path+".map", kind, SealOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, content
}

func image(t testing.TB, layers ...*Slice) *Image {
	t.Helper()
	im, err := NewImage(layers...)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestSealKeepsContentAndMakesZerosHoles(t *testing.T) {
	for _, c := range []struct {
		name, pattern string
		extra         int
		want          SealStats
	}{
		{"one block", "a", 0, SealStats{Stored: 1}},
		{"all hole", "0000", 0, SealStats{Holes: 4}},
		{"all zeros", "zzzz", 0, SealStats{Zero: 4}},
		{"mixed", "az0bzz0c", 0, SealStats{Stored: 3, Zero: 3, Holes: 2}},
		{"ends inside a block", "a0", 100, SealStats{Stored: 2, Holes: 1}},
		{"many chunks", strings.Repeat("a"+strings.Repeat("0", 300)+"zb", 20), 7, SealStats{Stored: 41, Zero: 20, Holes: 6000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, content := raw(t, c.pattern, c.extra)
			s, stats, err := Seal(context.Background(), path, path+".map", Memory, SealOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if stats != c.want {
				t.Errorf("stats %+v, want %+v", stats, c.want)
			}
			got := make([]byte, len(content))
			stat, err := image(t, s).ReadStat(t.Context(), got, 0)
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("content differs after sealing (%v)", err)
			}
			if want := (Stat{Fetched: int(stats.Stored), Zero: int(stats.Zero + stats.Holes)}); stat != want {
				t.Errorf("read %+v, want %+v", stat, want)
			}
			for i, p := range c.pattern {
				if s.Present(int64(i)) == (p == '0' || p == 'z') {
					t.Errorf("block %d (%c): present %v", i, p, s.Present(int64(i)))
				}
			}
			if err := s.Verify(context.Background()); err != nil {
				t.Error(err)
			}
			info, _ := os.Stat(s.Path() + ".map")
			if info.Mode().Perm() != 0o600 {
				t.Errorf("map has mode %v", info.Mode())
			}
		})
	}
}

func TestSealRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, dir, filepath.Join(dir, "none")} {
		if _, _, err := Seal(context.Background(), path, path+".map", Disk, SealOptions{}); err == nil {
			t.Errorf("%s was sealed", path)
		}
	}
	path, _ := raw(t, "ab", 0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := Seal(ctx, path, path+".map", Disk, SealOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(path + ".map"); err == nil {
		t.Error("a cancelled Seal left a map")
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	s, _ := sealed(t, Disk, "a0bz", 0)
	good, err := os.ReadFile(s.Path() + ".map")
	if err != nil {
		t.Fatal(err)
	}
	resum := func(b []byte) []byte {
		body := b[:len(b)-mapSumSize]
		return binary.LittleEndian.AppendUint32(body, crc32.Checksum(body, castagnoli))
	}
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return resum(b)
	}
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"empty", nil, ErrTruncated},
		{"text", []byte("#!/bin/sh\necho this is something else altogether, and longer than a header is\n"), ErrForeign},
		{"version 2", change(8, 2), ErrNewer},
		{"version 0", change(8, 0), ErrCorrupt},
		{"kind", change(12, 9), ErrCorrupt},
		{"no size", change(32, 0, 0), ErrCorrupt},
		{"absurd size", change(32, 0, 0, 0, 0, 0, 0, 0, 0x80), ErrCorrupt},
		{"large size, short file", change(32, 0, 0, 0, 0, 0, 1), ErrTruncated},
		{"block size", change(40, 0, 2), ErrCorrupt},
		{"padding", change(44, 1), ErrCorrupt},
		{"counts", change(56, 1), ErrCorrupt},
		{"more blocks than there are", change(48, 200), ErrCorrupt},
		{"bit beyond the image", change(64, 0b10000001), ErrCorrupt},
		{"stored and zero", func() []byte { b := change(56, 1); b[72] = 1; return resum(b) }(), ErrCorrupt},
		{"longer", append(bytes.Clone(good), 0), ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.map")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(s.Path(), path)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want one that %v", err, c.want)
			}
		})
	}
	for n := range good {
		if _, problem := parseMap(good[:n]); problem == nil || problem.Kind != ErrTruncated {
			t.Fatalf("cut to %d bytes: %v", n, problem)
		}
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		if _, problem := parseMap(b); problem == nil {
			t.Fatalf("bit of byte %d flipped unseen", i)
		}
	}
	if err := os.Truncate(s.Path(), BlockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Path(), s.Path()+".map"); !errors.Is(err, ErrTruncated) {
		t.Errorf("short data file: %v", err)
	}
	if _, err := image(t, s).ReadAt(make([]byte, BlockSize), 2*BlockSize); !errors.Is(err, ErrTruncated) {
		t.Errorf("data file cut while open: %v", err)
	}
	if err := os.Truncate(s.Path(), 9*BlockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Path(), s.Path()+".map"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("long data file: %v", err)
	}
}

func TestDamagedBlockIsRefusedAndOthersServed(t *testing.T) {
	s, content := sealed(t, Memory, "abc", 0)
	f, err := os.OpenFile(s.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{'x'}, BlockSize+77); err != nil {
		t.Fatal(err)
	}
	f.Close()
	im := image(t, s)
	got := make([]byte, BlockSize)
	for b := range int64(3) {
		_, err := im.ReadAt(got, b*BlockSize)
		var damaged *BlockError
		switch {
		case b == 1:
			if !errors.Is(err, ErrCorrupt) || !errors.As(err, &damaged) || damaged.Block != 1 {
				t.Errorf("damaged block: %v", err)
			}
		case err != nil || !bytes.Equal(got, content[b*BlockSize:(b+1)*BlockSize]):
			t.Errorf("block %d: %v", b, err)
		}
	}
	if _, err := im.ReadAt(got[:10], BlockSize+500); !errors.Is(err, ErrCorrupt) {
		t.Errorf("part of the damaged block: %v", err)
	}
	if err := s.Verify(context.Background()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("verify: %v", err)
	}
}

func TestReadBlocks(t *testing.T) {
	s, content := sealed(t, Disk, "ab0c", 5)
	got := make([]byte, 2*BlockSize)
	if err := s.ReadBlocks(got, 0); err != nil || !bytes.Equal(got, content[:2*BlockSize]) {
		t.Errorf("blocks 0 and 1: %v", err)
	}
	if err := s.ReadBlocks(got, 1); !errors.Is(err, ErrAbsent) {
		t.Errorf("an absent block: %v", err)
	}
	if err := s.ReadBlocks(got, 3); err != nil || !bytes.Equal(got[:BlockSize+5], content[3*BlockSize:]) {
		t.Errorf("the last blocks: %v", err)
	}
	for _, bad := range []error{s.ReadBlocks(got, 4), s.ReadBlocks(got, -1), s.ReadBlocks(got[:5], 0)} {
		if bad == nil {
			t.Error("a range outside the image was read")
		}
	}
}

func FuzzMap(f *testing.F) {
	for _, pattern := range []string{"a", "a0bz", strings.Repeat("a0", 100)} {
		s, _ := sealed(f, Memory, pattern, 3)
		good, err := os.ReadFile(s.Path() + ".map")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(good)
		f.Add(good[:mapHeaderSize])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, problem := parseMap(data)
		if problem != nil {
			if problem.Kind == nil || problem.Detail == "" {
				t.Fatalf("an error that says nothing: %+v", problem)
			}
			return
		}
		if !bytes.Equal(m.encode(), data) {
			t.Fatal("a map that was accepted is written differently")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	path := filepath.Join(b.TempDir(), "ram")
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(rand.Uint32())
	}
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	const size = 512 << 20 // a third of it data, as of a guest that has just booted
	for off := int64(0); off < size; off += 3 << 20 {
		if _, err := f.WriteAt(chunk, off); err != nil {
			b.Fatal(err)
		}
	}
	f.Truncate(size)
	f.Close()
	for b.Loop() {
		s, _, err := Seal(context.Background(), path, path+".map", Memory, SealOptions{})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
