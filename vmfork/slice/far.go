package slice

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sync/errgroup"
)

// errAwaited is what a read returns, before it has read anything, that met blocks which have not come. The caller lets go
// of its locks, brings them and reads again. It never leaves the package.
var errAwaited = errors.New("blocks are on another host")

// errComplete ends the context of a far slice that waits for nothing any more.
var errComplete = errors.New("every block has come")

// distance is what a slice has for as long as blocks of it are on another host only.
type distance struct {
	bring    func(ctx context.Context, first, n int64) error
	prefetch atomic.Pointer[func(ctx context.Context, blocks iter.Seq[int64]) error]

	ctx     context.Context // ends when the slice is closed or complete
	end     context.CancelCauseFunc
	arrived chan struct{} // closed when it is complete

	here    []atomic.Uint64 // bitmap of the blocks that have come; a bit follows the data and the checksum
	missing atomic.Int64    // stored blocks that are not in here; changed with mu
	mu      sync.Mutex      // held while blocks that came are written
}

// Far makes a frozen slice whose stored blocks are on another host. Its data file is made as Create makes it, and gets
// blocks by Arrive. A read of some that have not come calls bring, with no lock held, for each run of consecutive ones
// among them, all runs at once; bring returns when they have been given to Arrive, or an error, which the reader gets. It
// is called by many goroutines at once, and perhaps for the same blocks. Its context ends when the reader's does and when
// the slice is closed, and it must return then.
//
// The slice drops bring, and costs what others do, as soon as every block is here.
func Far(dataPath string, m Map, bring func(ctx context.Context, first, n int64) error) (*Slice, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("open slice %v of another host: %w", m.ID, err)
	}
	s, err := create(dataPath, m.Size, m.Kind)
	if err != nil {
		return nil, fmt.Errorf("open slice %v of another host: %w", m.ID, err)
	}
	s.id = m.ID
	s.stored, s.zero = m.fitted(m.Stored), m.fitted(m.Zero)
	s.frozen.Store(true)
	s.remote = true
	if count := int64(s.stored.Count()); count > 0 {
		d := &distance{bring: bring, arrived: make(chan struct{}), here: make([]atomic.Uint64, bitmapWords(s.size))}
		d.missing.Store(count)
		d.ctx, d.end = context.WithCancelCause(context.Background())
		s.away.Store(d)
	}
	return s, nil
}

// SetPrefetch gives a far slice a way to have many blocks brought at once, for which nobody waits yet: in the order of
// blocks, which it may ask for in parts and stop early. Its context is as bring's. Without one, bring is used.
func (s *Slice) SetPrefetch(prefetch func(ctx context.Context, blocks iter.Seq[int64]) error) {
	if d := s.away.Load(); d != nil {
		d.prefetch.Store(&prefetch)
	}
}

// Arrive takes whole blocks that came from another host, from block first on, asked for or not, from any goroutine. The
// image's last block is padded with zeros. Blocks that are here already are dropped. They get their checksums now. When
// it returns nil they can be read. A block that the map does not have as stored is an error, and nothing is taken.
func (s *Slice) Arrive(p []byte, first int64) error {
	n := int64(len(p)) / BlockSize
	fail := func(err error) error {
		return fmt.Errorf("take blocks %d to %d of slice %v from another host: %w", first, first+n-1, s.id, err)
	}
	switch {
	case !s.remote:
		return fail(fmt.Errorf("%s is this host's own", s.path))
	case int64(len(p)) != n*BlockSize || n == 0 || first < 0 || first > s.blocks-n:
		return fail(fmt.Errorf("%d bytes are not whole blocks inside the image of %d blocks", len(p), s.blocks))
	}
	if have, has := s.run(first, n); has != stored || have < n {
		if has != stored {
			have = 0
		}
		return fail(fmt.Errorf("the slice's map has no data for block %d", first+have))
	}
	if over := (first+n)*BlockSize - s.size; over > 0 && !isZero(p[int64(len(p))-over:]) {
		return fail(fmt.Errorf("the image ends inside its last block, and %d bytes follow that are not zeros", over))
	}
	d := s.away.Load()
	if d == nil {
		return nil
	}
	for b := first; b < first+n; {
		end := min((b/64+1)*64, first+n) // one word of the bitmap
		if err := s.arrive(d, p[(b-first)*BlockSize:(end-first)*BlockSize], b); err != nil {
			return fail(err)
		}
		b = end
	}
	return nil
}

