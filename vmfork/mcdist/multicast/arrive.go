package multicast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func newFetch(r *Receiver, o *origin, id ID, accept func(w welcome) (Sink, error)) *Fetch {
	return &Fetch{
		receiver: r, origin: o, id: id, accept: accept, begun: time.Now(),
		open: &opener{key: func(c suite) []byte { return r.keys.groupKey(c, o.end, id) }},
		done: make(chan struct{}), welcome: make(chan struct{}), kick: make(chan struct{}, 1),
		wanted: make(map[int64]int), coming: make(map[uint32]*assembly),
	}
}

// receive is the goroutine to which the group's packets come.
func (f *Fetch) receive() {
	for {
		if err := f.socket.receive(f.take); errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case <-f.done:
			return
		default:
		}
	}
}

func (f *Fetch) take(p []byte, _ netip.AddrPort, at time.Time) {
	f.receiver.tally.packetsReceived.Add(1)
	f.receiver.tally.multicastTaken.Add(uint64(len(p)))
	wire := len(p) + wireHeaders
	if len(p) > 0 && p[0] == pieceMark {
		var pieces int
		if p, pieces = f.joiner.join(p); p == nil {
			return
		}
		wire = len(p) + pieces*(pieceHeader+wireHeaders)
	}
	if err := f.group(p, wire, at); err != nil {
		f.receiver.tally.refused(err)
	}
}

// group takes one packet of the group, which took that many bytes of the link.
func (f *Fetch) group(p []byte, wire int, at time.Time) error {
	h, err := parseHeader(p)
	if err != nil || h.way != toGroup || h.from != f.origin.end {
		return errForeign
	}
	m, err := f.open.open(h, p)
	if err != nil {
		return err
	}
	now := time.Now()
	f.mu.Lock()
	if f.heard.IsZero() {
		f.changed()
	}
	f.heard = now
	f.report.seen = max(f.report.seen, h.counter+1)
	f.report.packets++
	f.report.bytes += uint64(wire)
	f.mu.Unlock()
	if len(m) == 0 {
		return errMalformed
	}
	switch message(m[0]) {
	case messageData:
		return f.data(m, true, at, now)
	case messageBeacon:
		b, err := parseBeacon(m)
		if err != nil {
			return err
		}
		f.beacon(b, now)
		return nil
	}
	return errMalformed
}

// beacon learns that all batches so far were sent whole, if nothing is left to be sent.
func (f *Fetch) beacon(b beacon, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.flags&flagIdle == 0 {
		return
	}
	f.idle++
	f.behind = later(f.behind, b.batch)
	f.changed()
	if len(f.wanted) > 0 {
		f.kicked()
	}
}

// later returns the higher of two batch numbers, which may wrap.
func later(a, b uint32) uint32 {
	if int32(b-a) > 0 {
		return b
	}
	return a
}

func (f *Fetch) kicked() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

const (
	// maxComing bounds the batches that are being put together: 32 MB. The oldest makes room for a new one; what it had
	// is asked for again.
	maxComing = 256
	// forgetAfter is how long nothing has come of a batch that nobody waits for until it is forgotten.
	forgetAfter = 2 * time.Second
)

// data takes a symbol of a batch.
func (f *Fetch) data(m []byte, multicast bool, at, now time.Time) error {
	d, err := parseData(m)
	if err != nil {
		return err
	}
	select {
	case <-f.welcome: // an object may come so soon that its welcome, to the other socket, was not looked at yet
	case <-f.done:
		return nil
	}
	f.mu.Lock()
	if f.err != nil {
		f.mu.Unlock()
		return nil
	}
	if multicast {
		if now.Sub(f.active) >= 2*reportEvery {
			f.kicked() // whoever reports has been resting
		}
		f.active = now
		f.delay.measure(d.stamp, at, now)
		if d.flags&flagUrgent == 0 {
			f.behind = later(f.behind, d.batch)
		}
	}
	a := f.coming[d.batch]
	if a == nil {
		if a, err = assemble(&d, f.blocks); err != nil {
			f.mu.Unlock()
			return err
		}
		if !f.lacks(a.runs) {
			a.free()
			f.mu.Unlock()
			return nil
		}
		if len(f.coming) >= maxComing {
			f.dropOldest()
		}
		f.coming[d.batch] = a
	}
	if a.whole {
		f.mu.Unlock()
		return nil
	}
	complete, err := a.add(&d)
	a.last = int64(now.Sub(f.begun))
	a.whole = complete // it stays in the map until its blocks are known to be here, or they would be asked for again
	f.mu.Unlock()
	if err != nil || !complete {
		return err
	}
	err = f.complete(a)
	f.mu.Lock()
	if f.coming[d.batch] == a {
		delete(f.coming, d.batch)
	}
	f.mu.Unlock()
	a.free()
	if err != nil {
		f.end(err)
	}
	return nil
}

// lacks reports whether any of some blocks is not here. The lock is held.
func (f *Fetch) lacks(runs []run) bool {
	for _, r := range runs {
		for b := r.first; b < r.first+r.n; b++ {
			if !f.have.has(b) {
				return true
			}
		}
	}
	return false
}

func (f *Fetch) dropOldest() {
	var oldest *assembly
	for _, a := range f.coming {
		if !a.whole && (oldest == nil || a.last < oldest.last) {
			oldest = a
		}
	}
	if oldest != nil {
		delete(f.coming, oldest.number)
		oldest.free()
	}
}

// complete gives the blocks of a batch to the sink.
func (f *Fetch) complete(a *assembly) error {
	var buffer contentBuffer
	if a.flags&flagCompressed != 0 {
		buffer = contents.Get().(contentBuffer)
		defer contents.Put(buffer)
	} else {
		buffer = a.buffer
	}
	if used := a.k - a.symbols; used > 0 {
		f.receiver.tally.parity.Add(uint64(used))
	}
	p, err := a.unpack(buffer[:])
	if err != nil {
		return err
	}
	for _, r := range a.runs {
		if err := f.sink.Arrive(p[:r.n*slice.BlockSize], r.first); err != nil {
			return fmt.Errorf("give blocks to the sink: %w", err)
		}
		p = p[r.n*slice.BlockSize:]
	}
	f.receiver.tally.blocks.Add(uint64(count(a.runs)))
	if a.flags&flagPushed != 0 {
		f.receiver.tally.pushed.Add(uint64(count(a.runs)))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range a.runs {
		for b := r.first; b < r.first+r.n; b++ {
			if f.have.add(b) {
				f.arrived++
			}
		}
	}
	f.changed()
	return nil
}
