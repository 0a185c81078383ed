package slice

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
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
						if _, err := im.ReadStat(buf, i*size%im.Size()); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
