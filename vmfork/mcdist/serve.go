package mcdist

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const (
	helloPatience = 10 * time.Second
	maxAnswers    = 64   // urgent requests of one host that are worked on at once
	maxFeeds      = 1024 // requests in bulk of one host that wait
	maxRelay      = 4096 // blocks of one request to a relay
	maxAsks       = 1024 // objects that one host waits for
	maxSlow       = 16
	gateTime      = 2 * time.Millisecond
	byeTime       = 200 * time.Millisecond
)

// store is what blocks are read from: a source that is served, or a fetch that relays.
type store interface {
	read(dst []byte, first int64) error
}

// inbound is a stream that another host has dialed, for its requests.
type inbound struct {
	node   *Node
	from   int
	lane   int
	conn   net.Conn
	packer *packer

	writing sync.Mutex
	slow    chan struct{} // a token for each question that takes its time
	early   atomic.Int32  // requests to a relay that has not heard of the slice yet

	mu    sync.Mutex // of a bulk lane
	feeds map[uint32]*feed
	ready []*feed // that have something to send, in the order in which it came
	more  *sync.Cond
	ended bool
	asks  map[uint32]ID
}

// Accept takes a stream that another host's Node has dialed. It returns at once.
func (n *Node) Accept(conn net.Conn, from int) {
	in := &inbound{node: n, from: from, conn: conn, feeds: make(map[uint32]*feed), asks: make(map[uint32]ID), slow: make(chan struct{}, maxSlow)}
	in.more = sync.NewCond(&in.mu)
	if from < 0 || from >= len(n.config.Hosts) {
		conn.Close()
		return
	}
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		go in.bye()
		return
	}
	if in.packer = n.packers[from]; in.packer == nil {
		in.packer = &packer{}
		n.packers[from] = in.packer
	}
	n.in[in] = struct{}{}
	n.running.Go(in.serve)
	n.mu.Unlock()
}

func (in *inbound) serve() {
	r := newFrameReader(in.conn)
	err := in.greet(r)
	if err == nil {
		err = in.requests(r)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		// Whoever dialed dials again; a reason that stays is one that it has to be told.
		in.write(appendRefuse(nil, 0, refuseVersion, err.Error()))
	}
	in.close()
}

func (in *inbound) greet(r *frameReader) error {
	_ = in.conn.SetReadDeadline(time.Now().Add(helloPatience))
	f, err := r.next()
	if errors.Is(err, errFrame) {
		return err
	} else if err != nil {
		return io.EOF
	}
	if in.lane, err = f.hello(); err != nil {
		return err
	}
	_ = in.conn.SetReadDeadline(time.Time{})
	if in.lane == bulk && !in.node.start(in.feed) {
		return io.EOF
	}
	return nil
}

// requests reads requests until the stream ends. Urgent ones are answered each by a goroutine, so that one that has to be
// read from a disk keeps no other waiting.
func (in *inbound) requests(r *frameReader) error {
	working := make(chan struct{}, maxAnswers)
	for {
		f, err := r.next()
		if errors.Is(err, errFrame) {
			return err
		} else if err != nil {
			return io.EOF
		}
		in.node.count.received(ByUnicast, in.lane, headerSize+len(f.body), 0)
		if err := in.request(&f, working); err != nil {
			return err
		}
	}
}

func (in *inbound) request(f *frame, working chan struct{}) error {
	switch f.kind {
	case kindWant:
		id, spans, err := f.want()
		if err != nil {
			return err
		}
		if f.share > 0 {
			in.packer.rate.Store(int64(f.share))
		}
		k, number := key{id, f.flags&flagObject != 0}, f.number
		if in.lane == bulk {
			return in.enter(number, k, spans, f.flags&flagRelay != 0)
		}
		in.node.gate.enter()
		working <- struct{}{}
		if !in.node.start(func() {
			in.answer(number, k, spans)
			<-working
		}) {
			in.node.gate.leave()
			return io.EOF
		}
		return nil
	case kindCancel:
		in.drop(f.number)
		return nil
	case kindAsk:
		return in.ask(f)
	case kindOffer:
		return in.offered(f)
	case kindProbe:
		return in.probed(f)
	case kindWay:
		return in.tellWay(f)
	default:
		return fmt.Errorf("%w: kind %d is no request", errFrame, f.kind)
	}
}

// room is what an answer is made in.
type room struct{ frames, packed []byte }

var rooms = sync.Pool{New: func() any {
	return &room{make([]byte, 0, 2*headerSize+maxBody), make([]byte, 0, packSize)}
}}

