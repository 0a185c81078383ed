package mcdist

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"
)

const (
	relayPatience = time.Second          // a relay that answers nothing for so long is not relied on any more
	othersTime    = 2 * time.Millisecond // between looks at what somebody else has asked for
	maxQueue      = 1 << 16              // runs of blocks that a fetch works on unasked
)

// order is one Prefetch: the requests it has made, and what has become of them.
type order struct {
	mu   sync.Mutex
	left int
	err  error // the first
	done chan struct{}
}

func (o *order) begin() {
	o.mu.Lock()
	o.left++
	o.mu.Unlock()
}

func (o *order) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	if o.left--; o.left == 0 {
		close(o.done)
	}
}

func (o *order) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// Prefetch asks for blocks in bulk: they give way to every Bring. It leaves out those that have come, or that somebody else
// has asked for, and returns when all of them have been given to the sink. The order is kept. With a relay tree they are
// asked of a relay, which asks its own.
func (f *Fetch) Prefetch(ctx context.Context, blocks iter.Seq[int64]) error {
	err := f.bulk(ctx, blocks)
	if err != nil {
		return fmt.Errorf("prefetch slice %v: %w", f.id, err)
	}
	return nil
}

func (f *Fetch) bulk(ctx context.Context, blocks iter.Seq[int64]) error {
	for {
		o := &order{left: 1, done: make(chan struct{})}
		others, err := f.prefetch(ctx, blocks, o)
		o.end(nil)
		if err != nil {
			return err
		}
		select {
		case <-o.done:
		case <-ctx.Done():
			return f.late(ctx)
		}
		// Whoever has asked for the rest may have given up; then it is asked for again.
		for {
			if o.err != nil {
				return o.err
			}
			if f.ctx.Err() != nil {
				return ErrClosed
			}
			if others = f.missing(others); len(others) == 0 {
				return nil
			}
			if !f.isAsked(others[0].first) {
				break
			}
			select {
			case <-time.After(othersTime):
			case <-ctx.Done():
				return f.late(ctx)
			}
		}
		blocks = blocksOf(others...)
	}
}

// prefetch makes the requests, and returns which blocks somebody else has asked for.
func (f *Fetch) prefetch(ctx context.Context, blocks iter.Seq[int64], o *order) (others []span, err error) {
	var batch []span
	count, enough := int64(0), int64(0)
	for b := range blocks {
		if b < 0 || b >= f.blocks {
			f.unclaim(batch)
			return nil, fmt.Errorf("block %d is not in its %d", b, f.blocks)
		}
		switch f.claim(b) {
		case closed:
			return nil, ErrClosed
		case asked:
			others = extend(others, b)
			continue
		case here:
			continue
		}
		batch = extend(batch, b)
		if count++; count == 1 {
			if enough = castBatch; f.cast.Load() == nil {
				enough = quantum
			}
		}
		if count >= enough || len(batch) == maxSpans {
			if err := f.order(ctx, o, batch, count); err != nil {
				return nil, err
			}
			batch, count = nil, 0
		}
	}
	if count > 0 {
		err = f.order(ctx, o, batch, count)
	}
	return others, err
}

// host is who is asked in bulk.
func (f *Fetch) host() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.up
}

// claim is what a block is to somebody who wants it in bulk.
type claim int

const (
	ours   claim = iota // nobody has asked for it: now it is marked as asked for
	asked               // somebody else has
	here                // it has come
	closed              // none is any more
)

func (f *Fetch) claim(b int64) claim {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return closed
	case f.have.Test(uint(b)):
		return here
	case f.coming.Test(uint(b)) || f.calls[b] != nil:
		return asked
	}
	f.coming.Set(uint(b))
	return ours
}

// isAsked reports whether somebody has asked for a block.
func (f *Fetch) isAsked(b int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.closed && (f.coming.Test(uint(b)) || f.calls[b] != nil)
}

// unclaim takes claims back. Faults that relied on them ask for themselves.
func (f *Fetch) unclaim(spans []span) {
	f.mu.Lock()
	var ask []span
	for _, s := range spans {
		for b := s.first; b < s.first+s.n; b++ {
			f.coming.Clear(uint(b))
			if c := f.calls[b]; c != nil && c.hedge != nil && c.hedge.Stop() {
				ask = append(ask, c.spans...)
			}
		}
	}
	f.mu.Unlock()
	if len(ask) > 0 {
		f.ask(ask)
	}
}

// order sends one request in bulk, as soon as the pace allows it.
func (f *Fetch) order(ctx context.Context, o *order, spans []span, n int64) error {
	if err := o.failed(); err != nil {
		f.unclaim(spans)
		return err
	}
	if cast := f.cast.Load(); cast != nil {
		return f.orderCast(ctx, o, cast, spans)
	}
	w := f.wanted(f.host(), o, spans)
	alone, err := w.pace.acquire(ctx, &w.share, n)
	if err != nil {
		f.unclaim(spans)
		return f.late(ctx)
	}
	o.begin()
	f.send(w, alone)
	return nil
}

// wanted is a request in bulk.
func (f *Fetch) wanted(host int, o *order, spans []span) *want {
	return &want{f: f, kind: bulk, host: host, spans: spans, order: o, pace: f.node.pace(host)}
}

func (f *Fetch) send(w *want, alone bool) {
	f.node.count.request(f.counted(bulk), alone)
	f.node.lane(w.host, bulk).ask(w)
}

// settle ends a request in bulk: what a relay has not brought is asked of the origin.
func (f *Fetch) settle(w *want, rest []span, err error) {
	if len(rest) == 0 {
		w.order.end(nil)
		return
	}
	if (err == nil || w.relayed()) && f.ctx.Err() == nil {
		if err != nil {
			f.forsake(w.host)
		}
		again := f.wanted(f.origin, w.order, rest)
		if f.node.start(func() { f.again(again) }) {
			return
		}
	}
	f.unclaim(rest)
	w.order.end(err)
}

func (f *Fetch) again(w *want) {
	n := int64(0)
	for _, s := range w.spans {
		n += s.n
	}
	alone, err := w.pace.acquire(f.ctx, &w.share, n)
	if err != nil {
		f.unclaim(w.spans)
		w.order.end(ErrClosed)
		return
	}
	f.send(w, alone)
}

// forsake relies on a relay no longer.
func (f *Fetch) forsake(host int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up == host && host != f.origin {
		f.up = f.origin
		f.node.count.fallbacks.Add(1)
	}
}

// need asks for blocks in bulk for which nobody waits here: an origin has offered them, or another host wants them
// relayed.
func (f *Fetch) need(spans []span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || len(f.queue)+len(spans) > maxQueue {
		return
	}
	f.queue = append(f.queue, spans...)
	if !f.pulling {
		f.pulling = f.node.start(f.pull)
	}
}

func (f *Fetch) pull() {
	for {
		// Nobody waits for these. Who offered them, or wants them relayed, asks again or does without.
		_, _ = f.prefetch(f.ctx, f.queued, &order{left: 1, done: make(chan struct{})})
		f.mu.Lock()
		if len(f.queue) == 0 || f.closed {
			f.pulling = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
	}
}

// queued yields the blocks of the queue.
func (f *Fetch) queued(yield func(int64) bool) {
	for {
		f.mu.Lock()
		if len(f.queue) == 0 || f.closed {
			f.mu.Unlock()
			return
		}
		s := f.queue[0]
		f.queue = f.queue[1:]
		f.mu.Unlock()
		for b := s.first; b < min(s.first+s.n, f.blocks); b++ {
			if !yield(b) {
				return
			}
		}
	}
}