// span is the bits of the blocks from first up to end, which are of one word of a bitmap, at least one.
func span(first, end int64) uint64 {
	return ^uint64(0) << uint(first%64) & (^uint64(0) >> uint(63-(end-1)%64))
}

// arrive takes blocks of one word of the bitmap.
func (s *Slice) arrive(d *distance, p []byte, first int64) error {
	word := &d.here[first/64]
	all := span(first, first+int64(len(p))/BlockSize)
	var sums [64]uint32
	fresh := all &^ word.Load()
	if fresh == 0 {
		return nil
	}
	at := func(bit int) []byte { return p[(first/64*64+int64(bit)-first)*BlockSize:][:BlockSize] }
	for rest := fresh; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		sums[bit] = crc32.Checksum(at(bit), castagnoli)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	// Others brought the same blocks meanwhile, perhaps. Nobody comes back from here before they can be read.
	if fresh &^= word.Load(); fresh == 0 {
		return nil
	}
	for rest := fresh; rest != 0; {
		bit := bits.TrailingZeros64(rest)
		run := bits.TrailingZeros64(^(rest >> uint(bit)))
		b := first/64*64 + int64(bit)
		data := p[(b-first)*BlockSize:][:min(int64(run)*BlockSize, s.size-b*BlockSize)]
		if !isZeroBlocks(data) { // the file has a hole there, which is the same
			if _, err := s.file.WriteAt(data, b*BlockSize); err != nil {
				return fmt.Errorf("write block %d to %s: %w", b, s.path, err)
			}
		}
		copy(s.sums[b:b+int64(run)], sums[bit:])
		rest &^= span(b, b+int64(run))
	}
	word.Or(fresh)
	if d.missing.Add(-int64(bits.OnesCount64(fresh))) == 0 {
		s.away.Store(nil)
		close(d.arrived)
		d.end(errComplete)
	}
	return nil
}

func isZeroBlocks(data []byte) bool {
	for ; len(data) > 0; data = data[min(BlockSize, len(data)):] {
		if !isZero(data[:min(BlockSize, len(data))]) {
			return false
		}
	}
	return true
}

// lacks returns the first run of stored blocks among n from block first on that have not come: n is 0 if all have.
func (d *distance) lacks(stored *bitset.BitSet, first, n int64) (from, count int64) {
	end := first + n
	for b := first; b < end; {
		stop := min((b/64+1)*64, end)
		gone := stored.Words()[b/64] &^ d.here[b/64].Load() & span(b, stop)
		if count == 0 {
			if gone == 0 {
				b = stop
				continue
			}
			from = b/64*64 + int64(bits.TrailingZeros64(gone))
			b = from
		}
		run := int64(bits.TrailingZeros64(^(gone >> uint(b%64))))
		count, b = count+run, b+run
		if b < stop {
			break
		}
	}
	return from, count
}

// come returns how many blocks from block first on, at most n, are here.
func (s *Slice) come(first, n int64) int64 {
	if d := s.away.Load(); d != nil {
		if from, missing := d.lacks(s.stored, first, n); missing > 0 {
			return from - first
		}
	}
	return n
}

// Awaits returns those of n blocks from block first on that are stored on another host and have not come yet, in order:
// what Prefetch of a package that brings blocks takes. It looks as it goes on, so blocks that come meanwhile are left out.
func (s *Slice) Awaits(first, n int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		first := max(0, first)
		for end := min(first+n, s.blocks); first < end; {
			d := s.away.Load()
			if d == nil {
				return
			}
			from, count := d.lacks(s.stored, first, min(end-first, 64))
			if count == 0 {
				first += min(end-first, 64)
				continue
			}
			for b := from; b < from+count; b++ {
				if !yield(b) {
					return
				}
			}
			first = from + count
		}
	}
}

