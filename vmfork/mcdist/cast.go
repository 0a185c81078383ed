package mcdist

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist/multicast"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const (
	castBatch   = 512                    // blocks of one request in bulk by multicast
	castBatches = 4                      // such requests at once; multicast's own flow control does the rest
	castHedge   = 500 * time.Millisecond // after which a fault asks the origin by unicast as well
)

// follow finds out how the origin distributes, and does as it does, until the fetch ends or must do without multicast.
func (f *Fetch) follow(offers []*offer) {
	w := f.node.wayOf(f.origin)
	if !w.soon() {
		f.takeOffers(offers)
		offers = nil
		select {
		case <-w.known:
		case <-f.ctx.Done():
			return
		}
	}
	switch w.mode {
	case Tree:
		if f.node.config.Mode != Tree { // else it has joined already
			f.join(f.node.others(f.origin))
		}
	case Multicast:
		f.hear(w.from, func() {
			f.takeOffers(offers)
			offers = nil
		})
	}
	f.takeOffers(offers)
}

// hear takes what comes by multicast. It returns when there is nothing to hear any more. ready is called when there is.
func (f *Fetch) hear(from multicast.Origin, ready func()) {
	if f.node.isDeafTo(f.origin) {
		return
	}
	r, err := f.node.receiver()
	var cast *multicast.Fetch
	if err == nil {
		cast, err = r.Open(f.ctx, from, f.id, f.size, ear{f})
	}
	if err != nil {
		if f.ctx.Err() == nil {
			f.node.count.fallbacks.Add(1)
		}
		return
	}
	defer cast.Close()
	for _, s := range f.held() {
		cast.Has(s.first, s.n)
	}
	f.cast.Store(cast)
	ready()
	select {
	case <-cast.Done():
		f.node.count.fallbacks.Add(1)
		if errors.Is(cast.Err(), multicast.ErrDeaf) {
			f.node.listens(f.origin, false)
		}
	case <-f.ctx.Done():
	}
	f.cast.Store(nil)
}

// held returns what has come.
func (f *Fetch) held() (spans []span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := range f.have.EachSet() {
		spans = extend(spans, int64(b))
	}
	return spans
}

func (f *Fetch) takeOffers(offers []*offer) {
	for _, o := range offers {
		f.takeOffer(o)
	}
}

// ear is the sink of a fetch by multicast.
type ear struct{ f *Fetch }

func (e ear) Arrive(p []byte, first int64) error {
	return e.f.arrive(p, first, ByMulticast, e.f.counted(bulk))
}

// askCast asks for blocks that somebody waits for: they are sent to all who listen, for in lockstep these will want them
// too. What does not come is asked for by unicast.
func (f *Fetch) askCast(cast *multicast.Fetch, s span) {
	f.node.count.request(urgent, true)
	ctx, cancel := context.WithTimeout(f.ctx, castHedge)
	defer cancel()
	// Whatever has kept it, what is missing says so.
	_ = cast.Bring(ctx, s.first, s.n)
	if f.ctx.Err() == nil {
		f.askStream(f.missing([]span{s}))
	}
}

// orderCast asks for blocks in bulk. What multicast does not bring is asked for by unicast.
func (f *Fetch) orderCast(ctx context.Context, o *order, cast *multicast.Fetch, spans []span) error {
	select {
	case f.batches <- struct{}{}:
	case <-ctx.Done():
		f.unclaim(spans)
		return f.late(ctx)
	}
	o.begin()
	f.node.count.request(f.counted(bulk), len(f.batches) == 1)
	if !f.node.start(func() {
		_ = cast.Prefetch(f.ctx, blocksOf(spans...))
		<-f.batches
		rest := f.missing(spans)
		switch {
		case len(rest) == 0:
			o.end(nil)
		case f.ctx.Err() != nil:
			f.unclaim(rest)
			o.end(ErrClosed)
		default:
			f.again(f.wanted(f.origin, o, rest))
		}
	}) {
		<-f.batches
		f.unclaim(spans)
		o.end(ErrClosed)
	}
	return nil
}

// blocksOf yields the blocks of runs.
func blocksOf(spans ...span) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, s := range spans {
			for b := s.first; b < s.first+s.n; b++ {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// castObject receives an object by multicast, if its origin publishes that way. The caller checks the sum.
func (n *Node) castObject(ctx context.Context, origin int, id ID, size int64) ([]byte, error) {
	w := n.wayOf(origin)
	if size == 0 || !w.soon() || w.mode != Multicast || n.isDeafTo(origin) {
		return nil, multicast.ErrUnicast
	}
	r, err := n.receiver()
	if err != nil {
		return nil, err
	}
	data, err := r.Receive(ctx, w.from, id)
	if err != nil {
		n.count.fallbacks.Add(1)
		return nil, err
	}
	n.count.blocks(ByMulticast, objects, (size+slice.BlockSize-1)/slice.BlockSize)
	return data, nil
}
