package mcdist

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist/multicast"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// hedgeTime is how long a fault relies on blocks that are asked for in bulk already, and come soon, before it asks for
// them itself.
const hedgeTime = 10 * time.Millisecond

// Sink takes the blocks of one slice. A *slice.Slice from slice.Far is one. If it is a Source as well, this node can
// relay what has come to other hosts.
type Sink interface {
	// Arrive is given whole blocks, from block first on, perhaps twice. It may be called by several goroutines at once,
	// and must not keep p.
	Arrive(p []byte, first int64) error
}

// Fetch is a slice of another host, whose blocks come here as they are asked for, or pushed.
type Fetch struct {
	node   *Node
	id     ID
	object bool
	origin int
	size   int64 // bytes
	blocks int64
	sink   Sink
	store  Source // the sink, if it can be read
	ctx    context.Context
	cancel context.CancelFunc

	cast     atomic.Pointer[multicast.Fetch] // nil while nothing comes by multicast
	batches  chan struct{}                   // a token for each request in bulk by multicast
	followed chan struct{}                   // closed when nothing will come by multicast any more; nil if nothing can

	mu       sync.Mutex
	have     *bitset.BitSet // have come
	coming   *bitset.BitSet // asked for in bulk
	calls    map[int64]*call
	up       int // who is asked in bulk: the origin or a relay
	queue    []span
	pulling  bool              // a goroutine works on the queue
	parked   map[int64][]*feed // wait here to be relayed
	closed   bool
	arriving int
	idle     *sync.Cond // arriving is 0
}

// call is what one Bring waits for: blocks that it was the first to ask for.
type call struct {
	spans []span
	left  int64 // blocks
	err   error // once done is closed
	done  chan struct{}
	hedge *time.Timer
}

// Open begins to fetch a slice of size bytes from the host that has it. Blocks come into to, from now until Close. One
// Fetch of an id may be open in a node.
func (n *Node) Open(origin int, id ID, size int64, to Sink) (*Fetch, error) {
	if origin == n.config.Self || origin < 0 || origin >= len(n.config.Hosts) || size <= 0 || size > slice.MaxImageSize {
		return nil, fmt.Errorf("fetch slice %v: %d bytes from host number %d cannot be", id, size, origin)
	}
	f := newFetch(n, origin, id, size, to)
	if err := n.addFetch(f); err != nil {
		f.cancel()
		return nil, fmt.Errorf("fetch slice %v: %w", id, err)
	}
	n.lane(origin, urgent).open()
	f.join(n.others(origin))
	offers := n.keptOffers(f)
	f.followed = make(chan struct{})
	if !n.start(func() {
		defer close(f.followed)
		f.follow(offers)
	}) {
		close(f.followed)
	}
	return f, nil
}

func newFetch(n *Node, origin int, id ID, size int64, to Sink) *Fetch {
	f := &Fetch{
		node: n, id: id, size: size, origin: origin, up: origin, blocks: (size + slice.BlockSize - 1) / slice.BlockSize, sink: to,
		have: &bitset.BitSet{}, coming: &bitset.BitSet{}, calls: make(map[int64]*call), parked: make(map[int64][]*feed),
		batches: make(chan struct{}, castBatches),
	}
	f.store, _ = to.(Source)
	f.idle = sync.NewCond(&f.mu)
	f.ctx, f.cancel = context.WithCancel(n.ctx)
	return f
}

// Bring returns when n blocks from block first on have been given to the sink. It overtakes all bulk. Calls for the same
// blocks share an answer. It goes on through broken connections for as long as ctx and Config.Patience allow.
func (f *Fetch) Bring(ctx context.Context, first, n int64) error {
	if first < 0 || n <= 0 || n > f.blocks-first {
		return fmt.Errorf("bring blocks of slice %v: %d from %d are not in its %d", f.id, n, first, f.blocks)
	}
	start := time.Now()
	if err := f.bring(ctx, first, n); err != nil {
		return fmt.Errorf("bring %d blocks from %d of slice %v: %w", n, first, f.id, err)
	}
	f.node.count.latency.add(time.Since(start))
	return nil
}

