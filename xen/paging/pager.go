package paging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/xen/evtchn"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// Hypervisor is what a Pager needs of one.
type Hypervisor interface {
	PageIn(d privcmd.Domain, frames []uint64, content []byte) (in int, err error)
	Pause(d privcmd.Domain) error
	Unpause(d privcmd.Domain) error
	DisablePaging(d privcmd.Domain) error
}

// Counters are what a Pager has done so far.
type Counters struct {
	Requests  uint64 // of Xen's
	Again     uint64 // of those, for a page that was in
	Dropped   uint64 // of those, to say that the guest has given a frame up
	Eager     uint64 // pages that were brought before the guest ran
	Touched   uint64 // pages that were brought because one of their cluster was touched
	Remaining uint64 // pages that were brought because the domain was to be saved
}

// Pager brings a domain's pages.
type Pager struct {
	xen     Hypervisor
	domain  privcmd.Domain
	memory  io.ReaderAt
	pieces  []Piece
	channel *evtchn.Channel
	release func() error // the ring's page

	mu       sync.Mutex // guards all below
	ring     ring
	in       *bitset.BitSet // pages of the memory file that were brought, or given up
	counters Counters
}

// cluster is how many pages are brought for one that was touched, beginning at a multiple of it: neighbours in memory are used
// together more often than not, and to stop a processor costs more than to copy them.
const cluster = 16

// Counters returns them.
func (p *Pager) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counters
}

// Serve answers Xen's requests until ctx ends, which is not an error, or a page cannot be brought.
func (p *Pager) Serve(ctx context.Context) error {
	work, both := errgroup.WithContext(ctx)
	err := p.take(both, work)
	switch failed := work.Wait(); {
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return nil
	}
	return err
}

// take takes requests out of the ring and has each served.
func (p *Pager) take(ctx context.Context, work *errgroup.Group) error {
	for {
		if err := p.takeAll(work); err != nil {
			return err
		}
		if err := p.channel.Wait(ctx); err != nil {
			return err
		}
	}
}

func (p *Pager) takeAll(work *errgroup.Group) error {
	for {
		p.mu.Lock()
		q, ok, err := p.ring.next()
		p.mu.Unlock()
		if err != nil || !ok {
			return err
		}
		work.Go(func() error { return p.serve(&q) })
	}
}

// serve brings what a request asks for, and answers it.
func (p *Pager) serve(q *request) error {
	at, known := p.locate(q.frame)
	p.mu.Lock()
	p.counters.Requests++
	again := known && p.in.Test(uint(at.offset()/pageSize))
	switch {
	case q.dropped:
		p.counters.Dropped++
		if known {
			p.in.Set(uint(at.offset() / pageSize))
		}
	case again:
		p.counters.Again++
	}
	p.mu.Unlock()
	if !q.dropped && !again {
		if !known {
			return fmt.Errorf("frame %#x is wanted, which the guest did not have", q.frame)
		}
		in, err := p.bring(at.cluster())
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.counters.Touched += in
		p.mu.Unlock()
	}
	p.mu.Lock()
	p.ring.answer(q)
	p.mu.Unlock()
	return p.channel.Notify()
}

// place is a frame in a piece.
type place struct {
	piece Piece
	index uint64
}

func (a place) offset() int64 { return a.piece.Offset + int64(a.index)*pageSize }

// cluster is the piece that is brought with a frame.
func (a place) cluster() Piece {
	frame := a.piece.First + a.index
	first := max(a.piece.First, frame/cluster*cluster)
	last := min(a.piece.First+a.piece.Count, frame/cluster*cluster+cluster)
	return Piece{first, last - first, a.piece.Offset + int64(first-a.piece.First)*pageSize}
}

// locate finds a frame.
func (p *Pager) locate(frame uint64) (place, bool) {
	for _, c := range p.pieces {
		if frame >= c.First && frame-c.First < c.Count {
			return place{c, frame - c.First}, true
		}
	}
	return place{}, false
}

// bring reads a piece and pages in what of it is out. It returns how many pages that were.
func (p *Pager) bring(c Piece) (in uint64, err error) {
	content, err := c.Read(p.memory)
	if err != nil {
		return 0, err
	}
	n, err := p.xen.PageIn(p.domain, c.Frames(), content)
	if err != nil {
		return uint64(n), err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range c.Count {
		p.in.Set(uint(c.Offset/pageSize) + uint(i))
	}
	return uint64(n), nil
}

// bringEager brings frames before the guest runs.
func (p *Pager) bringEager(ctx context.Context, frames []uint64) error {
	for len(frames) > 0 {
		n := 1
		at, ok := p.locate(frames[0])
		if !ok { // outside of RAM
			frames = frames[1:]
			continue
		}
		for n < len(frames) && frames[n] == frames[0]+uint64(n) && at.index+uint64(n) < at.piece.Count {
			n++
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		in, err := p.bring(Piece{frames[0], uint64(n), at.offset()})
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.counters.Eager += in
		p.mu.Unlock()
		frames = frames[n:]
	}
	return nil
}

// Workers bring the remaining pages side by side, in reads of so many pages.
const (
	finishWorkers = 4
	finishChunk   = 128
)

// Finish brings all pages that are out and ends the domain's paging. Serve goes on meanwhile, and stop ends it.
func (p *Pager) Finish(ctx context.Context, stop func() error) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(finishWorkers)
	for _, c := range p.pieces {
		for some := range c.Parts(finishChunk) {
			work.Go(func() error {
				if ctx.Err() != nil || p.allIn(some) {
					return ctx.Err()
				}
				in, err := p.bring(some)
				p.mu.Lock()
				p.counters.Remaining += in
				p.mu.Unlock()
				return err
			})
		}
	}
	if err := work.Wait(); err != nil {
		return err
	}
	// A vCPU may just be putting a request into the ring. One that is paused is not, and its request can be seen.
	if err := p.xen.Pause(p.domain); err != nil {
		return err
	}
	if err := stop(); err != nil {
		return err
	}
	var last errgroup.Group
	if err := errors.Join(p.takeAll(&last), last.Wait(), p.xen.DisablePaging(p.domain), p.Close()); err != nil {
		return err
	}
	return p.xen.Unpause(p.domain)
}

func (p *Pager) allIn(c Piece) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range c.Count {
		if !p.in.Test(uint(c.Offset/pageSize) + uint(i)) {
			return false
		}
	}
	return true
}

// Close gives up what the pager has of the domain, which cannot go on if pages are out.
func (p *Pager) Close() error { return errors.Join(p.channel.Close(), p.release()) }
