package mcdist

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// TestFarSlices has what this package is for: a slice of one host that is read on others, through images.
func TestFarSlices(t *testing.T) {
	inEachMode(t, 4, func(t *testing.T, c *cluster) {
		const blocks = 3000
		m := newMemory(blocks)
		own, err := slice.Create(filepath.Join(t.TempDir(), "own"), blocks*slice.BlockSize, slice.Memory)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { own.Close() })
		image, err := slice.NewImage(own)
		if err != nil {
			t.Fatal(err)
		}
		var stored []int64
		for b := int64(0); b < blocks; b++ {
			if b%10 < 7 { // the others are absent
				if _, err := image.WriteAt(m.data[b*slice.BlockSize:][:slice.BlockSize], b*slice.BlockSize); err != nil {
					t.Fatal(err)
				}
				stored = append(stored, b)
			} else {
				clear(m.data[b*slice.BlockSize:][:slice.BlockSize])
			}
		}
		own.Freeze()
		if err := c.nodes[0].Serve(own.ID(), own); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, n := range c.nodes[1:] {
			var f *Fetch
			far, err := slice.Far(filepath.Join(t.TempDir(), "far"), own.Map(), func(ctx context.Context, first, n int64) error {
				return f.Bring(ctx, first, n)
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { far.Close() })
			if f, err = n.Open(0, own.ID(), own.Size(), far); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(f.Close)
			far.SetPrefetch(f.Prefetch)
			image, err := slice.NewImage(far)
			if err != nil {
				t.Fatal(err)
			}
			for part := range int64(10) {
				wg.Go(func() {
					p := make([]byte, blocks/10*slice.BlockSize)
					if _, err := image.ReadAt(p, part*int64(len(p))); err != nil {
						t.Error(err)
					} else if !slices.Equal(p, m.data[part*int64(len(p)):][:len(p)]) {
						t.Errorf("part %d reads as something else", part)
					}
				})
			}
			wg.Go(func() {
				if _, err := image.Prefetch(within(t), blocksOf(span{0, blocks})); err != nil {
					t.Error(err)
				}
				if n := far.Awaited(); n != 0 {
					t.Errorf("%d blocks have not come", n)
				}
			})
		}
		if err := c.nodes[0].Push(own.ID(), []int{1, 2, 3}, stored); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}
