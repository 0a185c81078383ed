package slice

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// BenchmarkFold folds 50 layers, of which each has every 50th block, two by two into one, and reads from before and after.
func BenchmarkFold(b *testing.B) {
	const blocks, depth = 1024, 50
	base, _ := sealed(b, Memory, strings.Repeat("a", blocks), 0)
	layers := []*Slice{base}
	for i := range depth {
		l := created(b, base.Size(), Memory)
		for block := int64(i); block < blocks; block += depth {
			if err := l.WriteBlocks(bytes.Repeat([]byte("b"), BlockSize), block); err != nil {
				b.Fatal(err)
			}
		}
		l.Freeze()
		layers = append([]*Slice{l}, layers...)
	}
	read := func(name string, im *Image) {
		for _, size := range []int64{4 << 10, 32 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("%s/size=%d", name, size), func(b *testing.B) {
				buf := make([]byte, size)
				for i := int64(0); b.Loop(); i++ {
					if _, err := im.ReadStat(b.Context(), buf, i*size%im.Size()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	im := image(b, layers...)
	read("before", im)
	for i := Foldable(im.Layers(), 1); i >= 0; i = Foldable(im.Layers(), 1) {
		layers := im.Layers()
		if err := im.Replace(layers[i], layers[i+1], folded(b, layers[i], layers[i+1])); err != nil {
			b.Fatal(err)
		}
	}
	read(fmt.Sprintf("after-%d-layers", len(im.Layers())), im)
	for _, pattern := range []string{"b", "b0"} {
		upper := layer(b, Memory, strings.Repeat(pattern, 32<<20/BlockSize/len(pattern)), 0)
		lower := layer(b, Memory, strings.Repeat("c", 32<<20/BlockSize), 0)
		b.Run("copy-32MB-of-"+pattern, func(b *testing.B) {
			b.SetBytes(32 << 20)
			for i := 0; b.Loop(); i++ {
				path := filepath.Join(b.TempDir(), fmt.Sprint(i))
				s, err := Fold(b.Context(), path, upper, lower)
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
				os.Remove(path)
			}
		})
	}
}

// BenchmarkFar reads a slice of another host: complete; with all that is read here, but not complete; and with everything
// yet to come, from a host that is infinitely near.
func BenchmarkFar(b *testing.B) {
	const blocks = 4096
	origin, content := sealed(b, Memory, strings.Repeat("a", blocks+1), 0)
	for _, content := range [][]byte{content, content[BlockSize:]} {
		s, _ := far(b, origin)
		if err := s.Arrive(content, s.Blocks()-int64(len(content)/BlockSize)); err != nil {
			b.Fatal(err)
		}
		name := map[int64]string{0: "complete", 1: "all-but-one"}[s.Awaited()]
		im := image(b, s)
		for _, size := range []int64{4 << 10, 32 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("%s/size=%d", name, size), func(b *testing.B) {
				buf := make([]byte, size)
				b.ReportAllocs()
				for i := int64(0); b.Loop(); i++ {
					if _, err := im.ReadStat(b.Context(), buf, BlockSize+i*size%(blocks*BlockSize)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	for _, size := range []int64{4 << 10, 32 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("brought/size=%d", size), func(b *testing.B) {
			buf := make([]byte, size)
			b.ReportAllocs()
			var im *Image
			for i := int64(0); b.Loop(); i++ {
				off := i * size % (blocks * BlockSize)
				if off == 0 {
					b.StopTimer()
					s, e := far(b, origin)
					s.away.Load().bring = func(_ context.Context, first, n int64) error {
						return s.Arrive(content[first*BlockSize:(first+n)*BlockSize], first)
					}
					e.requests()
					im = image(b, s)
					b.StartTimer()
				}
				if _, err := im.ReadStat(b.Context(), buf, off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkArrive takes blocks that come, in order, from one goroutine and from all, and duplicates.
func BenchmarkArrive(b *testing.B) {
	const blocks = 16 << 20 / BlockSize
	origin, content := sealed(b, Memory, strings.Repeat("a", blocks), 0)
	for _, size := range []int64{1, 32, 256} {
		for _, workers := range []int{1, 4} {
			b.Run(fmt.Sprintf("blocks=%d/workers=%d", size, workers), func(b *testing.B) {
				b.SetBytes(blocks * BlockSize)
				for b.Loop() {
					b.StopTimer()
					s, _ := far(b, origin)
					b.StartTimer()
					var wg sync.WaitGroup
					for w := range workers {
						wg.Go(func() {
							for first := int64(w) * size; first < blocks; first += size * int64(workers) {
								if err := s.Arrive(content[first*BlockSize:(first+size)*BlockSize], first); err != nil {
									b.Error(err)
								}
							}
						})
					}
					wg.Wait()
					b.StopTimer()
					s.Close()
					os.Remove(s.Path())
					b.StartTimer()
				}
			})
		}
	}
	s, _ := far(b, origin)
	if err := s.Arrive(content[BlockSize:], 1); err != nil {
		b.Fatal(err)
	}
	b.Run("duplicates", func(b *testing.B) {
		b.SetBytes(32 * BlockSize)
		for b.Loop() {
			if err := s.Arrive(content[:32*BlockSize], 64); err != nil {
				b.Fatal(err)
			}
		}
	})
}
