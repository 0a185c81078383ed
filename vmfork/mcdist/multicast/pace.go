package multicast

import (
	"math"
	"slices"
	"sync"
	"time"
)

// pace says how fast bulk may send. It is one for all groups of a sender, because they share its link. It has a lock of
// its own, which is taken last.
//
// The paper raises the rate linearly and scales it back to three quarters of the mean of what clients report when a loss
// shows (section 3.5). Here, too, the receivers' rates are what the sender falls back to. But a loss alone says nothing:
// a network that loses 5 % at every rate would be driven slower and slower. What shows that a rate is too high is that
// packets queue, so that they come later and later, or that more get lost than at lower rates.
type pace struct {
	mu    sync.Mutex
	limit float64   // bytes/s on the wire
	free  time.Time // when what was sent is off the wire, at that rate
	busy  time.Time // since when there was always something to send; zero if there is not
	held  time.Time // when the limit last kept bulk from sending
	total uint64    // bytes sent

	probing bool // it has never been too fast yet: doubles
	decided time.Time
	cut     time.Time // when it was last lowered
	raised  bool      // since then
	most    float64   // the most that most members have received at since then; bytes/s
	best    float64   // the same before then
	worst   float64   // loss of the worst receiver that counts
	rough   time.Time // when that was last worth mentioning
	tight   bool      // somebody loses something because it is too fast
	flows   map[*flow]struct{}
}

// flow is what is known of one member of a group.
type flow struct {
	seen, packets, bytes uint64 // of the report before
	stamp                uint32
	noted                time.Time // when it came
	at                   time.Time // when a report last said something about rates
	sent, total          uint64    // bytes that the sender had sent to the group, and in all

	begun   bool
	rate    float64 // that it receives at, if everything sent were of this group; bytes/s
	recent  float64 // loss, over some reports
	usual   float64 // loss, over many
	base    float64 // loss at rates that are not too high
	next    float64 // the same, of the period that has begun
	since   time.Time
	cutFrom float64   // limit before it was lowered because of losses; 0 if it was not
	cutRate float64   // rate then
	cutAt   time.Time // when it lost too much last
	queue   float64   // seconds
	choked  bool      // the rate was too high for it at its last report
	alone   int       // how often in turn that was so while it was not for most others
	lagging time.Time
}

const (
	initialRate = 25e6
	minRate     = 64e3
	maxRate     = 2e9
	// decideEvery is about how often the rate changes, and over how long a receiver's rate is measured.
	decideEvery = 20 * time.Millisecond
	// maxQueue is by how much packets may come later than the fastest before the rate counts as too high. Less than this
	// cannot be told from a receiver that was not scheduled.
	maxQueue = 0.012
	// maxLag is how many bytes may wait in a receiver's socket: a part of its buffer, for it may not be scheduled for some
	// time. How long they wait is no sign by itself: on a busy host that may be 20 ms although it follows easily.
	maxLag = receiveBuffer / 8
	// catchUp is how much sending may be made up for when the sender was not scheduled: what may queue anyway.
	catchUp = 12 * time.Millisecond
	// wireHeaders are Ethernet's, IP's and UDP's.
	wireHeaders = 14 + 20 + 8
	// baseFor is how long the least loss counts.
	baseFor = 10 * time.Second
	// aloneLimit is how often a receiver must be the only one that the rate is too high for until it does not count any
	// more, and slowAfter how long it then has to show that it takes at least half of what the others do.
	aloneLimit = 8
	slowAfter  = 1500 * time.Millisecond
	// lossy is the loss from which on something is done about it before it is known what was lost.
	lossy = 0.003
	// cleanAfter is how long nothing was lost until packets are long (again).
	cleanAfter = time.Second
)

func newPace() *pace {
	return &pace{limit: initialRate, probing: true, flows: make(map[*flow]struct{})}
}

func (p *pace) rate() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limit
}

// wait returns how long bulk has to wait before it sends again.
func (p *pace) wait(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ahead := p.free.Sub(now); ahead > 0 {
		p.held = now
		return max(ahead, time.Millisecond/2)
	}
	return 0
}

// owes reports whether the rate is what bulk waits for.
func (p *pace) owes() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.busy.IsZero()
}

// spend accounts for packets that are being sent.
func (p *pace) spend(packets, bytes int) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy.IsZero() {
		p.busy = now
	}
	p.total += uint64(bytes)
	if oldest := now.Add(-catchUp); p.free.Before(oldest) {
		p.free = oldest
	}
	p.free = p.free.Add(time.Duration(float64(bytes+packets*wireHeaders) / p.limit * 1e9))
}

