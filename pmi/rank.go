package pmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
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
	defer conn.Close()
	if err := p.serveRank(ctx, rank, conn); err != nil {
		return fmt.Errorf("serve PMI of rank %d: %w", rank, err)
	}
	return nil
}

func (p *Proxy) serveRank(ctx context.Context, rank int, conn io.ReadWriteCloser) error {
	p.mu.Lock()
	s := p.slots[rank]
	if s == nil || s.served {
		p.mu.Unlock()
		return errors.New("not a rank of this clone, or already served")
	}
	s.served = true
	p.mu.Unlock()

	select {
	case <-p.ready:
	case <-p.done:
		return p.lost()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the stream to the launcher: %w", context.Cause(ctx))
	}
	c := &conversation{
		proxy: p, slot: s, conn: conn,
		requests: make(chan request),
		gone:     make(chan struct{}),
		over:     make(chan struct{}),
	}
	go c.read()
	stop := context.AfterFunc(ctx, func() { interrupt(conn) })
	defer stop()

	err := c.converse(ctx)
	close(c.over)
	interrupt(conn) // ends the reader
	<-c.gone

	var bad *badInput
	if errors.As(err, &bad) {
		_ = c.fault(bad)
	}
	if err == nil && p.RankState(rank) == Initialized {
		err = ErrNotFinalized
	}
	if sendErr := p.send(message{kind: kindClosed, rank: rank}); err == nil {
		err = sendErr
	}
	p.mu.Lock()
	s.closed = true
	p.mu.Unlock()
	return err
}

// conversation is one ServeRank: read takes requests off the connection, converse answers them. They are two so that the
// end of the connection and MPI_Abort are noticed while the rank, or another thread of it, waits in a barrier.
type conversation struct {
	proxy *Proxy
	slot  *slot
	conn  io.ReadWriteCloser

	requests chan request
	gone     chan struct{} // closed when nothing more comes, after readErr is set
	readErr  error
	over     chan struct{} // closed when nobody takes requests any more

	spawned int // blocks of the spawn command seen so far
}

