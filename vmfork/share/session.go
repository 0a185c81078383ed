package share

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// MaxMessage is the largest message, in bytes, that the server agrees to. A client may ask for smaller ones.
const MaxMessage = 1 << 20

// Limits of one connection. Its buffers take at most maxActive times twice the message size, and one message more.
const (
	minMessage  = 4096    // bytes; less than that has no room for a directory entry beside a path
	maxFIDs     = 1 << 16 // each is one descriptor, or two when open
	maxActive   = 16      // requests that are carried out at one time, locks that wait not counted
	maxPending  = 8192    // requests that have no reply yet
	maxWaiting  = 1024    // locks that wait
	messageWait = 60 * time.Second
)

// A session is one connection, from its first message on:
//
//  1. read takes one message off the connection, with the right to be carried out: a slot.
//  2. start enters it in the table of pending requests.
//  3. A goroutine carries it out (handle) and then, in finish, takes it out of the table and sends the reply.
//
// A flush waits in a goroutine of its own, without slot, for the request that it is about.
type session struct {
	export *export
	conn   net.Conn
	in     *bufio.Reader
	slots  chan struct{}
	closed chan struct{} // closed when the reader is done; what waits gives up
	active sync.WaitGroup

	maxSize uint32 // of a message; 0 before Tversion. The reader sets it when no request is pending.
	waiting atomic.Int32

	writeMu sync.Mutex // taken before mu

	mu      sync.Mutex
	fids    map[uint32]*fid
	pending map[uint16]*request

	lockMu sync.Mutex // taken alone
	locked map[fileID]*lockedFile
}

// A request is one that has no reply yet.
type request struct {
	session *session
	tag     uint16
	flushed chan struct{} // closed when the client does not wait for it any more
	flush   sync.Once
	done    chan struct{} // closed when the reply is sent
	slot    atomic.Bool   // it has one
}

// giveUp tells what waits in a request that it need not.
func (r *request) giveUp() { r.flush.Do(func() { close(r.flushed) }) }

// leave returns the request's slot, if it has one, to others.
func (r *request) leave() {
	if r.slot.CompareAndSwap(true, false) {
		<-r.session.slots
	}
}

// errClient is what a client did that ends its connection.
var errClient = errors.New("protocol violation")

