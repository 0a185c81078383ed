package pmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// maxFaults is how many unsupported commands of a rank are reported; a rank that loops over one must not fill the log.
const maxFaults = 16

// ServeRank answers one local rank on conn, the other end of the rank's PMI_FD, until the rank closes it or ctx ends. It
// closes conn. Call it once for each rank, each in its own goroutine, while Run runs.
//
// The error is nil when the rank never started PMI or finalized it; ErrNotFinalized when it left in between; a message that
// names the rank when it sent something bad. In any case the others are served on. They may wait for this rank in a
// barrier: whether the job ends is the launcher's decision, which hears of it through Events.Closed.
func (p *Proxy) ServeRank(ctx context.Context, rank int, conn io.ReadWriteCloser) error {
	return p.serve(ctx, rank, newLink(conn))
}

func (p *Proxy) serve(ctx context.Context, rank int, l *link) error {
	defer l.conn.Close()
	if err := p.serveRank(ctx, rank, l); err != nil {
		return fmt.Errorf("serve PMI of rank %d: %w", rank, err)
	}
	return nil
}

// claim takes the rank for one connection.
func (p *Proxy) claim(rank int) (*slot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.slots[rank]
	if s == nil || s.served {
		return nil, errors.New("not a rank of this clone, or already served")
	}
	s.served = true
	return s, nil
}

func (p *Proxy) serveRank(ctx context.Context, rank int, l *link) error {
	s, err := p.claim(rank)
	if err != nil {
		return err
	}
	select {
	case <-p.ready:
	case <-p.done:
		return p.lost()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the stream to the launcher: %w", context.Cause(ctx))
	}
	c := &conversation{
		proxy: p, slot: s, link: l,
		requests: make(chan request),
		gone:     make(chan struct{}),
		over:     make(chan struct{}),
	}
	go c.read()
	stop := context.AfterFunc(ctx, func() { interrupt(l.conn) })
	defer stop()

	err = c.converse(ctx)
	close(c.over)
	interrupt(l.conn) // ends the reader, and whoever answers
	<-c.gone
	c.waiters.Wait()

	var bad *badInput
	if errors.As(err, &bad) {
		_ = c.fault(bad)
	}
	if err == nil && p.RankState(rank) == Initialized {
		err = ErrNotFinalized
	}
	if sendErr := p.close(s); err == nil {
		err = sendErr
	}
	return err
}

// close tells the server that nothing more comes from a rank.
func (p *Proxy) close(s *slot) error {
	err := p.send(message{kind: kindClosed, rank: s.rank})
	p.mu.Lock()
	s.closed = true
	p.mu.Unlock()
	return err
}

// conversation is one ServeRank: read takes requests off the connection, converse answers them. They are two so that the
// end of the connection and MPI_Abort are noticed while the rank, or another thread of it, waits. What waits for other
// ranks and not for the server has a goroutine of its own, so that other threads of the rank can go on asking.
type conversation struct {
	proxy *Proxy
	slot  *slot
	link  *link

	requests chan request
	gone     chan struct{} // closed when nothing more comes, after readErr is set
	readErr  error
	over     chan struct{} // closed when nobody takes requests any more

	waiters sync.WaitGroup
	waiting atomic.Int32 // waiters

	blocks []request // of a PMI-1 spawn that is not complete
	spaces int       // key-value spaces made
	rings  int       // begun
}

// read is the reader.
func (c *conversation) read() {
	defer close(c.gone)
	for {
		q, err := c.link.next()
		if err != nil {
			c.readErr = err
			return
		}
		if q.cmd == "abort" {
			if err := c.abort(q); err != nil {
				c.readErr = err
				return
			}
			continue
		}
		select {
		case c.requests <- q:
		case <-c.over:
			return
		}
	}
}

