package pmix

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// What one node may have.
const (
	maxWaiting = 1 << 16  // operations without an answer, and answers that it has not read
	maxHeld    = 64 << 20 // bytes contributed to exchanges that are not complete, or published
	maxEnviron = 1 << 20  // bytes of environment that a helper may ask for
)

// Node is a helper and its ranks.
type Node struct {
	// Environ is what each rank here must find in its environment.
	Environ map[int][]string

	server *Server
	conn   io.ReadWriteCloser
	in     *bufio.Reader
	job    *job
	place  int
	over   chan struct{} // closed when its stream has ended
	wake   chan struct{} // there is something in out; capacity 1

	// guarded by server.mu
	out     [][]byte
	err     error // why the stream is to end
	ended   bool
	known   map[string]bool // namespaces
	pings   map[uint32]chan struct{}
	waiting int // operations
	held    int // bytes
}

// Attach speaks with the helper that serves a namespace's place-th place until it is ready for the ranks there. ctx bounds
// that alone. conn is the Node's from now on, and closed if there is none.
func (s *Server) Attach(ctx context.Context, conn io.ReadWriteCloser, namespace string, place int) (n *Node, err error) {
	defer func() {
		if err != nil {
			conn.Close()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			err = fmt.Errorf("start the PMIx helper: %w", err)
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s.mu.Lock()
	j := s.jobs[namespace]
	s.mu.Unlock()
	if j == nil || place < 0 || place >= len(j.Places) {
		return nil, fmt.Errorf("namespace %s has no place %d", namespace, place)
	}
	n = &Node{
		server: s, conn: conn, in: bufio.NewReader(conn), job: j, place: place,
		over: make(chan struct{}), wake: make(chan struct{}, 1), Environ: map[int][]string{},
		known: map[string]bool{namespace: true}, pings: map[uint32]chan struct{}{},
	}
	if err := n.greet(); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.nodes[place] != nil {
		return nil, fmt.Errorf("place %d of namespace %s is served already", place, namespace)
	}
	j.nodes[place] = n
	return n, nil
}

// greet is the conversation before the ranks start.
func (n *Node) greet() error {
	d, err := n.next(kindHello)
	if err != nil {
		return err
	}
	if magic, version := d.string(), d.number(); magic != protocolMagic || version != protocolVersion {
		n.conn.Write(newFrame(kindRefuse).string("it speaks another version of the protocol").frame())
		return fmt.Errorf("it speaks version %d of the protocol, this launcher %d", version, protocolVersion)
	}
	if _, err := n.conn.Write(n.job.frame(n.place)); err != nil {
		return err
	}
	d, err = n.next(kindReady)
	if err != nil {
		return err
	}
	if len(d.b) > maxEnviron*len(n.job.Places[n.place].Ranks) {
		return errors.New("it asks for too large an environment")
	}
	for range d.count(8) {
		rank := int(d.number())
		n.Environ[rank] = d.strings()
	}
	if err := d.end(); err != nil {
		return err
	}
	for _, rank := range n.job.Places[n.place].Ranks {
		env, given := n.Environ[rank]
		if !given || slices.ContainsFunc(env, func(e string) bool { return strings.IndexByte(e, '=') < 1 || strings.IndexByte(e, 0) >= 0 }) {
			return fmt.Errorf("it gives rank %d no environment", rank)
		}
	}
	return nil
}

// next reads a frame that must be of this kind.
func (n *Node) next(k kind) (*decoder, error) {
	d, err := readFrame(n.in)
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it ended; is Open MPI's PMIx library (libpmix2) where the ranks run?")
	case err != nil:
		return nil, err
	case d.kind == kindFault:
		return nil, errors.New(hearsay.Clip(hearsay.Printable(d.string())))
	case d.kind != k:
		return nil, fmt.Errorf("it sent a frame of kind %d where %d was expected", d.kind, k)
	}
	return d, nil
}

// Serve answers the helper until its stream ends, which is an error, or ctx does. It closes the stream. What other nodes
// wait for from this one fails then.
func (n *Node) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { n.conn.Close() })
	defer stop()
	written := make(chan struct{})
	go func() {
		defer close(written)
		n.write()
	}()
	err := n.read()
	n.conn.Close()
	n.server.leave(n)
	<-written
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the PMIx helper of %s: %w", n.job.Places[n.place].Name, err)
}

func (n *Node) read() error {
	for {
		d, err := readFrame(n.in)
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended")
		}
		if err == nil {
			err = n.server.handle(n, d)
		}
		n.server.mu.Lock()
		if n.err != nil {
			err = n.err
		}
		n.server.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// write is the writer.
func (n *Node) write() {
	for {
		select {
		case <-n.wake:
		case <-n.over:
			return
		}
		n.server.mu.Lock()
		out := n.out
		n.out = nil
		n.server.mu.Unlock()
		for _, b := range out {
			if _, err := n.conn.Write(b); err != nil {
				n.conn.Close() // ends the reader
				return
			}
		}
	}
}

// enqueue has frames, or parts of one, written. The caller holds server.mu.
func (n *Node) enqueue(parts ...[]byte) {
	if n.ended {
		return
	}
	if len(n.out) > 4*maxWaiting {
		n.fail(errors.New("it asks without reading the answers"))
		return
	}
	n.out = append(n.out, parts...)
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// fail ends the node's stream. The caller holds server.mu.
func (n *Node) fail(err error) {
	if n.err == nil {
		n.err = err
		go n.conn.Close()
	}
}

// begin counts an operation that has an answer. The caller holds server.mu.
func (n *Node) begin() error {
	if n.waiting++; n.waiting > maxWaiting {
		return fmt.Errorf("it has more than %d requests without an answer", maxWaiting)
	}
	return nil
}

// hold counts bytes that are kept for the node. The caller holds server.mu.
func (n *Node) hold(bytes int) error {
	if n.held += bytes; n.held > maxHeld {
		return fmt.Errorf("it has more than %d bytes published, or waiting for other nodes", maxHeld)
	}
	return nil
}

// own is the local rank of a frame.
func (n *Node) own(rank uint32) (Proc, error) {
	r := int(int32(rank))
	if r < 0 || r >= len(n.job.at) || n.job.at[r] != n.place {
		return Proc{}, fmt.Errorf("it speaks for rank %d, which is not its own", r)
	}
	return Proc{n.job.Namespace, r}, nil
}

// done answers an operation whose answer says no more than how it went. The caller holds server.mu.
func (n *Node) done(id uint32, how outcome) {
	n.waiting--
	n.enqueue(newFrame(kindDone).number(id).number(uint32(how)).frame())
}

// data answers an operation with bytes, which are not copied. The caller holds server.mu.
func (n *Node) data(id uint32, how outcome, bytes []byte) {
	n.waiting--
	e := newFrame(kindData).number(id).number(uint32(how)).number(uint32(len(bytes)))
	head := e.frame()
	length := len(head) - 4 + len(bytes)
	head[0], head[1], head[2], head[3] = byte(length>>24), byte(length>>16), byte(length>>8), byte(length)
	n.enqueue(head, bytes)
}
