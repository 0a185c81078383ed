package mcdist

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// pipe is a network with one queue: what is asked for of it comes after the way there and back, at a rate.
type pipe struct {
	rate  float64 // bytes a second
	way   time.Duration
	mu    sync.Mutex
	free  time.Time // when the queue is empty
	worst time.Duration
}

// TestPaceFillsTheNetworkAndNoMore runs a pace over networks of all kinds, and looks at how long the queue gets and how
// much comes.
func TestPaceFillsTheNetworkAndNoMore(t *testing.T) {
	for _, c := range []struct {
		rate float64
		way  time.Duration
	}{
		{12.5e6, 100 * time.Microsecond}, {12.5e6, 10 * time.Millisecond}, {125e6, 100 * time.Microsecond},
		{125e6, time.Millisecond}, {125e6, 10 * time.Millisecond}, {1.25e9, 50 * time.Microsecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, link := newPace(), &pipe{rate: c.rate, way: c.way, free: time.Now()}
			begun := time.Now()
			bytes, settled, first := int64(0), false, time.Duration(0)
			for time.Since(begun) < 3*time.Second {
				n := int64(quantum)
				w := &portion{}
				if _, err := p.acquire(context.Background(), w, n); err != nil {
					t.Fatal(err)
				}
				if !settled && time.Since(begun) > time.Second {
					settled, first = true, link.longest()
				}
				bytes += n * slice.BlockSize
				p.sent(w)
				go link.answer(p, w, n)
			}
			if got := float64(bytes) / 3; got < 0.8*c.rate {
				t.Errorf("%.0f MB/s with %v: %.1f MB/s came", c.rate/1e6, c.way, got/1e6)
			}
			stands := link.longest().Seconds() * c.rate
			t.Logf("%.0f MB/s with %v: %.1f MB/s came, at most %.0f KB stood at first and %.0f KB later", c.rate/1e6, c.way,
				float64(bytes)/3e6, first.Seconds()*c.rate/1024, stands/1024)
			if stands > 48<<10 { // with the piece that is being sent, 64 KB and what is rounded
				t.Errorf("%.0f MB/s with %v: %.0f KB stand in the queue", c.rate/1e6, c.way, stands/1024)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.out != 0 {
				t.Errorf("%d bytes are still waited for", p.out)
			}
		})
	}
}

// longest returns how long the queue has been, and begins again.
func (l *pipe) longest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	worst := l.worst
	l.worst = 0
	return worst
}

func (l *pipe) answer(p *pace, w *portion, n int64) {
	time.Sleep(l.way / 2)
	for n > 0 {
		c := min(n, feedBlocks)
		l.mu.Lock()
		now := time.Now()
		if l.free.Before(now) {
			l.free = now
		}
		l.worst = max(l.worst, l.free.Sub(now))
		l.free = l.free.Add(time.Duration(float64(c*slice.BlockSize) / l.rate * 1e9))
		n -= c
		at, last := l.free.Add(l.way/2), n == 0
		l.mu.Unlock()
		time.Sleep(time.Until(at))
		p.came(w, c*slice.BlockSize, 1, last)
	}
}

func TestPaceGivesUpWithItsContext(t *testing.T) {
	p := newPace()
	var w, v portion
	if _, err := p.acquire(t.Context(), &w, 1000); err != nil { // any number, when nothing is under way
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.acquire(ctx, &v, 1); err == nil {
		t.Error("it did not wait")
	}
	p.release(&w)
	if alone, err := p.acquire(ctx, &v, 1); err != nil || !alone {
		t.Errorf("%v, %v", alone, err)
	}
}

func TestPackOnlyWhatIsWorthIt(t *testing.T) {
	page := bytes.Repeat([]byte("of a guest's memory "), 205)[:slice.BlockSize]
	random := newMemory(8).data[4*slice.BlockSize : 5*slice.BlockSize]
	dst := make([]byte, 0, packSize)
	var k packer
	out := k.pack(dst, page)
	if len(out) == 0 || len(out) > slice.BlockSize/2 {
		t.Fatalf("a page became %d bytes", len(out))
	}
	back, err := decompress(make([]byte, slice.BlockSize), out)
	if err != nil || !bytes.Equal(back, page) {
		t.Fatalf("it became another page: %v", err)
	}
	if k.pack(dst, random) != nil {
		t.Error("random bytes were compressed")
	}
	// Once nothing is saved, a network that is not slow gets nothing compressed, but for a trial now and then.
	k.rate.Store(60000)
	tried := 0
	for range 20 * retryPack {
		if k.pack(dst, page) != nil {
			tried++
		}
	}
	if tried != 20 {
		t.Errorf("%d of %d pages were compressed for a network of 60 GB/s", tried, 20*retryPack)
	}
	if _, err := decompress(make([]byte, 2*slice.BlockSize), out); err == nil {
		t.Error("one page was taken for two")
	}
}

func TestHistogram(t *testing.T) {
	var l latencies
	for us := range 10000 {
		d := time.Duration(us) * time.Microsecond
		i := latencyBucket(d)
		if end := bucketEnd(i); d >= end || i > 0 && d < bucketEnd(i-1) {
			t.Fatalf("%v is in bucket %d, which ends at %v", d, i, end)
		}
		l.add(d)
	}
	var h Histogram
	for i := range l {
		h[i] = l[i].Load()
	}
	if h.Count() != 10000 {
		t.Errorf("%d times are in it", h.Count())
	}
	for _, p := range []float64{1, 50, 99} {
		exact := time.Duration(p*100) * time.Microsecond
		if got := h.Percentile(p); got < exact || got > exact*5/4+2*time.Microsecond {
			t.Errorf("percentile %v is %v", p, got)
		}
	}
	if latencyBucket(time.Hour) != latencyBuckets-1 || (&Histogram{}).Percentile(50) != 0 {
		t.Error("the ends are wrong")
	}
}