// abort goes upstream at once and has no answer: the rank waits to be killed. An abort is never lost to bad syntax. PMI-2
// and some clients name the message otherwise than PMI-1.
func (c *conversation) abort(q request) error {
	code, err := q.number("exitcode")
	if err != nil {
		code = 1
	}
	var text string
	for _, key := range []string{"message", "msg", "error_msg"} {
		if t, given := q.get(key); given {
			text = t
			break
		}
	}
	return c.proxy.send(message{kind: kindAbort, rank: c.slot.rank, code: code, text: text})
}

// fault reports to the launcher what the rank did wrong.
func (c *conversation) fault(err error) error {
	if c.slot.faults++; c.slot.faults > maxFaults {
		return nil
	}
	return c.proxy.send(message{kind: kindFault, rank: c.slot.rank, text: err.Error()})
}

// converse answers requests. It returns nil when the rank has closed its end.
func (c *conversation) converse(ctx context.Context) error {
	for {
		select {
		case q := <-c.requests:
			if err := c.handle(ctx, q); errors.Is(err, errGone) {
				return c.ended(ctx)
			} else if err != nil {
				return err
			}
		case <-c.gone:
			return c.ended(ctx)
		case <-c.proxy.done:
			return c.proxy.lost()
		case <-ctx.Done():
			return c.stopped(ctx)
		}
	}
}

// ended explains the end of the connection: nil if the rank closed it.
func (c *conversation) ended(ctx context.Context) error {
	var bad *badInput
	switch {
	case errors.As(c.readErr, &bad):
		return c.readErr
	case ctx.Err() != nil:
		return c.stopped(ctx)
	}
	// A rank that is killed with an answer unread resets the connection, or leaves half a line: an end like any other.
	return nil
}

// stopped says what the rank was doing when ctx ended.
func (c *conversation) stopped(ctx context.Context) error {
	if whom := c.proxy.missing(c.slot.rank); whom != "" {
		return fmt.Errorf("waiting in a barrier for %s: %w", whom, context.Cause(ctx))
	}
	return context.Cause(ctx)
}

// handle answers one request, whose syntax tells the version.
func (c *conversation) handle(ctx context.Context, q request) error {
	if q.packet {
		return c.handlePacket(ctx, q)
	}
	return c.handleLine(ctx, q)
}

// mustBe says whether a request may come now.
func (c *conversation) mustBe(want State, q request) error {
	if state := c.proxy.RankState(c.slot.rank); state != want {
		return &badInput{fmt.Errorf("%s while PMI is %s", hearsay.Clip(q.cmd), state)}
	}
	return nil
}

// advance moves the rank's state, here and upstream. It comes before the answer, so that the message is on its way when
// the rank goes on, and perhaps exits.
func (c *conversation) advance(to State, k kind) error {
	c.proxy.mu.Lock()
	c.slot.state = to
	c.proxy.mu.Unlock()
	return c.proxy.send(message{kind: k, rank: c.slot.rank})
}

// await runs what waits for other ranks, and then answers, beside what the rank asks next.
func (c *conversation) await(wait func()) error {
	if c.waiting.Add(1) > maxBarriers {
		return &badInput{fmt.Errorf("more than %d threads wait at once", maxBarriers)}
	}
	c.waiters.Go(func() {
		wait()
		c.waiting.Add(-1)
	})
	return nil
}

// ask asks the server and waits for the answer. Other requests of the rank wait meanwhile.
func (c *conversation) ask(ctx context.Context, m message) (message, error) {
	m.rank = c.slot.rank
	frame := appendFrame(nil, m)
	if len(frame) > maxFrame {
		return message{}, &badInput{fmt.Errorf("%s of %d bytes", m.kind, len(frame))}
	}
	if err := c.proxy.write(frame); err != nil {
		return message{}, err
	}
	select {
	case a := <-c.slot.answer:
		return a, nil
	case <-c.gone:
		return message{}, errGone
	case <-c.proxy.done:
		return message{}, c.proxy.lost()
	case <-ctx.Done():
		return message{}, fmt.Errorf("waiting for the launcher's answer to %s: %w", m.kind, context.Cause(ctx))
	}
}
