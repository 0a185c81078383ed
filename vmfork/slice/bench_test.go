package slice

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sys/unix"
)

// BenchmarkDepth reads through stacks of slices. At the "bottom" is all the data, and the slices above are empty; in the
// "mixed" stack every block is in another slice than its neighbours, so that each is a run of its own.
func BenchmarkDepth(b *testing.B) {
	const blocks = 1024
	for _, content := range []string{"bottom", "mixed"} {
		for _, depth := range []int{1, 10, 50} {
			base, _ := sealed(b, Memory, strings.Repeat("a", blocks), 0)
			layers := []*Slice{base}
			for i := 1; i < depth; i++ {
				l := created(b, base.Size(), Memory)
				for block := int64(i); block < blocks && content == "mixed"; block += int64(depth) {
					if err := l.WriteBlocks(bytes.Repeat([]byte("b"), BlockSize), block); err != nil {
						b.Fatal(err)
					}
				}
				if err := l.Seal(b.Context(), filepath.Join(b.TempDir(), "map")); err != nil {
					b.Fatal(err)
				}
				layers = append([]*Slice{l}, layers...)
			}
			im := image(b, layers...)
			for _, size := range []int64{4 << 10, 32 << 10, 128 << 10} {
				b.Run(fmt.Sprintf("%s/layers=%d/size=%d", content, depth, size), func(b *testing.B) {
					buf := make([]byte, size)
					b.ReportAllocs()
					for i := int64(0); b.Loop(); i++ {
						if _, err := im.ReadStat(b.Context(), buf, i*size%im.Size()); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// BenchmarkSettle copies 64 MB of memory, or parts of it.
func BenchmarkSettle(b *testing.B) {
	const blocks = 64 << 20 / BlockSize
	for name, step := range map[string]uint{"all": 1, "every-other": 2, "every-10th": 10} {
		b.Run(name, func(b *testing.B) {
			area, from := ownMemory(b, blocks*BlockSize)
			defer unix.Munmap(area)
			copy(area, bytes.Repeat([]byte("m"), len(area)))
			bits := bitset.New(blocks)
			for i := uint(0); i < blocks; i += step {
				bits.Set(i)
			}
			b.SetBytes(int64(bits.Count()) * BlockSize)
			for i := 0; b.Loop(); i++ {
				path := filepath.Join(b.TempDir(), fmt.Sprint(i))
				s, err := Adopt(path, blocks*BlockSize, Memory, bits, from)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Settle(b.Context()); err != nil {
					b.Fatal(err)
				}
				s.Close()
				os.Remove(path)
			}
		})
	}
}

// BenchmarkLentRead reads blocks where they are lent from, as clones do that fault soon after a fork.
func BenchmarkLentRead(b *testing.B) {
	const blocks = 16 << 20 / BlockSize
	area, from := ownMemory(b, blocks*BlockSize)
	defer unix.Munmap(area)
	copy(area, bytes.Repeat([]byte("m"), len(area)))
	s, err := Adopt(filepath.Join(b.TempDir(), "ram"), blocks*BlockSize, Memory, bitset.New(blocks).FlipRange(0, blocks), from)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	im := image(b, s)
	for _, size := range []int64{4 << 10, 32 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("%d", size), func(b *testing.B) {
			buf := make([]byte, size)
			b.SetBytes(size)
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				if _, err := im.ReadStat(b.Context(), buf, i*size%im.Size()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