// Awaited returns how many blocks are on another host only.
func (s *Slice) Awaited() int64 {
	if d := s.away.Load(); d != nil {
		return d.missing.Load()
	}
	return 0
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Arrived is closed when every block of the slice is on this host: at once for a slice that is not from Far, and never if
// it is closed before.
func (s *Slice) Arrived() <-chan struct{} {
	if d := s.away.Load(); d != nil {
		return d.arrived
	}
	return closed
}

// gap is a run of blocks of a far slice that have not come.
type gap struct {
	slice    *Slice
	first, n int64
}

// gaps appends the runs of blocks that have not come among n from block first on.
func (s *Slice) gaps(to []gap, first, n int64) []gap {
	for end := first + n; first < end; {
		d := s.away.Load()
		if d == nil {
			break
		}
		from, count := d.lacks(s.stored, first, end-first)
		if count == 0 {
			break
		}
		to, first = append(to, gap{s, from, count}), from+count
	}
	return to
}

// bring brings all gaps at once. It returns an error for each gap, in their order.
func bring(ctx context.Context, gaps []gap) []error {
	errs := make([]error, len(gaps))
	var g errgroup.Group
	for i, gap := range gaps[1:] {
		g.Go(func() error { errs[i+1] = gap.slice.fetch(ctx, gap.first, gap.n); return nil })
	}
	errs[0] = gaps[0].slice.fetch(ctx, gaps[0].first, gaps[0].n)
	g.Wait()
	return errs
}

// fetch has blocks brought that are on another host. No lock is held.
func (s *Slice) fetch(ctx context.Context, first, n int64) error {
	d := s.away.Load()
	if d == nil {
		return nil
	}
	err := d.do(ctx, func(ctx context.Context) error { return d.bring(ctx, first, n) })
	from, count := d.lacks(s.stored, first, n)
	if count == 0 {
		return nil // also if they came in another way
	}
	if err == nil {
		err = fmt.Errorf("%d of them, from block %d on, were said to have come, and have not", count, from)
	}
	return fmt.Errorf("bring blocks %d to %d of slice %v (%s) from another host: %w", first, first+n-1, s.id, s.path, err)
}

// do calls f with a context that ends with ctx and with the slice.
func (d *distance) do(ctx context.Context, f func(ctx context.Context) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	both, cancel := context.WithCancel(d.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	err := f(both)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case d.ctx.Err() != nil:
		return context.Cause(d.ctx)
	}
	return err
}

// fallbackRun is the most that bring is asked for at a time for want of a prefetch, in blocks.
const fallbackRun = 256

// fetchMany has blocks brought for which nobody waits yet.
func (s *Slice) fetchMany(ctx context.Context, blocks []int64) error {
	d := s.away.Load()
	if d == nil {
		return nil
	}
	left := func(yield func(int64) bool) {
		for _, b := range blocks {
			if _, count := d.lacks(s.stored, b, 1); count > 0 && !yield(b) {
				return
			}
		}
	}
	err := d.do(ctx, func(ctx context.Context) error {
		if prefetch := d.prefetch.Load(); prefetch != nil {
			return (*prefetch)(ctx, left)
		}
		var runs []gap
		for b := range left {
			if last := len(runs) - 1; last >= 0 && runs[last].first+runs[last].n == b && runs[last].n < fallbackRun {
				runs[last].n++
			} else {
				runs = append(runs, gap{s, b, 1})
			}
		}
		for several := range slices.Chunk(runs, 16) {
			if err := errors.Join(bring(ctx, several)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errComplete) {
		return fmt.Errorf("bring %d blocks of slice %v (%s) from another host: %w", len(blocks), s.id, s.path, err)
	}
	return nil
}

// leave ends what waits for another host, of a slice that is closed.
func (s *Slice) leave() {
	if d := s.away.Load(); d != nil {
		d.end(fmt.Errorf("the slice was closed: %w", os.ErrClosed))
	}
}
