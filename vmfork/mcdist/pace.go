package mcdist

import (
	"context"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const (
	// standing is what bulk is allowed to let stand in the way between two hosts, in bytes, beyond what is moving. With the
	// piece that is just being sent it makes 64 KB, which an urgent answer may find before it. Hosts that are fed at once
	// share it, down to leastStanding for each.
	standing      = 32 << 10
	leastStanding = 8 << 10
	feedBlocks    = 8 // of one piece in bulk, at most
	quantum       = 4 // blocks of one request: many are under way, so that answers come evenly
	minWindow     = quantum * slice.BlockSize
	maxWindow     = 4 << 20
)

// pace says how much may be asked for in bulk of one host before it has come: what fits into the way there and back at
// the rate at which it comes, and a little that stands. Asking for more would make nothing come earlier, and would
// stand before the faults. The shortest time that an answer took is the length of the way, as in BBR and Vegas, and no
// probing is needed: what stands shows whether the way takes more.
//
// A pace learns from answers, so it follows a slow receiver, a slow disk and a slow network alike.
type pace struct {
	mu        sync.Mutex
	window    int64         // bytes
	out       int64         // bytes asked for
	base      time.Duration // from a request to the first piece; 0 is unknown
	rate      float64       // bytes a second; 0 is unknown
	delivered int64         // bytes, ever
	freed     chan struct{} // closed when there is room; nil if nobody waits
}

// portion is the part of the window that one request holds. The pace's lock guards it.
type portion struct {
	owed      int64 // bytes that have not come
	at        time.Time
	delivered int64         // by then
	first     time.Duration // until the first of it came; 0 before
	full      bool          // the window was full
}

func newPace() *pace { return &pace{window: 2 * standing} }

// acquire waits until n blocks may be asked for, and enters them into w. It reports whether nothing else was under way.
func (p *pace) acquire(ctx context.Context, w *portion, n int64) (alone bool, err error) {
	size := n * slice.BlockSize
	p.mu.Lock()
	for p.out > 0 && p.out+size > p.window {
		if p.freed == nil {
			p.freed = make(chan struct{})
		}
		freed := p.freed
		p.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
		p.mu.Lock()
	}
	alone = p.out == 0
	p.out += size
	w.owed, w.full = size, 2*p.out > p.window
	p.mu.Unlock()
	return alone, nil
}

// sent is called when a request is sent. It returns the rate for the other side, in MB/s.
func (p *pace) sent(w *portion) uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.at, w.delivered, w.first = time.Now(), p.delivered, 0
	return uint16(min(p.rate/1e6, 1<<16-1))
}

// came is called when some bytes of a request have come.
func (p *pace) came(w *portion, size int64, share int, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delivered += size
	since := max(time.Since(w.at), time.Microsecond)
	if w.first == 0 {
		if w.first = since; p.base == 0 || since < p.base {
			p.base = since
		}
	}
	if last {
		p.learn(w, float64(p.delivered-w.delivered)/since.Seconds(), share)
	}
	p.free(w, min(size, w.owed))
}

// near learns from the answer to a fault how long the way is.
func (p *pace) near(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if took = max(took, time.Microsecond); p.base == 0 || took < p.base {
		p.base = took
	}
}

// release is called when nothing more of a request will come.
func (p *pace) release(w *portion) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free(w, w.owed)
}

func (p *pace) free(w *portion, size int64) {
	w.owed -= size
	p.out -= size
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// learn takes from a request when its answer began, which shows what stood before it, and the rate at which answers came
// meanwhile. Several hosts that are fed at once share what may stand.
func (p *pace) learn(w *portion, rate float64, share int) {
	if rate > p.rate {
		p.rate = rate
	} else {
		p.rate += (rate - p.rate) / 4
	}
	limit := max(standing/int64(max(1, share)), leastStanding)
	if stands := int64(p.rate * (w.first - p.base).Seconds()); stands >= limit/2 {
		p.window = int64(p.rate*p.base.Seconds()) + limit
	} else if w.full {
		p.window += quantum * slice.BlockSize / 2 // half as much again each time that a window has come
	}
	p.window = max(minWindow, min(p.window, maxWindow))
}
