package mcdist

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	dialPatience = 5 * time.Second // one attempt
	maxBackoff   = time.Second     // between attempts
	stallTime    = 5 * time.Second // after which a silent connection is given up, and another made
	watchTime    = 100 * time.Millisecond
)

// exchange is a request and what becomes of it. Its methods are called by a lane, one at a time except for end, and
// after end none is called.
type exchange interface {
	// request appends the request for all that has not come yet, and nothing if all has. It must not use the lane.
	request(buf []byte, number uint32) []byte
	// answer takes one frame of the answer, and says whether it was the last. After an error there is no other.
	answer(f *frame, scratch []byte) (last bool, err error)
	// relayed reports whether the answer is a relay's, for the counters.
	relayed() bool
	// end says how it ended: nil if it was answered.
	end(err error)
	// patience is how long it may go without a frame, and 0 is for ever.
	patience() time.Duration
}

// lane is a stream to another host for this node's requests, and the requests that wait. It is made when it is first
// needed, and again when it breaks while somebody waits.
type lane struct {
	node *Node
	host int
	kind int // urgent or bulk

	mu         sync.Mutex
	pending    map[uint32]*waiting
	number     uint32
	conn       net.Conn // nil: there is none
	connecting bool
	failures   int   // attempts, and connections that brought nothing, in a row
	trouble    error // the last of them
	heard      time.Time
	down       time.Time // since when there is no connection, though somebody waits
	out, spare []byte    // to be written, and the buffer for what comes next
	writing    bool
	watching   bool
	closed     error
}

// waiting is an exchange that was not answered yet.
type waiting struct {
	exchange
	heard time.Time // its last frame, or when it began
}

func newLane(n *Node, host, kind int) *lane {
	return &lane{node: n, host: host, kind: kind, pending: make(map[uint32]*waiting)}
}

// ask begins an exchange, and returns its number, for cancel. It does not wait for the answer. It writes the request
// itself if nobody else is writing, so that a fault costs no change of goroutine.
func (l *lane) ask(e exchange) (number uint32) {
	l.mu.Lock()
	if l.closed != nil {
		err := l.closed
		l.mu.Unlock()
		e.end(err)
		return 0
	}
	for l.number++; l.number == 0 || l.pending[l.number] != nil; l.number++ {
	}
	number = l.number
	l.pending[number] = &waiting{e, time.Now()}
	if !l.watching {
		l.watching = true
		time.AfterFunc(watchTime, l.watch)
	}
	if l.conn == nil {
		l.connect()
		l.mu.Unlock()
		return number
	}
	before := len(l.out)
	if l.out = e.request(l.out, number); len(l.out) == before {
		delete(l.pending, number)
		l.mu.Unlock()
		e.end(nil)
		return 0
	}
	l.flush()
	return number
}

// cancel forgets an exchange, whose end is not called any more, and tells the host to stop.
func (l *lane) cancel(number uint32) {
	l.mu.Lock()
	if l.pending[number] == nil {
		l.mu.Unlock()
		return
	}
	delete(l.pending, number)
	if l.conn == nil {
		l.mu.Unlock()
		return
	}
	l.out = appendBare(l.out, kindCancel, number)
	l.flush()
}

// flush writes what is to be written, and what others add while it does. The lock is held, and released.
func (l *lane) flush() {
	if l.writing {
		l.mu.Unlock()
		return
	}
	l.writing = true
	for len(l.out) > 0 && l.conn != nil {
		conn, buf := l.conn, l.out
		l.out = l.spare[:0]
		l.mu.Unlock()
		l.node.count.sent(ByUnicast, l.kind, len(buf), 0)
		_ = conn.SetWriteDeadline(time.Now().Add(stallTime))
		_, err := conn.Write(buf)
		l.mu.Lock()
		l.spare = buf
		if err != nil {
			l.lose(conn, fmt.Errorf("write: %w", err))
		}
	}
	l.writing = false
	l.mu.Unlock()
}

// open connects ahead of the first request.
func (l *lane) open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil && l.closed == nil {
		l.connect()
	}
}

// connect makes a connection in the background. The lock is held.
func (l *lane) connect() {
	if l.connecting || l.closed != nil {
		return
	}
	l.connecting = true
	if l.down.IsZero() {
		l.down = time.Now()
	}
	wait := time.Duration(0)
	if l.failures > 0 {
		wait = min(maxBackoff, 5*time.Millisecond<<min(l.failures, 10))
	}
	if !l.node.start(func() { l.dial(wait) }) {
		l.connecting = false
	}
}

