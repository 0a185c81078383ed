package memtap

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Counters says what one file has done since it was added. Reads that the kernel's page cache answered are not in it:
// they are what co-located clones save each other.
type Counters struct {
	Reads         int64 // requests of the kernel
	BytesServed   int64 // answered to them, zeros included
	BytesFetched  int64 // read from frozen slices for requests, in whole blocks
	FarReads      int64 // requests that waited for another host, of Reads and Writes
	BytesFar      int64 // brought from there for them, in whole blocks; of a memory file, a part of BytesFetched
	BytesAhead    int64 // brought from another host for Push, before anybody waited for them, in whole blocks
	BytesPushed   int64 // read from frozen slices by Push; with BytesFetched, what a remote host would have to send
	ZeroBlocks    int64 // answered here, without a slice
	LocalBlocks   int64 // read from a disk's own slice
	Writes        int64 // requests to a disk
	BytesWritten  int64
	RefusedWrites int64 // to a memory file: each is a mistake, since its mappings are private
	Punches       int64 // holes: ignored for memory, trims of a disk
	Waits         int64 // requests that came before the image was delivered
	Errors        int64 // requests that failed; the first is in Tap.Err
	Latency       Histogram
}

// latencyBuckets covers 2^25 µs, half a minute.
const latencyBuckets = 26

// Histogram counts the times from a READ's arrival at memtap to its answer, waits for the image included. Bucket i counts those under 2^i µs that no
// earlier bucket counts; the last has no upper limit.
type Histogram [latencyBuckets]int64

func bucket(d time.Duration) int {
	return min(bits.Len64(uint64(max(0, d.Microseconds()))), latencyBuckets-1)
}

// Count returns the number of times.
func (h *Histogram) Count() (n int64) {
	for _, c := range h {
		n += c
	}
	return n
}

// Percentile returns an upper bound, a power of two of microseconds, of the p-th percentile, and 0 for no times at all.
func (h *Histogram) Percentile(p float64) time.Duration {
	total := h.Count()
	if total == 0 {
		return 0
	}
	var seen int64
	for i, c := range h {
		seen += c
		if float64(seen) >= p/100*float64(total) && seen > 0 {
			return time.Duration(1<<i) * time.Microsecond
		}
	}
	return time.Duration(1<<(latencyBuckets-1)) * time.Microsecond
}

// counters is Counters while they change.
type counters struct {
	reads, served, fetched, zero, local atomic.Int64
	writes, written, refused            atomic.Int64
	punches, waits, errors, pushed      atomic.Int64
	farReads, far, prefetched           atomic.Int64
	latency                             [latencyBuckets]atomic.Int64
}

// blocks adds where the blocks of a read, or of the part of a block that a write needed, came from.
func (c *counters) blocks(stat slice.Stat) {
	add(&c.fetched, stat.Fetched*slice.BlockSize)
	add(&c.zero, stat.Zero)
	add(&c.local, stat.Local)
	if stat.Far > 0 {
		c.farReads.Add(1)
		add(&c.far, stat.Far*slice.BlockSize)
	}
}

// add spares the other processors a write to a line that they share, where there is nothing to add.
func add(c *atomic.Int64, n int) {
	if n != 0 {
		c.Add(int64(n))
	}
}

func (c *counters) snapshot() Counters {
	s := Counters{
		Reads: c.reads.Load(), BytesServed: c.served.Load(), BytesFetched: c.fetched.Load(), BytesPushed: c.pushed.Load(),
		FarReads: c.farReads.Load(), BytesFar: c.far.Load(), BytesAhead: c.prefetched.Load(),
		ZeroBlocks: c.zero.Load(), LocalBlocks: c.local.Load(),
		Writes: c.writes.Load(), BytesWritten: c.written.Load(), RefusedWrites: c.refused.Load(),
		Punches: c.punches.Load(), Waits: c.waits.Load(), Errors: c.errors.Load(),
	}
	for i := range c.latency {
		s.Latency[i] = c.latency[i].Load()
	}
	return s
}

// Add adds what another file has done.
func (c *Counters) Add(other Counters) {
	c.Reads += other.Reads
	c.BytesServed += other.BytesServed
	c.BytesFetched += other.BytesFetched
	c.FarReads += other.FarReads
	c.BytesFar += other.BytesFar
	c.BytesAhead += other.BytesAhead
	c.BytesPushed += other.BytesPushed
	c.ZeroBlocks += other.ZeroBlocks
	c.LocalBlocks += other.LocalBlocks
	c.Writes += other.Writes
	c.BytesWritten += other.BytesWritten
	c.RefusedWrites += other.RefusedWrites
	c.Punches += other.Punches
	c.Waits += other.Waits
	c.Errors += other.Errors
	for i, n := range other.Latency {
		c.Latency[i] += n
	}
}