// read is the reader.
func (c *conversation) read() {
	defer close(c.gone)
	rr := newRequestReader(c.conn)
	for {
		q, err := rr.next()
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

// abort goes upstream at once and has no answer: the rank waits to be killed. An abort is never lost to bad syntax.
func (c *conversation) abort(q request) error {
	code, err := q.number("exitcode")
	if err != nil {
		code = 1
	}
	text, given := q.get("message")
	if !given {
		text, _ = q.get("error_msg") // Flux's client
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
			if err := c.handle(ctx, q); err != nil {
				return err
			}
		case <-c.gone:
			return c.ended(ctx)
		case <-c.proxy.done:
			return c.proxy.lost()
		case <-ctx.Done():
			return context.Cause(ctx)
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
		return context.Cause(ctx)
	}
	// A rank that is killed with an answer unread resets the connection, or leaves half a line: an end like any other.
	return nil
}

// reply writes one line to the rank. A rank that has hung up does not want it: the reader notices its end.
func (c *conversation) reply(format string, args ...any) {
	_, _ = fmt.Fprintf(c.conn, format+"\n", args...)
}

// handle answers one request.
func (c *conversation) handle(ctx context.Context, q request) error {
	p, g := c.proxy, c.proxy.group
	if q.cmd == "init" {
		return c.init(q)
	}
	if state := p.RankState(c.slot.rank); state != Initialized {
		return &badInput{fmt.Errorf("%s while PMI is %s", clip(q.cmd), state)}
	}
	switch q.cmd {
	case "get_maxes":
		c.reply("cmd=maxes kvsname_max=%d keylen_max=%d vallen_max=%d", announcedKVSName, MaxKey, MaxValue)
	case "get_appnum":
		c.reply("cmd=appnum appnum=%d", g.AppNum)
	case "get_my_kvsname":
		c.reply("cmd=my_kvsname kvsname=%s", g.KVSName)
	case "get_universe_size":
		size := g.UniverseSize
		if size <= 0 {
			size = -1
		}
		c.reply("cmd=universe_size size=%d", size)
	case "put":
		return c.put(q)
	case "get":
		return c.get(ctx, q)
	case "barrier_in":
		return c.barrier(ctx, q)
	case "finalize":
		if err := c.advance(Finalized, kindFinalize); err != nil {
			return err
		}
		c.reply("cmd=finalize_ack")
	default:
		return c.unsupported(q)
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

func (c *conversation) init(q request) error {
	if c.proxy.RankState(c.slot.rank) == Initialized {
		return &badInput{errors.New("init twice: two processes share one rank's PMI_FD")}
	}
	version, err := q.number("pmi_version")
	if err != nil {
		return &badInput{err}
	}
	if version != 1 {
		c.reply("cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=-1")
		return &badInput{fmt.Errorf("init of PMI version %d: only version 1 is spoken here", version)}
	}
	if err := c.advance(Initialized, kindInit); err != nil {
		return err
	}
	c.reply("cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0")
	return nil
}

// ourKVS reports whether the request means the group's key-value space: it may leave the name out.
func (c *conversation) ourKVS(q request) bool {
	name, given := q.get("kvsname")
	return !given || name == c.proxy.group.KVSName
}

func (c *conversation) put(q request) error {
	key, _ := q.get("key")
	value, given := q.get("value")
	err := checkPut(key, value)
	switch {
	case err == nil && !given:
		err = fmt.Errorf("put of %s without value", key)
	case err == nil && !c.ourKVS(q):
		err = fmt.Errorf("put of %s into another group's key-value space", key)
	case err == nil:
		err = c.proxy.put(c.slot, entry{key, value})
	}
	if err != nil {
		c.reply("cmd=put_result rc=-1 msg=%s", word(err.Error()))
		return &badInput{err}
	}
	c.reply("cmd=put_result rc=0 msg=success")
	return nil
}

func (c *conversation) get(ctx context.Context, q request) error {
	key, _ := q.get("key")
	if key == "" || len(key) > MaxKey || !isToken(key) {
		return &badInput{fmt.Errorf("get of key %q: must be 1 to %d printable characters without spaces", clip(key), MaxKey)}
	}
	if !c.ourKVS(q) {
		c.reply("cmd=get_result rc=-1 msg=kvsname_not_found value=unknown")
		return nil
	}
	value, found := c.proxy.lookup(key)
	if !found {
		if err := c.proxy.send(message{kind: kindGet, rank: c.slot.rank, key: key}); err != nil {
			return err
		}
		select {
		case m := <-c.slot.answer:
			value, found = m.value, m.found
		case <-c.proxy.done:
			return c.proxy.lost()
		case <-ctx.Done():
			return fmt.Errorf("waiting for the launcher's value of %s: %w", key, context.Cause(ctx))
		}
	}
	if !found {
		c.reply("cmd=get_result rc=-1 msg=key_%s_not_found value=unknown", key)
		return nil
	}
	c.reply("cmd=get_result rc=0 msg=success value=%s", value)
	return nil
}

func (c *conversation) barrier(ctx context.Context, q request) error {
	if _, given := q.get("group"); given {
		return c.unsupported(q) // PMI 1.2; answering it as a barrier of everybody would hang
	}
	out, err := c.proxy.enter(c.slot)
	if err != nil {
		return err
	}
	select {
	case <-out:
		c.reply("cmd=barrier_out")
		return nil
	case <-c.gone: // it stays in the barrier: it did enter
		err = c.ended(ctx)
	case <-c.proxy.done:
		err = c.proxy.lost()
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // which ends the other two as well
		return fmt.Errorf("waiting in a barrier for %s: %w", c.proxy.missing(), context.Cause(ctx))
	}
	return err // none if the rank left: converse sees that too
}

// unsupported answers what is not served in the form that the client's error path expects.
func (c *conversation) unsupported(q request) error {
	switch q.cmd {
	case "spawn":
		// One command may come in several blocks, and only the last is answered.
		total, err := q.number("totspawns")
		if err != nil {
			total = 1
		}
		if c.spawned++; c.spawned < total {
			return nil
		}
		c.spawned = 0
		c.reply("cmd=spawn_result rc=-1 msg=not_supported")
	case "publish_name", "unpublish_name", "lookup_name":
		// info is what older clients look at, rc what newer ones do.
		name, _, _ := strings.Cut(q.cmd, "_")
		c.reply("cmd=%s_result info=not_supported rc=1 msg=not_supported", name)
	case "create_kvs":
		c.reply("cmd=newkvs rc=-1 msg=not_supported")
	case "destroy_kvs":
		c.reply("cmd=kvs_destroyed rc=-1 msg=not_supported")
	case "getbyidx":
		c.reply("cmd=getbyidx_results rc=-1 reason=not_supported")
	case "barrier_in":
		c.reply("cmd=barrier_out rc=-1 msg=not_supported")
	default:
		// An answer under an unknown name fails the call; none would hang it.
		c.reply("cmd=%s_result rc=-1 msg=not_supported", word(q.cmd))
	}
	return c.fault(fmt.Errorf("%s is not supported", clip(q.cmd)))
}

// word turns a text into one value of a PMI line, which is read up to the next space.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '=' {
			return '_'
		}
		return r
	}, clip(s))
}