// answer answers an urgent request. One page, or one run of pages, is one write. It leaves the gate when all is read: a host
// that does not take its answer must not hold up others' bulk.
func (in *inbound) answer(number uint32, k key, spans []span) {
	n := in.node
	inside := true
	leave := func() {
		if inside {
			inside = false
			n.gate.leave()
		}
	}
	defer leave()
	n.mu.Lock()
	s := n.served[k]
	n.mu.Unlock()
	if s == nil {
		in.refuse(number, unknown(k))
		return
	}
	space := rooms.Get().(*room)
	defer rooms.Put(space)
	buf := space.frames[:0]
	blocks := int64(0)
	for i, span := range spans {
		for span.n > 0 {
			c := min(span.n, pieceBlocks)
			if len(buf) > 0 && blocks+c > pieceBlocks {
				leave() // what is so large is no single fault
				if in.send(ByUnicast, urgent, buf, blocks) != nil {
					return
				}
				buf, blocks = buf[:0], 0
			}
			start := len(buf)
			var err error
			if buf, err = in.piece(buf, s, number, span.first, c, space); err != nil {
				leave()
				if start > 0 && in.send(ByUnicast, urgent, buf[:start], blocks) != nil {
					return
				}
				in.refuse(number, err)
				return
			}
			span.first, span.n, blocks = span.first+c, span.n-c, blocks+c
			if i == len(spans)-1 && span.n == 0 {
				setFlags(buf, start, flagLast)
			}
		}
	}
	leave()
	in.send(ByUnicast, urgent, buf, blocks)
	space.frames = buf
}

// piece appends a frame with blocks.
func (in *inbound) piece(buf []byte, from store, number uint32, first, n int64, space *room) ([]byte, error) {
	start := len(buf)
	buf = beginBlocks(buf, number, first, n)
	off := len(buf)
	size := int(n) * slice.BlockSize
	buf = slices.Grow(buf, size)[:off+size]
	if err := from.read(buf[off:], first); err != nil {
		return buf[:start], err
	}
	if packed := in.packer.pack(space.packed, buf[off:]); packed != nil {
		buf = append(buf[:off], packed...)
		setFlags(buf, start, flagPacked)
	}
	return end(buf, start), nil
}

func unknown(k key) error {
	what := "slice"
	if k.object {
		what = "object"
	}
	return fmt.Errorf("%w: %s %v was withdrawn, or never served", ErrWithdrawn, what, k.id)
}

// refuse tells why there is no answer.
func (in *inbound) refuse(number uint32, why error) {
	code := refuseFailed
	if errors.Is(why, ErrWithdrawn) {
		code = refuseUnknown
	}
	in.node.count.refused.Add(1)
	in.write(appendRefuse(nil, number, code, why.Error()))
}

// send writes blocks.
func (in *inbound) send(way Way, kind int, buf []byte, blocks int64) error {
	in.node.count.sent(way, kind, len(buf), blocks)
	return in.put(buf)
}

// write writes what is no blocks.
func (in *inbound) write(buf []byte) {
	in.node.count.sent(ByUnicast, in.lane, len(buf), 0)
	_ = in.put(buf)
}

// put writes. A host that does not read is given up: it dials again, if it lives.
func (in *inbound) put(buf []byte) error {
	in.writing.Lock()
	defer in.writing.Unlock()
	_ = in.conn.SetWriteDeadline(time.Now().Add(in.node.config.Patience))
	_, err := in.conn.Write(buf)
	if err != nil {
		in.conn.Close()
	}
	return err
}

// bye tells the host that this node ends. A host that does not read is not waited for.
func (in *inbound) bye() {
	timer := time.AfterFunc(byeTime, func() { in.conn.Close() })
	_ = in.put(appendBare(nil, kindBye, 0))
	timer.Stop()
	in.conn.Close()
}

func (in *inbound) close() {
	in.conn.Close()
	n := in.node
	n.mu.Lock()
	delete(n.in, in)
	in.mu.Lock()
	for number, id := range in.asks {
		n.forgetAsker(id, asker{in, number})
	}
	in.ended = true
	feeds := in.feeds
	in.feeds, in.ready = map[uint32]*feed{}, nil
	in.more.Broadcast()
	in.mu.Unlock()
	n.mu.Unlock()
	for _, fd := range feeds {
		fd.leave()
	}
}

// gate holds bulk back while faults are answered, for a moment: they share the processors and the network.
type gate struct {
	inside atomic.Int32
	mu     sync.Mutex
	empty  chan struct{} // closed when the last leaves; nil if nobody waits
}

func (g *gate) enter() { g.inside.Add(1) }

func (g *gate) leave() {
	if g.inside.Add(-1) > 0 {
		return
	}
	g.mu.Lock()
	if g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
	g.mu.Unlock()
}

// wait returns when no faults are answered, and after gateTime in any case.
func (g *gate) wait() {
	if g.inside.Load() == 0 {
		return
	}
	g.mu.Lock()
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()
	timer := time.NewTimer(gateTime)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
	}
}
