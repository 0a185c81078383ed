package multicast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// receive is the goroutine to which all requests come.
func (s *Sender) receive() {
	for {
		if err := s.socket.receive(s.take); errors.Is(err, net.ErrClosed) {
			return
		}
		// Any other error tells of one packet that was sent before (ECONNREFUSED) or of memory that is short now.
		select {
		case <-s.done:
			return
		default:
		}
	}
}

// take opens one packet and does what it asks for.
func (s *Sender) take(p []byte, from netip.AddrPort, _ time.Time) {
	s.tally.packetsReceived.Add(1)
	s.tally.unicastTaken.Add(uint64(len(p)))
	h, err := parseHeader(p)
	if err != nil || h.way != request {
		s.tally.refused(errForeign)
		return
	}
	s.mu.Lock()
	known := s.peers[h.from]
	s.mu.Unlock()
	p1 := known
	if p1 == nil {
		p1 = s.newPeer(h.from)
	}
	message, err := p1.open.open(h, p)
	if err != nil {
		s.tally.refused(err)
		return
	}
	if known == nil && !s.admit(p1) {
		s.tally.refused(errForeign)
		return
	}
	if err := s.handle(p1, from, h.counter, message); err != nil {
		s.tally.refused(err)
	}
}

func (s *Sender) newPeer(e end) *peer {
	return &peer{
		end:  e,
		open: &opener{key: func(c suite) []byte { return s.keys.pairKey(c, request, e, s.self) }},
		out:  newSealer(reply, s.self, func(c suite) []byte { return s.keys.pairKey(c, reply, s.self, e) }),
	}
}

// admit keeps a session, for as long as the sender lives: if it were forgotten, its packets could be replayed. So there
// must not be too many; a host has one for as long as its daemon lives.
func (s *Sender) admit(p *peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened[p.host] == maxSessions || len(s.peers) == maxMembers {
		return false
	}
	s.opened[p.host]++
	s.peers[p.end] = p
	return true
}

func (s *Sender) handle(p *peer, from netip.AddrPort, counter uint64, message1 []byte) error {
	id, err := idOf(message1)
	if err != nil {
		return err
	}
	s.mu.Lock()
	p.address = from
	src := s.sources[id]
	if src == nil {
		s.mu.Unlock()
		if message(message1[0]) != messageLeave {
			s.refuse(p, id, ErrUnknown)
		}
		return nil
	}
	if message(message1[0]) == messageLeave {
		if m := src.members[p.end]; m != nil && m.since < counter { // or it has joined again since
			delete(src.members, p.end)
			s.pace.forget(&m.flow)
		}
		s.mu.Unlock()
		return nil
	}
	if reason := src.moved[p.end]; reason != nil {
		s.mu.Unlock()
		s.refuse(p, id, reason)
		return nil
	}
	m := src.members[p.end]
	if m == nil {
		// Also one that was dropped because it was silent, and has only been asleep.
		if len(src.members) == maxMembers {
			s.mu.Unlock()
			s.refuse(p, id, ErrTooMany)
			return nil
		}
		m = &member{peer: p, since: counter, joined: src.out.counter.Load()}
		src.members[p.end] = m
		s.expected(src, p.host)
	}
	m.heard = time.Now()
	s.mu.Unlock()

	switch message(message1[0]) {
	case messageJoin:
		s.mu.Lock()
		m.since = max(m.since, counter)
		s.mu.Unlock()
		return s.joined(src, m, message1)
	case messageWant:
		w, err := parseWant(message1)
		if err != nil {
			return err
		}
		runs, err := parseRuns(w.runs, src.blocks, maxWant)
		if err != nil {
			return err
		}
		s.wanted(src, m, w, runs)
	case messageReport:
		r, err := parseReport(message1)
		if err != nil {
			return err
		}
		s.reported(src, m, &r)
	default:
		return errMalformed
	}
	return nil
}

// expected ends the waiting for those who shall get an object, or begins it. The sender's lock is held.
func (s *Sender) expected(src *source, host uint16) {
	if len(src.expects) == 0 {
		return
	}
	delete(src.expects, host)
	switch {
	case len(src.expects) == 0:
		src.hold = time.Time{}
	case src.hold.IsZero():
		src.hold = time.Now().Add(gather)
	}
	s.wakeBulk()
}

// joined tells a new member what it has joined, and the group that it is there: a member that hears the one and not the
// other is deaf.
func (s *Sender) joined(src *source, m *member, message []byte) error {
	stamp, err := parseStamped(message)
	if err != nil {
		return err
	}
	w := welcome{size: src.size, echo: stamp}
	if src.object {
		w.flags = flagObject
	}
	s.answer(m.peer, func(p []byte) []byte { return appendWelcome(p, src.id, w) })
	s.sendBeacon(src, 0)
	if src.object {
		s.sendObject(src, m)
	}
	return nil
}

// sendObject sends a new member what it will ask for anyway: all of the object that was sent before it joined.
func (s *Sender) sendObject(src *source, m *member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.given {
		return // the join was only repeated
	}
	m.given = true
	for b := range src.blocks {
		if src.sent.get(b) <= m.joined {
			src.queue.add(b)
		}
	}
	s.wakeBulk()
}

func (s *Sender) refuse(p *peer, id ID, reason error) {
	s.answer(p, func(b []byte) []byte { return appendRefuse(b, id, reason) })
}

// answer sends one message to one receiver.
func (s *Sender) answer(p *peer, message func(p []byte) []byte) {
	buffer := message(make([]byte, headerSize, 256))
	sealed, _ := p.out.seal(buffer)
	s.mu.Lock()
	to := p.address
	s.mu.Unlock()
	s.tally.packetsSent.Add(1)
	s.tally.unicastSent.Add(uint64(len(sealed)))
	s.socket.send(sealed, len(sealed), to) // a lost answer and one that was not sent are the same to the receiver
}

