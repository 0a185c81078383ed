package mcdist

import (
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// nowhere is a sink that keeps nothing.
type nowhere struct{}

func (nowhere) Arrive([]byte, int64) error { return nil }

// BenchmarkBring is a fault: one block, and a window of 8, over TCP on the loopback.
func BenchmarkBring(b *testing.B) {
	for name, n := range map[string]int64{"1": 1, "8": 8} {
		b.Run(name, func(b *testing.B) {
			c := newCluster(b, 2, nil)
			m := newMemory(4096)
			r := &repeated{m, 1 << 28} // more than will be asked for
			f, err := c.nodes[1].Open(0, c.serve(0, r), r.Size(), nowhere{})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(n * slice.BlockSize)
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				if err := f.Bring(b.Context(), i*n, n); err != nil {
					b.Fatal(err)
				}
			}
			report(b, c.nodes[1])
		})
	}
}

// BenchmarkPrefetch is bulk over TCP on the loopback.
func BenchmarkPrefetch(b *testing.B) {
	c := newCluster(b, 2, nil)
	const blocks = 16384
	m := &repeated{newMemory(4096), blocks}
	id := c.serve(0, m)
	b.SetBytes(blocks * slice.BlockSize)
	for b.Loop() {
		f, err := c.nodes[1].Open(0, id, m.Size(), nowhere{})
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Prefetch(b.Context(), blocksFrom(0, blocks)); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
	report(b, c.nodes[1])
}

// BenchmarkPack is the compression of a piece, by the size of it in blocks.
func BenchmarkPack(b *testing.B) {
	m := newMemory(64)
	dst := make([]byte, 0, packSize)
	for name, p := range map[string][]byte{
		"page":         m.data[:slice.BlockSize],
		"random-page":  m.data[4*slice.BlockSize : 5*slice.BlockSize],
		"random-piece": m.data[4*slice.BlockSize : 8*slice.BlockSize],
	} {
		b.Run(name, func(b *testing.B) {
			var k packer
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				k.pack(dst, p)
			}
		})
	}
}

func report(b *testing.B, n *Node) {
	s := n.Counters()
	t := s.Received[ByUnicast]
	b.ReportMetric(s.BlocksPerRoundTrip(), "blocks/trip")
	b.ReportMetric(float64(t.Urgent.Bytes+t.Bulk.Bytes)/float64(t.Total().Blocks), "wire-B/block")
	b.ReportMetric(float64(s.Latency.Percentile(99))/float64(time.Microsecond), "p99-µs")
}

// repeated is a slice of the same blocks over and over.
type repeated struct {
	*memory
	blocks int64
}

func (r *repeated) Size() int64 { return r.blocks * slice.BlockSize }

func (r *repeated) ReadBlocks(dst []byte, first int64) error {
	for i := int64(0); i < int64(len(dst))/slice.BlockSize; i++ {
		off := (first + i) % (r.memory.Size() / slice.BlockSize) * slice.BlockSize
		copy(dst[i*slice.BlockSize:][:slice.BlockSize], r.data[off:])
	}
	return nil
}