func (l *lane) dial(wait time.Duration) {
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-l.node.ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(l.node.ctx, dialPatience)
	defer cancel()
	conn, err := l.node.config.Dial(ctx, l.host)
	l.mu.Lock()
	l.connecting = false
	if err == nil && l.closed != nil {
		conn.Close()
	}
	if l.closed != nil {
		l.mu.Unlock()
		return
	}
	if err != nil {
		l.failures++
		l.trouble = fmt.Errorf("connect: %w", err)
		if len(l.pending) > 0 {
			l.connect()
		}
		l.mu.Unlock()
		return
	}
	if l.failures > 0 {
		l.node.count.redials.Add(1)
	}
	l.conn, l.heard, l.down = conn, time.Now(), time.Time{}
	l.out = appendHello(l.out[:0], l.kind)
	numbers := make([]uint32, 0, len(l.pending))
	for number := range l.pending {
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	var done []exchange
	for _, number := range numbers {
		before := len(l.out)
		if l.out = l.pending[number].request(l.out, number); len(l.out) == before {
			done = append(done, l.pending[number].exchange)
			delete(l.pending, number)
		}
	}
	started := l.node.start(func() { l.read(conn) })
	if !started {
		l.lose(conn, ErrClosed)
	}
	l.flush()
	for _, e := range done {
		e.end(nil)
	}
}

// lose gives a connection up, and makes another if somebody waits. The lock is held.
func (l *lane) lose(conn net.Conn, why error) {
	if l.conn != conn {
		return
	}
	conn.Close()
	l.conn, l.out = nil, l.out[:0]
	l.failures++
	l.trouble = why
	if len(l.pending) > 0 {
		l.connect()
	}
}

// read takes the answers that come over a connection, until it ends.
func (l *lane) read(conn net.Conn) {
	r := newFrameReader(conn)
	scratch := make([]byte, pieceSize)
	for {
		f, err := r.next()
		if err == nil {
			err = l.take(conn, &f, scratch)
		} else if err == io.EOF {
			err = errors.New("the connection was closed")
		} else {
			err = fmt.Errorf("read: %w", err)
		}
		if err != nil {
			l.mu.Lock()
			l.lose(conn, err)
			l.mu.Unlock()
			return
		}
	}
}

// take gives a frame to whom it is for. An error ends the connection.
func (l *lane) take(conn net.Conn, f *frame, scratch []byte) error {
	now := time.Now()
	l.mu.Lock()
	if l.conn != conn {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.heard = now
	if f.number == 0 {
		err := l.notice(f)
		all := l.pending
		l.pending = make(map[uint32]*waiting)
		l.mu.Unlock()
		for _, w := range all {
			w.end(err)
		}
		return err
	}
	w := l.pending[f.number]
	way := ByUnicast
	if w != nil && w.relayed() {
		way = ByTree
	}
	l.node.count.received(way, l.kind, headerSize+len(f.body), 0)
	if w == nil { // canceled, or expired
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()

	var last bool
	var err error
	if f.kind == kindRefuse {
		code, text, bad := f.refuse()
		if bad != nil {
			return bad
		}
		last, err = true, &RefusedError{Host: l.node.name(l.host), Code: code, Text: text}
	} else if last, err = w.answer(f, scratch); errors.Is(err, errFrame) {
		return err
	}
	l.mu.Lock()
	w.heard, l.failures = now, 0
	if !last && err == nil {
		l.mu.Unlock()
		return nil
	}
	here := l.pending[f.number] == w
	if here {
		delete(l.pending, f.number)
	}
	l.mu.Unlock()
	if here {
		w.end(err)
	}
	return nil
}

// notice is a frame that is nobody's answer: the host has something to say about the connection.
func (l *lane) notice(f *frame) error {
	switch f.kind {
	case kindBye:
		return &RefusedError{Host: l.node.name(l.host), Code: refuseEnded, Text: "its node was closed"}
	case kindRefuse:
		if code, text, err := f.refuse(); err == nil {
			return &RefusedError{Host: l.node.name(l.host), Code: code, Text: text}
		}
	}
	return fmt.Errorf("%w: kind %d without a request", errFrame, f.kind)
}

// watch ends the exchanges that have waited for too long, and the connection if it brings nothing. It runs while
// anybody waits.
func (l *lane) watch() {
	now := time.Now()
	l.mu.Lock()
	var late []exchange
	stalled := false
	for number, w := range l.pending {
		limit, silent := w.patience(), now.Sub(w.heard)
		if limit == 0 && !l.down.IsZero() { // it waits for something to happen there, but not for ever for the host
			limit, silent = l.node.config.Patience, min(silent, now.Sub(l.down))
		}
		stalled = stalled || limit > 0 && silent > stallTime
		if limit > 0 && silent > limit {
			delete(l.pending, number)
			late = append(late, w.exchange)
			if l.conn != nil {
				l.out = appendBare(l.out, kindCancel, number)
			}
		}
	}
	trouble := l.trouble
	if l.conn != nil {
		trouble = nil
		if stalled && now.Sub(l.heard) > stallTime {
			l.lose(l.conn, fmt.Errorf("nothing came for %v", stallTime))
		}
	}
	l.watching = len(l.pending) > 0 && l.closed == nil
	if l.watching {
		time.AfterFunc(watchTime, l.watch)
	}
	l.flush()
	for _, e := range late {
		waited := e.patience()
		if waited == 0 {
			waited = l.node.config.Patience
		}
		e.end(&SilentError{Host: l.node.name(l.host), Waited: waited, Cause: trouble})
	}
}

// close ends all exchanges.
func (l *lane) close(why error) {
	l.mu.Lock()
	l.closed = why
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	all := l.pending
	l.pending = make(map[uint32]*waiting)
	l.mu.Unlock()
	for _, w := range all {
		w.end(why)
	}
}