// sendBeacon tells a group that the sender is there and what it has sent.
func (s *Sender) sendBeacon(src *source, flags byte) {
	s.mu.Lock()
	next := src.next
	s.mu.Unlock()
	p := appendBeacon(make([]byte, headerSize, 64), beacon{next, flags, microseconds(time.Now())})
	sealed, _ := src.out.seal(p)
	s.tally.packetsSent.Add(1)
	s.tally.multicastSent.Add(uint64(len(sealed)))
	s.socket.send(sealed, len(sealed), src.group)
}

// wanted takes a request for blocks. Requests for what is on its way are ignored (lockstep detection, section 3.5). The
// paper ignores them for some time; here a receiver says up to where it has seen the group's packets, so that it is
// known whether a block is still to come, or was lost.
func (s *Sender) wanted(src *source, m *member, w want, runs []run) {
	s.tally.requests.Add(uint64(count(runs)))
	var serve []run
	s.mu.Lock()
	for _, r := range runs {
		for b := r.first; b < r.first+r.n; b++ {
			sent := src.sent.get(b)
			if w.attempt == 0 && sent > max(w.seen, m.joined) || !w.urgent && src.queue.has(b) {
				s.tally.lockstep.Add(1)
				continue
			}
			if !w.urgent {
				src.queue.add(b)
				continue
			}
			serve = extend(serve, b)
			if w.attempt == 0 {
				src.queue.remove(b) // the answer is for all
				src.sent.set(run{b, 1}, inFlight)
			}
		}
	}
	if w.urgent && s.config.Push {
		for _, r := range serve {
			src.push.add(r.first + r.n)
		}
	}
	s.wakeBulk()
	s.mu.Unlock()
	if len(serve) == 0 {
		return
	}
	s.tally.urgent.Add(uint64(count(serve)))
	job := urgentJob{src: src, runs: serve, attempt: int(w.attempt)}
	if w.attempt > 0 {
		job.to = m.peer // only this one lacks it (the paper's end-game)
	}
	select {
	case s.urgent <- job:
	default:
		s.notSent(src, serve) // nobody can read them fast enough: they are asked for again
	}
}

// reported takes a receiver's report.
func (s *Sender) reported(src *source, m *member, r *report) {
	now := time.Now()
	if r.flags&flagPong != 0 {
		s.answer(m.peer, func(p []byte) []byte { return appendStamped(p, messagePong, src.id, r.stamp) })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pace.reported(&m.flow, r, src.bytes.Load(), now)
	if !s.pace.counts(&m.flow) {
		return // the others shall not wait for what it alone lacks
	}
	for _, n := range r.naks {
		s.lacking(src, n, r.seen, now)
	}
}

// lacking notes that somebody needs more symbols of a batch. Reports that were sent before the last repair could arrive
// are out of date.
func (s *Sender) lacking(src *source, n nak, seen uint64, now time.Time) {
	b := src.keptBatch(n.batch)
	if b == nil || b == src.current || b.repaired >= seen {
		return
	}
	if b.short == 0 {
		if len(src.repairs) == 0 {
			wait := repairGather
			if len(src.members) == 1 {
				wait = 0
			}
			src.due = now.Add(wait)
		}
		src.repairs = append(src.repairs, b)
	}
	b.short = max(b.short, int(n.short))
	s.wakeBulk()
}

// keptBatch finds a batch that parity can still be made for. The sender's lock is held.
func (src *source) keptBatch(number uint32) *batch {
	for i := len(src.kept) - 1; i >= 0; i-- {
		if src.kept[i].number == number {
			return src.kept[i]
		}
	}
	return nil
}

// repairGather is how long reports of losses are gathered, so that the worst of them decides what is sent.
const repairGather = 4 * time.Millisecond

// tend drops members that are silent, and sends beacons to groups that are quiet.
func (s *Sender) tend() {
	tick := time.NewTicker(beaconEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case now := <-tick.C:
			s.tendOnce(now)
		}
	}
}

// beaconEvery is how often a group hears of its sender when there is nothing else.
const beaconEvery = 500 * time.Millisecond

func (s *Sender) tendOnce(now time.Time) {
	type gone struct {
		src *source
		m   *member
		err error
	}
	var left []gone
	var beacons []*source
	s.mu.Lock()
	for _, src := range s.order {
		for e, m := range src.members {
			if now.Sub(m.heard) > memberSilence {
				delete(src.members, e)
				s.pace.forget(&m.flow)
				left = append(left, gone{src, m, ErrSilent})
			}
		}
		for _, m := range s.pace.tooSlow(src, now) {
			delete(src.members, m.end)
			src.moved[m.end] = ErrSlow
			left = append(left, gone{src, m, ErrSlow})
		}
		if len(src.members) > 0 && src.quiet() {
			beacons = append(beacons, src)
		}
	}
	s.mu.Unlock()
	for _, src := range beacons {
		s.sendBeacon(src, flagIdle)
	}
	for _, g := range left {
		s.tally.moved.Add(1)
		s.refuse(g.m.peer, g.src.id, g.err)
		if s.config.Moved != nil {
			s.config.Moved(g.src.id, int(g.m.host), fmt.Errorf("host %d in the group of %s: %w", g.m.host, g.src.id, g.err))
		}
	}
}

// quiet reports whether bulk has nothing to send for the source. The sender's lock is held.
func (src *source) quiet() bool {
	return src.current == nil && len(src.repairs) == 0 && src.queue.len() == 0 && src.pushed.len() == 0 && src.hold.IsZero()
}