// serve speaks 9P on a connection until it ends, is broken, or ctx ends. It closes the connection and all fids.
func (e *export) serve(ctx context.Context, conn net.Conn) error {
	s := &session{
		export:  e,
		conn:    conn,
		in:      bufio.NewReaderSize(conn, 32<<10),
		slots:   make(chan struct{}, maxActive),
		closed:  make(chan struct{}),
		fids:    make(map[uint32]*fid),
		pending: make(map[uint16]*request),
		locked:  make(map[fileID]*lockedFile),
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := s.run()
	conn.Close()
	close(s.closed)
	s.active.Wait()
	s.removeAll()
	if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

func (s *session) run() error {
	for {
		header, body, err := s.read()
		if err != nil {
			return err
		}
		message, malformed := ninep.Decode(header.Type, *body)
		if _, ok := message.(*ninep.Tversion); !ok && s.maxSize == 0 {
			return fmt.Errorf("%w: %v before Tversion", errClient, header.Type)
		}
		r, err := s.start(header.Tag)
		if err != nil {
			return err
		}
		switch message := message.(type) {
		case *ninep.Tversion:
			s.version(r, message)
			buffers.put(body)
		case *ninep.Tflush:
			s.flush(r, message)
			buffers.put(body)
		default:
			s.slots <- struct{}{} // those who hold them wait for disks at most
			r.slot.Store(true)
			go func() {
				if malformed != nil {
					s.finish(r, nil, malformed)
				} else {
					reply, err := s.handle(r, message)
					s.finish(r, reply, err)
				}
				buffers.put(body)
			}()
		}
	}
}

// read takes a message off the connection. The time between messages is the client's; a message that has begun must
// arrive.
func (s *session) read() (ninep.Header, *[]byte, error) {
	var raw [ninep.HeaderSize]byte
	if _, err := io.ReadFull(s.in, raw[:]); err != nil {
		return ninep.Header{}, nil, err
	}
	header := ninep.ParseHeader(raw)
	limit := s.maxSize
	if limit == 0 {
		limit = minMessage
	}
	if header.Size < ninep.HeaderSize || header.Size > limit {
		return header, nil, fmt.Errorf("%w: %v of %d bytes", errClient, header.Type, header.Size)
	}
	body := buffers.get(int(header.Size) - ninep.HeaderSize)
	if s.in.Buffered() < len(*body) {
		_ = s.conn.SetReadDeadline(time.Now().Add(messageWait))
		defer s.conn.SetReadDeadline(time.Time{})
	}
	if _, err := io.ReadFull(s.in, *body); err != nil {
		return header, nil, fmt.Errorf("read %v of %d bytes: %w", header.Type, header.Size, err)
	}
	return header, body, nil
}

// start enters a request in the table.
func (s *session) start(tag uint16) (*request, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[tag] != nil {
		return nil, fmt.Errorf("%w: tag %d used twice", errClient, tag)
	}
	if len(s.pending) >= maxPending {
		return nil, fmt.Errorf("%w: more than %d requests pending", errClient, maxPending)
	}
	r := &request{session: s, tag: tag, flushed: make(chan struct{}), done: make(chan struct{})}
	s.pending[tag] = r
	s.active.Add(1)
	return r, nil
}

// finish sends the reply, or Rlerror. The request leaves the table and its reply goes out in one step: a flush that
// finds it gone cannot overtake it, and a client that has the reply may use the tag again.
func (s *session) finish(r *request, reply ninep.Message, err error) {
	defer s.active.Done()
	defer close(r.done)
	defer r.leave()
	if err != nil {
		reply = &ninep.Rlerror{Errno: errno(err)}
	}
	head, data := ninep.Encode(make([]byte, 0, 256), r.tag, reply)
	s.writeMu.Lock()
	s.mu.Lock()
	delete(s.pending, r.tag)
	s.mu.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(messageWait))
	out := net.Buffers{head, data}
	if len(data) == 0 {
		out = out[:1]
	}
	if _, err := out.WriteTo(s.conn); err != nil {
		s.conn.Close() // the reader then finds out
	}
	s.writeMu.Unlock()
	if read, ok := reply.(*ninep.Rread); ok {
		buffers.put(&read.Data)
	}
}

// version begins the session anew: whatever was, is no more.
func (s *session) version(r *request, m *ninep.Tversion) {
	s.mu.Lock()
	var others []*request
	for _, other := range s.pending {
		if other != r {
			others = append(others, other)
		}
	}
	s.mu.Unlock()
	for _, other := range others {
		other.giveUp()
	}
	for _, other := range others {
		<-other.done
	}
	s.removeAll()
	s.maxSize = 0
	if m.MaxSize < minMessage {
		s.finish(r, nil, unix.EMSGSIZE)
		return
	}
	reply := &ninep.Rversion{MaxSize: min(m.MaxSize, MaxMessage), Version: "unknown"}
	if m.Version == ninep.Version {
		reply.Version = m.Version
		s.maxSize = reply.MaxSize
	}
	s.finish(r, reply, nil)
}

// flush answers when the old request has been answered, which a lock that waits then is at once.
func (s *session) flush(r *request, m *ninep.Tflush) {
	s.mu.Lock()
	old := s.pending[m.OldTag]
	s.mu.Unlock()
	if old == nil || old == r {
		s.finish(r, &ninep.Rflush{}, nil)
		return
	}
	old.giveUp()
	go func() {
		<-old.done
		s.finish(r, &ninep.Rflush{}, nil)
	}()
}

// handle carries a request out.
func (s *session) handle(r *request, m ninep.Message) (ninep.Message, error) {
	switch m := m.(type) {
	case *ninep.Tattach:
		return s.attach(m)
	case *ninep.Twalk:
		return s.walk(m)
	case *ninep.Tclunk:
		return &ninep.Rclunk{}, s.remove(m.FID)
	case *ninep.Tlopen:
		return s.lopen(m)
	case *ninep.Tlcreate:
		return s.lcreate(m)
	case *ninep.Tread:
		return s.readFile(m)
	case *ninep.Twrite:
		return s.writeFile(m)
	case *ninep.Tfsync:
		return s.fsync(m)
	case *ninep.Treaddir:
		return s.readdir(m)
	case *ninep.Tgetattr:
		return s.getattr(m)
	case *ninep.Tsetattr:
		return s.setattr(m)
	case *ninep.Tstatfs:
		return s.statfs(m)
	case *ninep.Tmkdir:
		return s.mkdir(m)
	case *ninep.Tsymlink:
		return s.symlink(m)
	case *ninep.Treadlink:
		return s.readlink(m)
	case *ninep.Tmknod:
		return s.mknod(m)
	case *ninep.Tlink:
		return s.link(m)
	case *ninep.Trename:
		return s.rename(m)
	case *ninep.Trenameat:
		return s.renameat(m)
	case *ninep.Tunlinkat:
		return s.unlinkat(m)
	case *ninep.Tremove:
		return s.removeFile(m)
	case *ninep.Tlock:
		return s.lock(r, m)
	case *ninep.Tgetlock:
		return s.getlock(m)
	}
	return nil, unix.EOPNOTSUPP // also Tauth (a connection is authenticated before 9P begins) and Txattr…
}

// errno is what an error is on the wire.
func errno(err error) uint32 {
	var number unix.Errno
	switch {
	case errors.As(err, &number):
		return uint32(number)
	case errors.Is(err, ninep.ErrMalformed):
		return uint32(unix.EINVAL)
	}
	return uint32(unix.EIO)
}

// buffers are those of messages' bodies and of Rread's data. Small ones are not worth keeping.
var buffers pool

type pool struct{ large sync.Pool }

const smallBuffer = 16 << 10

func (p *pool) get(size int) *[]byte {
	if size <= smallBuffer {
		b := make([]byte, size)
		return &b
	}
	if b, ok := p.large.Get().(*[]byte); ok && cap(*b) >= size {
		*b = (*b)[:size]
		return b
	}
	b := make([]byte, size)
	return &b
}

func (p *pool) put(b *[]byte) {
	if cap(*b) > smallBuffer {
		p.large.Put(b)
	}
}
