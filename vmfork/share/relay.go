package share

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// A relay stands between a kernel's 9P client and the server, so that the
// client does not notice when a copy of its machine needs a connection of its
// own:
//
//  1. send takes a request off the kernel's socket, keeps it in asked, and
//     writes it to the link, the connection to the server.
//  2. receive, which each link has one of, reads a reply whole. In one step it
//     takes the request out of asked and writes into the book what the reply
//     makes of the client's fids. Only then the kernel gets it.
//  3. reconnect drops the link, waits until its receive has left, makes
//     another, brings its session to where the book is (replay.go), and sends
//     again what is in asked.
//
// So whatever the instant is of which a machine's memory is a copy: a request
// is in asked until its reply is whole; from then on the reply is in memory,
// and is delivered to its end.
//
// A request that the server had carried out before the copy, and whose reply
// did not make it, is carried out twice. Those of processes are not among them,
// since a process that waits for a reply cannot be frozen for a fork; what
// remains are a kernel's own: writing back of pages, and closing.
type relay struct {
	kernel stream
	limit  atomic.Uint32 // of a message, bytes

	reconnecting sync.Mutex // held by reconnect, and taken before all others

	// sendMu is held while a request is entered in asked and written, and by
	// reconnect once the old link is closed. It is taken before the others.
	sendMu sync.Mutex
	link   atomic.Pointer[link] // set under sendMu

	deliverMu sync.Mutex // orders what the kernel is written; taken last

	mu    sync.Mutex // guards what follows
	book  book
	asked map[uint16]*outstanding // by tag
	count uint64                  // requests so far

	failure sync.Once
	err     error         // after ended
	ended   chan struct{} // closed when both connections are about to be
}

// A stream is what a relay needs of a connection. Close makes reads and writes
// return that are under way.
type stream interface {
	io.ReadWriteCloser
	// abandon is Close, of which the peer hears nothing.
	abandon()
}

// A link is one connection to the server.
type link struct {
	conn    stream
	dropped atomic.Bool   // its errors mean nothing any more
	left    chan struct{} // closed when nothing more will be read from it
}

// write sends a whole message. What a dropped link does not take is sent again
// by who dropped it.
func (l *link) write(message []byte) error {
	if _, err := l.conn.Write(message); err != nil && !l.dropped.Load() {
		return fmt.Errorf("send to the server: %w", err)
	}
	return nil
}

// An outstanding request is one of the kernel's that has no reply yet.
type outstanding struct {
	message *[]byte // whole
	number  uint64  // in the order in which they came
	users   atomic.Int32
}

// release gives the message's memory back when neither the table nor a writer
// needs it.
func (q *outstanding) release() {
	if q.users.Add(-1) == 0 {
		buffers.put(q.message)
	}
}

// errRelay is what a kernel or a server did that ends a relay.
var errRelay = errors.New("protocol violation at the relay")

// newRelay begins to relay between two connections, which are the relay's from
// then on.
func newRelay(kernel, server net.Conn) (*relay, error) {
	far, err := streamOf(kernel)
	if err != nil {
		server.Close()
		return nil, err
	}
	link, err := streamOf(server)
	if err != nil {
		far.Close()
		return nil, err
	}
	r := &relay{kernel: far, book: newBook(), asked: map[uint16]*outstanding{}, ended: make(chan struct{})}
	r.limit.Store(minMessage)
	r.use(link)
	go r.send()
	return r, nil
}

// use makes a connection the one over which the relay goes on.
func (r *relay) use(conn stream) {
	l := &link{conn: conn, left: make(chan struct{})}
	r.link.Store(l)
	select {
	case <-r.ended: // and closed the link before
		conn.Close()
	default:
	}
	go r.receive(l)
}

// close ends the relay. The kernel's client gives errors from then on.
func (r *relay) close() { r.fail(net.ErrClosed) }

func (r *relay) fail(err error) {
	r.failure.Do(func() {
		r.err = err
		close(r.ended)
		r.kernel.Close()
		r.link.Load().conn.Close()
	})
}

