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
	feedBlocks    = 8 // of one piece in bulk
	minWindow     = 16 << 10
	maxWindow     = 4 << 20
	maxQuantum    = 64 // blocks of one request
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
	delivered int64 // by then
	begun     bool
}

func newPace() *pace { return &pace{window: 2 * standing} }

// quantum is how many blocks to ask for at once: few enough that there are always several requests under way.
func (p *pace) quantum() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(max(p.window/4, minWindow)/slice.BlockSize, maxQuantum)
}

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
	w.owed = size
	p.mu.Unlock()
	return alone, nil
}

// sent is called when a request is sent. It returns the rate for the other side, in MB/s.
func (p *pace) sent(w *portion) uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.at, w.delivered, w.begun = time.Now(), p.delivered, false
	return uint16(min(p.rate/1e6, 1<<16-1))
}

// came is called when some bytes of a request have come.
func (p *pace) came(w *portion, size int64, share int, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delivered += size
	since := max(time.Since(w.at), time.Microsecond)
	if !w.begun && (p.base == 0 || since < p.base) {
		p.base = since
	}
	w.begun = true
	if last {
		p.learn(float64(p.delivered-w.delivered)/since.Seconds(), share)
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

// learn takes the rate at which the last window has come. Several streams that are fed at once share what may stand.
func (p *pace) learn(rate float64, share int) {
	grows := rate > 1.2*p.rate
	if rate > p.rate {
		p.rate = rate
	} else {
		p.rate += (rate - p.rate) / 4
	}
	window := int64(p.rate*p.base.Seconds()) + max(standing/int64(max(1, share)), leastStanding)
	if grows {
		window = max(window, p.window*3/2)
	}
	p.window = max(minWindow, min(window, maxWindow))
}