// rest notes that there is nothing to send.
func (p *pace) rest(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = time.Time{}
	if p.free.Before(now) {
		p.free = now // what was not used is not made up for
	}
}

// reported takes a member's report; sent is how many bytes were sent to the group so far.
func (p *pace) reported(f *flow, r *report, sent uint64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	elapsed := float64(r.stamp-f.stamp) / 1e6
	if !f.begun || elapsed > 5 || r.seen < f.seen || r.packets < f.packets || r.bytes < f.bytes {
		// The first, or the first after a rest.
		f.begun = true
		f.note(r, sent, p.total, now)
		return
	}
	expected := float64(r.seen - f.seen)
	if elapsed < decideEvery.Seconds()*3/4 || expected < 8 {
		return // too little to say anything; the next report has it all
	}
	loss := min(1, max(0, 1-float64(r.packets-f.packets)/expected))
	if p.busy.IsZero() || p.busy.After(f.noted) {
		// Not all of that time was there something to send: it says something about losses, and nothing about rates.
		f.usual += (loss - f.usual) * 0.1
		p.lose(max(p.worst, f.usual), now)
		f.note(r, sent, p.total, now)
		return
	}
	rate := float64(r.bytes-f.bytes) / elapsed
	total := float64(p.total - f.total)
	if total > 0 && sent > f.sent {
		rate *= max(1, total/float64(sent-f.sent))
	}
	sending := total / elapsed
	if f.at.IsZero() {
		f.rate, f.recent, f.usual = rate, loss, loss
	}
	f.rate += (rate - f.rate) * 0.4
	f.recent += (loss - f.recent) * 0.3
	f.queue = float64(r.queue) / 1e6
	f.least(now)
	lag := float64(r.lag) / 1e6
	f.choked = f.queue > maxQueue || lag*sending > maxLag
	if !f.choked {
		f.choked = p.losesMore(f, expected, now)
	}
	if p.probing && f.queue > maxQueue/4 && rate < 0.8*sending {
		// A queue has only begun to grow, but it will grow fast, for the rate was just raised by half.
		f.choked, f.rate = true, rate
	}
	if !f.choked { // what is lost because of the rate is no reason for parity, which would be even more to send
		f.usual += (loss - f.usual) * 0.1
	}
	f.at = now
	f.note(r, sent, p.total, now)
	p.flows[f] = struct{}{}
	if now.Sub(p.decided) >= decideEvery {
		p.decide(now)
	}
}

// least keeps the least loss of the last 10 to 20 s. What a receiver loses at any rate shows whenever the rate is not too
// high. It must not follow what is lost because of the rate, or a sender that is too fast would get used to it.
func (f *flow) least(now time.Time) {
	switch {
	case f.since.IsZero():
		f.base, f.next, f.since = min(f.recent, 0.35), f.recent, now
	case now.Sub(f.since) > baseFor:
		f.base, f.next, f.since = f.next, f.recent, now
	}
	f.base, f.next = min(f.base, f.recent), min(f.next, f.recent)
}

// losesMore reports whether a receiver loses more than usual because of the rate; expected is how many packets its report
// is about. If the rate was lowered for that reason, and the receiver then gets less and loses as much, the rate was not
// the reason: the network has become worse.
func (p *pace) losesMore(f *flow, expected float64, now time.Time) bool {
	if f.recent <= f.base*1.5+0.04+0.5/math.Sqrt(expected) {
		return false
	}
	if f.cutFrom == 0 || now.Sub(f.cutAt) > time.Second {
		f.cutFrom, f.cutRate = p.limit, f.rate
	}
	f.cutAt = now
	if p.limit < 0.6*f.cutFrom && f.rate < 0.75*f.cutRate {
		f.base, f.next, f.cutFrom = f.recent, f.recent, 0
		return false
	}
	return true
}

func (f *flow) note(r *report, sent, total uint64, now time.Time) {
	f.seen, f.packets, f.bytes, f.stamp = r.seen, r.packets, r.bytes, r.stamp
	f.sent, f.total, f.noted = sent, total, now
}

