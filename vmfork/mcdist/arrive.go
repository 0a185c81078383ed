package mcdist

import (
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// arrive gives the sink what has not come before, and wakes who waits for it.
func (f *Fetch) arrive(p []byte, first int64, way Way, kind int) error {
	n := int64(len(p)) / slice.BlockSize
	if n == 0 || n*slice.BlockSize != int64(len(p)) || first < 0 || first > f.blocks-n {
		return fmt.Errorf("%w: %d bytes for block %d of %d", errFrame, len(p), first, f.blocks)
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return ErrClosed
	}
	f.arriving++
	var runs []span
	for b := first; b < first+n; b++ {
		if !f.have.Test(uint(b)) {
			runs = extend(runs, b)
			if way == ByMulticast && f.calls[b] != nil {
				kind = urgent // packets do not tell what they were sent for
			}
		}
	}
	f.mu.Unlock()

	var err error
	old := n
	for _, r := range runs {
		off := (r.first - first) * slice.BlockSize
		if err = f.sink.Arrive(p[off:off+r.n*slice.BlockSize], r.first); err != nil {
			break
		}
		old -= r.n
		f.node.count.blocks(way, kind, r.n) // first, so that whoever is woken finds it counted
		f.landed(r, way)
	}
	if err == nil && old > 0 {
		f.node.count.duplicates.Add(old)
	}

	f.mu.Lock()
	if f.arriving--; f.arriving == 0 {
		f.idle.Broadcast()
	}
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("keep blocks from %d: %w", first, err)
	}
	return nil
}

// landed enters blocks that the sink has.
func (f *Fetch) landed(r span, way Way) {
	f.mu.Lock()
	f.have.SetRange(uint(r.first), uint(r.first+r.n))
	var relay []relayed
	for b := r.first; b < r.first+r.n; b++ {
		f.coming.Clear(uint(b))
		if c := f.calls[b]; c != nil {
			delete(f.calls, b)
			if c.left--; c.left == 0 {
				c.finish(nil)
			}
		}
		if len(f.parked) > 0 {
			for _, p := range f.parked[b] {
				relay = append(relay, relayed{p, b})
			}
			delete(f.parked, b)
		}
	}
	f.mu.Unlock()
	for _, r := range relay {
		r.arrived(r.block)
	}
	if cast := f.cast.Load(); cast != nil && way != ByMulticast {
		cast.Has(r.first, r.n)
	}
}

// finish wakes those who wait for a call. The fetch's lock is held.
func (c *call) finish(err error) {
	if c.hedge != nil {
		c.hedge.Stop()
	}
	c.err = err
	close(c.done)
}

// missing returns which of the blocks have not come, at most maxSpans runs of them.
func (f *Fetch) missing(spans []span) (rest []span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	for _, s := range spans {
		for b := s.first; b < s.first+s.n; b++ {
			if !f.have.Test(uint(b)) {
				rest = extend(rest, b)
			}
		}
	}
	return rest
}

// fail ends the calls that wait for any of these blocks.
func (f *Fetch) fail(spans []span, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range spans {
		for b := s.first; b < s.first+s.n; b++ {
			if c := f.calls[b]; c != nil {
				f.forget(c)
				c.finish(err)
			}
		}
	}
}

// forget removes a call. The lock is held.
func (f *Fetch) forget(c *call) {
	for _, s := range c.spans {
		for b := s.first; b < s.first+s.n; b++ {
			if f.calls[b] == c {
				delete(f.calls, b)
			}
		}
	}
}