// send is the way of the requests.
func (r *relay) send() {
	in := bufio.NewReaderSize(r.kernel, 4096)
	for {
		message, err := readWhole(in, r.limit.Load(), buffers.get)
		if err == nil {
			err = r.forward(message)
		}
		if err != nil {
			r.fail(fmt.Errorf("relay requests of the kernel: %w", err))
			return
		}
	}
}

func (r *relay) forward(message *[]byte) error {
	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	q, answer, err := r.enter(message)
	switch {
	case err != nil:
		return err
	case answer != nil:
		return r.deliver(answer)
	}
	defer q.release()
	return r.link.Load().write(*message)
}

// enter makes a request one that waits for its reply; or answers it, if it is
// about a fid that did not come along to this connection.
func (r *relay) enter(message *[]byte) (q *outstanding, answer []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	tag := tagOf(*message)
	if r.asked[tag] != nil {
		return nil, nil, fmt.Errorf("%w: tag %d used twice", errRelay, tag)
	}
	if len(r.asked) >= maxPending {
		return nil, nil, fmt.Errorf("%w: more than %d requests pending", errRelay, maxPending)
	}
	if answer := r.book.answer(*message); answer != nil {
		return nil, answer, nil
	}
	r.count++
	q = &outstanding{message: message, number: r.count}
	q.users.Store(2)
	r.asked[tag] = q
	return q, nil, nil
}

// receive is the way of the replies.
func (r *relay) receive(l *link) {
	defer close(l.left)
	in := bufio.NewReaderSize(l.conn, 4096)
	var reused []byte
	room := func(size int) *[]byte {
		reused = slices.Grow(reused[:0], size)[:size]
		return &reused
	}
	for {
		reply, err := readWhole(in, r.limit.Load(), room)
		if err == nil {
			err = r.settle(*reply)
		}
		if err == nil {
			err = r.deliver(*reply)
		}
		if err != nil {
			if !l.dropped.Load() || errors.Is(err, errRelay) {
				r.fail(fmt.Errorf("relay replies of the server: %w", err))
			}
			return
		}
	}
}

// settle takes a request out of the table, and into the book what its reply
// says.
func (r *relay) settle(reply []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	tag := tagOf(reply)
	q := r.asked[tag]
	if q == nil {
		return fmt.Errorf("%w: %v to tag %d, which nobody asked for", errRelay, typeOf(reply), tag)
	}
	delete(r.asked, tag)
	defer q.release()
	if old := r.flushed(q); old != nil && typeOf(reply) == typeOf(*q.message)+1 {
		// There will be no reply, and the client uses its tag again.
		delete(r.asked, tagOf(*old.message))
		old.release()
	}
	if size := r.book.note(*q.message, reply); size != 0 {
		r.limit.Store(size)
	}
	return nil
}

// flushed is the request that q, if it is a Tflush, is about, if that has no
// reply yet.
func (r *relay) flushed(q *outstanding) *outstanding {
	m, ok := parse(*q.message).(*ninep.Tflush)
	if !ok {
		return nil
	}
	if old := r.asked[m.OldTag]; old != nil && old.number < q.number {
		return old
	}
	return nil
}

// deliver gives the kernel a whole message.
func (r *relay) deliver(message []byte) error {
	r.deliverMu.Lock()
	defer r.deliverMu.Unlock()
	if _, err := r.kernel.Write(message); err != nil {
		return fmt.Errorf("%w: give the kernel a reply: %w", errRelay, err)
	}
	return nil
}

// readWhole reads a message with its header into memory that room gives.
func readWhole(in *bufio.Reader, limit uint32, room func(int) *[]byte) (*[]byte, error) {
	raw, err := in.Peek(ninep.HeaderSize)
	if err != nil {
		if len(raw) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	header := ninep.ParseHeader([ninep.HeaderSize]byte(raw))
	if header.Size < ninep.HeaderSize || header.Size > limit {
		return nil, fmt.Errorf("%w: %v of %d bytes", errRelay, header.Type, header.Size)
	}
	message := room(int(header.Size))
	if _, err := io.ReadFull(in, *message); err != nil {
		return nil, err
	}
	return message, nil
}
