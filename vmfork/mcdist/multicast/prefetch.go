package multicast

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// window is how many blocks a prefetch asks for ahead: 32 MB, enough for 10 Gbit/s with a round trip of 20 ms.
const window = 8192

// Prefetch asks for blocks, and returns when all of them have been given to the sink. Others may bring them in the
// meantime. The order is kept as far as losses allow.
func (f *Fetch) Prefetch(ctx context.Context, blocks iter.Seq[int64]) error {
	p := &prefetch{fetch: f, ctx: ctx, timer: time.NewTimer(time.Hour), began: time.Now()}
	defer p.timer.Stop()
	defer p.release()
	if err := f.awaitGroup(ctx); err != nil {
		return fmt.Errorf("prefetch: %w", err)
	}
	for b := range blocks {
		if b < 0 || b >= f.blocks {
			return fmt.Errorf("prefetch block %d: not inside the image of %d", b, f.blocks)
		}
		if !p.add(b) {
			continue
		}
		if len(p.waits) >= window {
			p.ask()
			if err := p.wait(window / 2); err != nil {
				return fmt.Errorf("prefetch: %w", err)
			}
		}
	}
	p.ask()
	if err := p.wait(0); err != nil {
		return fmt.Errorf("prefetch: %w", err)
	}
	return nil
}

// awaitGroup waits until the group is heard: bulk is sent to nobody else.
func (f *Fetch) awaitGroup(ctx context.Context) error {
	for {
		f.mu.Lock()
		heard, moved := !f.heard.IsZero(), f.watch()
		f.mu.Unlock()
		if heard {
			return nil
		}
		select {
		case <-moved:
		case <-f.done:
			return f.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait for the group to be heard: %w", ctx.Err())
		}
	}
}

// prefetch is one call of Prefetch.
type prefetch struct {
	fetch  *Fetch
	ctx    context.Context
	timer  *time.Timer
	began  time.Time
	waits  []int64 // blocks that have not come
	asked  int     // of them, this many have been asked for
	looked int     // fetch.arrived when that was found
	idle   int     // fetch.idle when they were last looked at
	again  time.Time
}

// add takes a block on, unless it is here.
func (p *prefetch) add(block int64) bool {
	p.fetch.mu.Lock()
	defer p.fetch.mu.Unlock()
	if p.fetch.have.has(block) {
		return false
	}
	p.fetch.wanted[block]++
	p.waits = append(p.waits, block)
	return true
}

// release gives up what has not come.
func (p *prefetch) release() {
	p.fetch.mu.Lock()
	defer p.fetch.mu.Unlock()
	for _, b := range p.waits {
		p.fetch.unwant(b)
	}
}

func (f *Fetch) unwant(block int64) {
	if f.wanted[block]--; f.wanted[block] <= 0 {
		delete(f.wanted, block)
	}
}

// look finds out what has come. The fetch's lock is held.
func (p *prefetch) look() {
	f := p.fetch
	left := p.waits[:0]
	for _, b := range p.waits {
		if f.have.has(b) {
			f.unwant(b)
		} else {
			left = append(left, b)
		}
	}
	p.waits, p.asked, p.looked = left, len(left), f.arrived
}

// ask asks for what was added since.
func (p *prefetch) ask() { p.askFor(p.asked) }

// askAgain asks for all that has not come: the request, or all of a batch, may be lost. It never insists, as Bring does:
// on a host that is busy silence means little, and beacons show soon enough what was sent.
func (p *prefetch) askAgain() { p.askFor(0) }

// askFor asks for what is waited for, from one place in the list on, but for blocks of batches of which something has
// come: those are repaired. It would seem to the origin as if they had been lost.
func (p *prefetch) askFor(from int) {
	f := p.fetch
	f.mu.Lock()
	p.idle = f.idle
	covered := make(map[int64]bool)
	for _, a := range f.coming {
		for _, r := range a.runs {
			for b := r.first; b < r.first+r.n; b++ {
				covered[b] = true
			}
		}
	}
	var runs []run
	for _, b := range p.waits[from:] {
		if !covered[b] && !f.have.has(b) {
			runs = extend(runs, b)
		}
	}
	seen := f.report.seen
	f.mu.Unlock()
	p.asked = len(p.waits)
	p.again = time.Now()
	f.want(runs, false, 0, seen)
}

const (
	// askAgainAfter is how often a prefetch asks for what nothing has come of, while other data comes, and askAgainQuiet
	// after how long when nothing comes at all. What is queued or on its way is not sent twice because of it.
	askAgainAfter = 200 * time.Millisecond
	askAgainQuiet = 150 * time.Millisecond
)

// wait waits until no more than some blocks are still to come.
func (p *prefetch) wait(most int) error {
	f := p.fetch
	quiet := 0
	for {
		f.mu.Lock()
		// As long as fewer blocks have come than it takes, nothing has to be looked at one by one.
		if f.arrived-p.looked >= len(p.waits)-most {
			p.look()
			quiet = 0
		}
		idle, active, moved := f.idle != p.idle, f.active, f.watch()
		f.mu.Unlock()
		if len(p.waits) <= most {
			return nil
		}
		now := time.Now()
		if idle && now.Sub(p.again) >= f.origin.patience(0)/2 || now.Sub(p.again) >= askAgainAfter {
			// The end-game: the origin has nothing left to send, so what is not here must be asked for. Also before that,
			// from time to time: of a batch that was lost whole nobody knows.
			p.askAgain()
		}
		p.timer.Reset(askAgainQuiet << min(quiet, 2))
		select {
		case <-moved:
		case <-p.timer.C:
			if err := f.checkSilence(p.began); err != nil {
				f.end(err)
				return err
			}
			if now := time.Now(); now.Sub(active) >= askAgainQuiet {
				quiet++
				p.askAgain()
			}
		case <-f.done:
			return f.Err()
		case <-p.ctx.Done():
			return fmt.Errorf("wait for %d blocks: %w", len(p.waits), p.ctx.Err())
		}
	}
}