func (f *Fetch) bring(ctx context.Context, first, n int64) error {
	own, ask, others, err := f.call(first, n)
	if err != nil {
		return err
	}
	if len(ask) > 0 {
		f.ask(ask)
	}
	for _, c := range others {
		if err := f.wait(ctx, c); err != nil {
			return err
		}
	}
	if own != nil {
		return f.wait(ctx, own)
	}
	return nil
}

func (f *Fetch) wait(ctx context.Context, c *call) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return f.late(ctx)
	}
}

// late is the error of a context that ended while something was waited for.
func (f *Fetch) late(ctx context.Context) error {
	return fmt.Errorf("wait for host %s: %w", f.node.name(f.origin), context.Cause(ctx))
}

// call enters a call for the blocks that nobody has called for, and finds the calls for the others. What has to be asked
// for is in ask: not those that are on their way here from the origin, for they stand behind little.
func (f *Fetch) call(first, n int64) (own *call, ask []span, others []*call, err error) {
	stream := f.cast.Load() == nil
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, nil, ErrClosed
	}
	var joined []span
	for b := first; b < first+n; b++ {
		if f.have.Test(uint(b)) {
			continue
		}
		if c := f.calls[b]; c != nil {
			if c != own && (len(others) == 0 || others[len(others)-1] != c) {
				others = append(others, c)
			}
			continue
		}
		if own == nil {
			own = &call{done: make(chan struct{})}
		}
		f.calls[b] = own
		own.left++
		own.spans = extend(own.spans, b)
		if stream && f.up == f.origin && f.coming.Test(uint(b)) {
			joined = extend(joined, b)
		} else {
			ask = extend(ask, b)
		}
	}
	if joined != nil {
		own.hedge = time.AfterFunc(hedgeTime, func() { f.hurry(own, joined) })
	}
	return own, ask, others, nil
}

// extend adds a block to runs of blocks that come in order.
func extend(spans []span, block int64) []span {
	if last := len(spans) - 1; last >= 0 && spans[last].first+spans[last].n == block {
		spans[last].n++
		return spans
	}
	return append(spans, span{block, 1})
}

// ask asks the origin for blocks that somebody waits for. Faults never go to a relay: most of what it could answer was
// pushed here as well, so it would have to ask in its turn, and a fault would take two round trips or more.
func (f *Fetch) ask(spans []span) {
	if cast := f.cast.Load(); cast != nil {
		for _, s := range spans {
			if !f.node.start(func() { f.askCast(cast, s) }) {
				f.fail(spans, ErrClosed)
			}
		}
		return
	}
	f.askStream(spans)
}

func (f *Fetch) askStream(spans []span) {
	for len(spans) > 0 {
		n := min(len(spans), maxSpans)
		f.node.count.request(urgent, true)
		f.node.lane(f.origin, urgent).ask(&want{f: f, kind: urgent, host: f.origin, spans: spans[:n]})
		spans = spans[n:]
	}
}

// hurry asks for what a call has relied on to come in bulk and has not.
func (f *Fetch) hurry(c *call, spans []span) {
	f.mu.Lock()
	var ask []span
	for _, s := range spans {
		for b := s.first; b < s.first+s.n; b++ {
			if f.calls[b] == c {
				ask = extend(ask, b)
			}
		}
	}
	f.mu.Unlock()
	f.ask(ask)
}

// Close ends the fetch. Calls that wait fail with ErrClosed, and the sink is given nothing any more once it returns. It
// must not be called by the sink.
func (f *Fetch) Close() {
	f.node.removeFetch(f)
	f.cancel()
	f.close()
	if f.followed != nil {
		<-f.followed
	}
}

func (f *Fetch) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		for len(f.calls) > 0 {
			for _, c := range f.calls {
				f.forget(c)
				c.finish(ErrClosed)
				break
			}
		}
		for _, all := range f.parked {
			for _, p := range all {
				go p.giveUp(errRelay)
			}
		}
		clear(f.parked)
	}
	for f.arriving > 0 {
		f.idle.Wait()
	}
}
