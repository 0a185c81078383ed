package multicast

import (
	"math"
	"time"
)

const (
	// reportEvery is how often a member reports while data comes, and heartbeat while none does.
	reportEvery = 10 * time.Millisecond
	heartbeat   = time.Second
	// lackAgain is the least time after which a batch is said to be short again.
	lackAgain = 25 * time.Millisecond
	// settleTime is how long after its last symbol a batch is taken to be short, if nothing else says so.
	settleTime = 40 * time.Millisecond
)

// tend reports to the origin: how much comes, and what is lacking.
func (f *Fetch) tend() {
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-f.done:
			return
		case <-timer.C:
		case <-f.kick:
			if since := time.Since(last); since < reportEvery/4 {
				timer.Reset(reportEvery/4 - since)
				continue
			}
		}
		now := time.Now()
		r, busy := f.makeReport(now)
		if busy || now.Sub(last) >= heartbeat-reportEvery {
			if !busy {
				r.flags |= flagPong
			}
			f.receiver.send(f.origin, func(p []byte) []byte { return appendReport(p, f.id, &r) })
			last = now
		}
		if busy {
			timer.Reset(reportEvery)
		} else {
			timer.Reset(heartbeat)
		}
	}
}

// makeReport makes a report, and says whether there is anything in it but a sign of life.
func (f *Fetch) makeReport(now time.Time) (r report, busy bool) {
	again := max(lackAgain, 2*f.origin.patience(0))
	f.mu.Lock()
	defer f.mu.Unlock()
	r = f.report
	r.stamp = microseconds(now)
	r.queue, r.lag = f.delay.take()
	since := int64(now.Sub(f.begun))
	for number, a := range f.coming {
		if a.whole {
			continue
		}
		quiet := time.Duration(since - a.last)
		if !f.waitsFor(a.runs) {
			if quiet > forgetAfter {
				delete(f.coming, number)
				a.free()
			}
			continue
		}
		over := int32(f.behind-number) > 0 && a.flags&flagUrgent == 0
		if !over && quiet < settleTime || a.asked != 0 && time.Duration(since-a.asked) < again {
			continue
		}
		if a.flags&flagUrgent != 0 || a.asked != 0 && quiet > forgetAfter {
			// Nobody sends more of these: their blocks are asked for instead.
			delete(f.coming, number)
			a.free()
			f.changed()
			continue
		}
		if len(r.naks) < maxNaks {
			a.asked = since
			r.naks = append(r.naks, nak{number, byte(a.short())})
		}
	}
	return r, len(r.naks) > 0 || now.Sub(f.active) < 2*reportEvery
}

// waitsFor reports whether a prefetch waits for any of some blocks. The lock is held.
func (f *Fetch) waitsFor(runs []run) bool {
	for _, r := range runs {
		for b := r.first; b < r.first+r.n; b++ {
			if f.wanted[b] > 0 {
				return true
			}
		}
	}
	return false
}

// delay measures by how much packets come later than the fastest, and how long they wait in the socket. Clocks of two
// hosts differ, so only differences count; they drift, so the fastest is forgotten after some time. It has no lock.
type delay struct {
	fastest, next uint32 // of this period, and of the one that begins with it
	since         time.Time
	queue, lag    uint32 // the least since the last report
	any           bool
}

// fastestFor is how long the fastest packet counts. Two clocks drift by 100 µs in one second at most.
const fastestFor = 10 * time.Second

// measure takes a packet that was sealed at stamp, and came to the host at a time that is not later than now.
func (d *delay) measure(stamp uint32, at, now time.Time) {
	late := microseconds(at) - stamp
	switch {
	case d.since.IsZero():
		d.fastest, d.next, d.since = late, late, now
	case now.Sub(d.since) > fastestFor:
		d.fastest, d.next, d.since = d.next, late, now
	}
	if int32(late-d.next) < 0 {
		d.next = late
	}
	if int32(late-d.fastest) < 0 {
		d.fastest = late
	}
	queue, lag := late-d.fastest, uint32(max(0, now.Sub(at).Microseconds()))
	if !d.any {
		d.queue, d.lag, d.any = queue, lag, true
	}
	d.queue, d.lag = min(d.queue, queue), min(d.lag, lag)
}

// take returns the least by which packets since the last call were late, and for which they waited, µs.
func (d *delay) take() (queue, lag uint32) {
	if !d.any {
		return 0, 0
	}
	d.any = false
	return min(d.queue, math.MaxInt32), min(d.lag, math.MaxInt32)
}