// decide changes the rate after what the members have reported lately.
func (p *pace) decide(now time.Time) {
	p.decided = now
	var all, choked []*flow
	worst := 0.0
	for f := range p.flows {
		if now.Sub(f.at) > 200*time.Millisecond {
			if now.Sub(f.at) > 5*time.Second {
				delete(p.flows, f)
			}
			continue
		}
		if !f.lagging.IsZero() {
			continue
		}
		all = append(all, f)
		if f.choked {
			choked = append(choked, f)
		}
		worst = max(worst, min(f.usual, f.base*1.5+0.02))
	}
	if len(all) == 0 {
		return
	}
	p.lose(worst, now)
	p.tight = slices.ContainsFunc(choked, func(f *flow) bool { return f.recent >= lossy })
	few := len(choked) <= len(all)/2
	for _, f := range all {
		switch {
		case !few || !f.choked && f.alone < aloneLimit:
			f.alone = max(0, f.alone-1)
		case f.choked && len(all) > 1:
			if f.alone += 2; f.alone >= 2*aloneLimit {
				f.lagging, f.alone = now, 0
			}
		}
	}
	p.most = max(p.most, quarter(all))
	// The rate is what all but a quarter can follow.
	if len(choked) > len(all)/4 {
		// By no more than half at once: a host that was not scheduled for some time reports a rate that is too low.
		p.lower(max(quarter(choked)*0.92, p.limit/2), now)
		return
	}
	if len(choked) > 0 {
		// Few, and others each time perhaps. One that never follows will not count for long.
		p.lower(p.limit*0.95, now)
		return
	}
	if p.busy.IsZero() || now.Sub(p.busy) < decideEvery/2 || now.Sub(p.held) > decideEvery {
		return // there was not as much to send, or the processor was what limited it
	}
	switch quiet := now.Sub(p.cut); {
	case p.probing:
		p.limit *= 1.5
	case p.limit < 0.9*p.best:
		p.limit *= 1.15
	case quiet > 2*time.Second:
		p.limit *= 1.08
	case quiet > 500*time.Millisecond:
		p.limit *= 1.04
	default:
		p.limit *= 1.02
	}
	p.limit, p.raised = min(p.limit, maxRate), true
}

// quarter is the rate that all but a quarter of members receive at, or would if the network lost nothing.
func quarter(flows []*flow) float64 {
	rates := make([]float64, 0, len(flows))
	for _, f := range flows {
		rates = append(rates, f.rate/(1-min(f.base, 0.1)))
	}
	slices.Sort(rates)
	return rates[len(rates)/4]
}

// lower lowers the rate. From there it comes back soon to what the members received at before, for often it is only a busy
// host that was not scheduled. If that has become too much, they do not receive at that rate again, and it is forgotten when
// the rate has to be lowered for the second time.
func (p *pace) lower(to float64, now time.Time) {
	if p.raised {
		p.best, p.most, p.raised = p.most, 0, false
	}
	p.limit = min(p.limit, max(to, minRate))
	p.probing, p.cut = false, now
}

// tooSlow returns the members that receive less than half of what is sent, and have done so for some time.
func (p *pace) tooSlow(src *source, now time.Time) (slow []*member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range src.members {
		f := &m.flow
		if f.lagging.IsZero() || now.Sub(f.lagging) < slowAfter {
			continue
		}
		if f.choked && f.rate < p.limit/2 {
			delete(p.flows, f)
			slow = append(slow, m)
			continue
		}
		f.lagging = time.Time{} // it follows after all
	}
	return slow
}

// counts reports whether a member has a say in what is sent to all.
func (p *pace) counts(f *flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f.lagging.IsZero()
}

// forget leaves a member out of account.
func (p *pace) forget(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flows, f)
}

// loss is the part of packets that the worst receiver loses.
func (p *pace) loss() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.worst
}

// lose notes the loss of the worst receiver. The lock is held.
func (p *pace) lose(worst float64, now time.Time) {
	if p.worst = worst; worst >= lossy {
		p.rough = now
	}
}

// clean reports whether packets may be long: receivers have just reported, none of them loses anything because of the rate, and
// nothing has been lost for some time. If the link has become narrow most long ones would be lost, and nobody could report.
func (p *pace) clean(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.tight && now.Sub(p.decided) < 5*decideEvery && now.Sub(p.rough) > cleanAfter
}

// parity is how many parity symbols are sent with a batch of k at once: what is lost on average, and one standard
// deviation more. Without losses it is none. More would spare some reports, and cost everybody's link.
func (p *pace) parity(k int) int {
	loss := p.loss()
	if loss < lossy {
		return 0
	}
	return min(k/2+1, int(math.Ceil(float64(k)*loss/(1-loss)+math.Sqrt(float64(k)*loss))))
}

// margin is how many symbols more are sent than are lacking, because some will be lost again.
func (p *pace) margin(n int) int {
	loss := p.loss()
	if loss < lossy {
		return 0
	}
	return int(math.Ceil(float64(n)*loss + math.Sqrt(float64(n)*loss)))
}
