package mcdist

import (
	"fmt"
	"sync"
	"time"
)

// relayWait is how long a relay waits to be told of a slice that somebody wants relayed already.
const relayWait = 250 * time.Millisecond

// feed is a request in bulk while it is answered. Blocks that a relay has not got yet are parked in its fetch.
type feed struct {
	in     *inbound
	number uint32
	from   store
	fetch  *Fetch // of a relay; nil at the origin

	// The inbound's lock guards these.
	spans  []span // can be sent
	left   int64  // blocks that were not sent
	queued bool   // it is among the inbound's ready ones
}

// relayed is a block that a feed has waited for.
type relayed struct {
	*feed
	block int64
}

// enter begins a feed.
func (in *inbound) enter(number uint32, k key, spans []span, relay bool) error {
	in.mu.Lock()
	full := len(in.feeds) >= maxFeeds || in.feeds[number] != nil
	in.mu.Unlock()
	if full {
		return fmt.Errorf("%w: more than %d requests, or two of one number", errFrame, maxFeeds)
	}
	if fd := in.find(number, k); fd != nil {
		in.begin(fd, spans)
		return nil
	}
	if !relay {
		in.refuse(number, unknown(k))
		return nil
	}
	// A relay may be asked before it is told what to fetch.
	if in.early.Add(1) > maxFeeds {
		return fmt.Errorf("%w: more than %d requests to a relay that has nothing", errFrame, maxFeeds)
	}
	if !in.node.start(func() {
		defer in.early.Add(-1)
		for end := time.Now().Add(relayWait); time.Now().Before(end) && in.node.ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
			if fd := in.find(number, k); fd != nil {
				in.begin(fd, spans)
				return
			}
		}
		in.refuse(number, unknown(k))
	}) {
		return fmt.Errorf("%w", ErrClosed)
	}
	return nil
}

// find returns a feed from whoever has the blocks here.
func (in *inbound) find(number uint32, k key) *feed {
	n := in.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.served[k]; s != nil {
		return &feed{in: in, number: number, from: s}
	}
	if f := n.fetches[k]; f != nil && f.store != nil && f.origin != in.from {
		return &feed{in: in, number: number, from: f, fetch: f}
	}
	return nil
}

func (in *inbound) begin(fd *feed, spans []span) {
	for _, s := range spans {
		fd.left += s.n
	}
	if fd.fetch != nil && fd.left > maxRelay {
		in.refuse(fd.number, fmt.Errorf("%d blocks are more than a relay takes at once", fd.left))
		return
	}
	in.mu.Lock()
	if in.ended {
		in.mu.Unlock()
		return
	}
	in.feeds[fd.number] = fd
	if fd.fetch == nil {
		fd.push(spans...)
	}
	in.mu.Unlock()
	if fd.fetch != nil {
		fd.fetch.relay(fd, spans)
	}
}

// push adds to what can be sent. The inbound's lock is held.
func (fd *feed) push(spans ...span) {
	fd.spans = append(fd.spans, spans...)
	if !fd.queued {
		fd.queued = true
		fd.in.ready = append(fd.in.ready, fd)
		fd.in.more.Signal()
	}
}

// arrived is called when a block that was parked can be sent.
func (fd *feed) arrived(block int64) {
	fd.in.mu.Lock()
	defer fd.in.mu.Unlock()
	if fd.in.feeds[fd.number] != fd {
		return
	}
	if last := len(fd.spans) - 1; last >= 0 && fd.spans[last].first+fd.spans[last].n == block {
		fd.spans[last].n++
		return
	}
	fd.push(span{block, 1})
}

// give up tells the host that the rest does not come from here.
func (fd *feed) giveUp(why error) {
	fd.in.mu.Lock()
	here := fd.in.feeds[fd.number] == fd
	if here {
		delete(fd.in.feeds, fd.number)
	}
	fd.in.mu.Unlock()
	if here {
		fd.in.refuse(fd.number, why)
	}
}

// drop forgets a request that nobody waits for any more.
func (in *inbound) drop(number uint32) {
	in.mu.Lock()
	fd := in.feeds[number]
	delete(in.feeds, number)
	id, asked := in.asks[number]
	delete(in.asks, number)
	in.mu.Unlock()
	if fd != nil {
		fd.leave()
	}
	if asked {
		in.node.mu.Lock()
		in.node.forgetAsker(id, asker{in, number})
		in.node.mu.Unlock()
	}
}

// leave takes a feed out of the fetch where it waits.
func (fd *feed) leave() {
	if fd.fetch != nil {
		fd.fetch.unpark(fd)
	}
}

// feed sends what is asked for in bulk, in small pieces, each when no fault is being answered.
func (in *inbound) feed() {
	space := rooms.Get().(*room)
	defer rooms.Put(space)
	defer in.node.fed.leave(in)
	for {
		in.mu.Lock()
		for len(in.ready) == 0 && !in.ended {
			in.more.Wait()
		}
		if in.ended {
			in.mu.Unlock()
			return
		}
		fd := in.ready[0]
		spans, last := fd.take(feedBlocks)
		if fd.queued = len(fd.spans) > 0; !fd.queued {
			in.ready = in.ready[1:]
		}
		here := in.feeds[fd.number] == fd
		if here && last {
			delete(in.feeds, fd.number)
		}
		in.mu.Unlock()
		if here {
			in.node.gate.wait()
			in.sendPieces(fd, spans, last, space)
		}
	}
}

// take removes up to n blocks from what can be sent. The inbound's lock is held.
func (fd *feed) take(n int64) (spans []span, last bool) {
	for n > 0 && len(fd.spans) > 0 {
		s := &fd.spans[0]
		c := min(n, s.n)
		spans = append(spans, span{s.first, c})
		s.first, s.n, n, fd.left = s.first+c, s.n-c, n-c, fd.left-c
		if s.n == 0 {
			fd.spans = fd.spans[1:]
		}
	}
	return spans, fd.left == 0
}

func (in *inbound) sendPieces(fd *feed, spans []span, last bool, space *room) {
	buf, blocks := space.frames[:0], int64(0)
	way := ByUnicast
	if fd.fetch != nil {
		way = ByTree
	}
	share := in.node.fed.share(in)
	for i, s := range spans {
		start := len(buf)
		var err error
		if buf, err = in.piece(buf, fd.from, fd.number, s.first, s.n, space); err != nil {
			if start > 0 {
				in.send(way, bulk, buf[:start], blocks)
			}
			if !last {
				fd.giveUp(err)
				fd.leave()
			} else {
				in.refuse(fd.number, err)
			}
			return
		}
		setShare(buf, start, share)
		if last && i == len(spans)-1 {
			setFlags(buf, start, flagLast)
		}
		blocks += s.n
	}
	in.send(way, bulk, buf, blocks)
	space.frames = buf
}

// fedLately is for how long a host that was sent something in bulk is taken to be getting more.
const fedLately = 50 * time.Millisecond

// fed counts the hosts that are sent something in bulk. What they ask for next is on its way while they have nothing to
// get, so it looks at the last moments.
type fed struct {
	mu      sync.Mutex
	at      map[*inbound]time.Time
	counted time.Time
	n       uint16
}

// share enters a host, and returns how many there are.
func (d *fed) share(in *inbound) uint16 {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[in] = now
	if now.Sub(d.counted) > fedLately/5 {
		d.counted, d.n = now, 0
		for _, at := range d.at {
			if now.Sub(at) < fedLately {
				d.n++
			}
		}
	}
	return d.n
}

func (d *fed) leave(in *inbound) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.at, in)
}
