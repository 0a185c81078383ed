package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// maxArrivals bounds the streams and connections of a peer that nobody has accepted yet.
const maxArrivals = 256

// Link is a connection to another daemon, over which both open streams and connections. It may be used from many
// goroutines.
type Link struct {
	options
	peer  Fingerprint
	token token
	raw   *net.TCPConn
	wire  *transport
	mux   *yamux.Session
	clock clock

	dialler  *dialler  // of the end that dialled
	listener *Listener // of the end that listened

	control *yamux.Stream
	ready   chan struct{} // closed when control is there
	sending sync.Mutex    // orders what is written to control

	heardAll chan struct{} // closed when nothing more comes over control

	room    chan struct{} // one for each arrival that nobody has accepted
	arrived chan arrival
	done    chan struct{}
	end     sync.Once
	err     error // why it ended; once done is closed

	mu      sync.Mutex // guards those below
	conns   map[*Conn]struct{}
	waiting map[token]chan answer // calls for connections
}

type arrival struct {
	kind byte
	conn net.Conn
}

type answer struct {
	conn *Conn
	err  error
}

// muxConfig lets nothing time out that a slow network or a busy peer could be the reason of: the link itself knows when
// its peer is gone.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.EnableKeepAlive = false
	c.AcceptBacklog = maxArrivals
	c.ConnectionWriteTimeout = 24 * time.Hour
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Hour
	return c
}

// newLink begins a link over a connection whose ends have accepted each other. One of dialler and listener is nil.
func newLink(raw *net.TCPConn, secured *tls.Conn, o options, t token, d *dialler, listener *Listener) (*Link, error) {
	if err := prepare(raw, o.silence); err != nil {
		return nil, fmt.Errorf("set up the connection: %w", err)
	}
	l := &Link{
		options: o, token: t, raw: raw, wire: newTransport(secured), dialler: d, listener: listener,
		peer: fingerprintOf(secured.ConnectionState().PeerCertificates[0]),
		room: make(chan struct{}, maxArrivals), arrived: make(chan arrival),
		ready: make(chan struct{}), heardAll: make(chan struct{}), done: make(chan struct{}),
		conns: map[*Conn]struct{}{}, waiting: map[token]chan answer{},
	}
	var err error
	if d != nil {
		l.mux, err = yamux.Client(l.wire, muxConfig())
	} else {
		l.mux, err = yamux.Server(l.wire, muxConfig())
		listener.enter(t, l)
	}
	if err != nil {
		return nil, fmt.Errorf("divide the connection into streams: %w", err)
	}
	if d != nil {
		// Before any other, for that is how the listener knows it.
		if err := l.startControl(); err != nil {
			l.mux.Close()
			return nil, fmt.Errorf("open the first stream: %w", err)
		}
	}
	go l.watch()
	go l.serve()
	return l, nil
}

// Host is the name of the peer's host as far as this end knows, or else its address.
func (l *Link) Host() string { return l.host }

// Peer is the key that the other end has proved.
func (l *Link) Peer() Fingerprint { return l.peer }

// LocalAddr is this end's address, on the network on which the peer is reached.
func (l *Link) LocalAddr() netip.AddrPort { return addressOf(l.raw.LocalAddr()) }

// RemoteAddr is the peer's.
func (l *Link) RemoteAddr() netip.AddrPort { return addressOf(l.raw.RemoteAddr()) }

// Done is closed when the link has ended.
func (l *Link) Done() <-chan struct{} { return l.done }

// Err says how the link ended, nil while it has not: see [ErrSilent], [ErrEnded] and [ErrClosed].
func (l *Link) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

// Close ends the link with all its streams and connections, and tells the peer. What the peer has not read may be lost.
func (l *Link) Close() error {
	l.finish(closedHere(l.host))
	return nil
}

// farewellLimit is how long the peer has to take the last message.
const farewellLimit = time.Second

// finish ends the link, once.
func (l *Link) finish(err error) {
	l.end.Do(func() {
		l.err = err
		close(l.done)
		if l.listener != nil {
			l.listener.leave(l)
		}
		l.mu.Lock()
		conns := l.conns
		l.conns = nil
		l.mu.Unlock()
		for c := range conns {
			c.raw.Close()
		}
		limit := time.AfterFunc(farewellLimit, func() { l.raw.Close() })
		go func() {
			select {
			case <-l.ready:
				l.write(controlBye, token{}, 0)
			default:
			}
			l.mux.Close()
			limit.Stop()
			l.raw.Close()
		}()
	})
}

// Open opens a stream of a kind, which is not 0.
func (l *Link) Open(ctx context.Context, kind byte) (net.Conn, error) {
	s, err := l.open(ctx, kind)
	if err != nil {
		return nil, fmt.Errorf("open a stream to host %s: %w", l.host, err)
	}
	return s, nil
}

func (l *Link) open(ctx context.Context, kind byte) (net.Conn, error) {
	if kind == 0 {
		return nil, fmt.Errorf("kind 0 is the link's own")
	}
	if err := l.Err(); err != nil { // which yamux does not know before the farewell is sent
		return nil, err
	}
	s, err := l.openStream(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.Write([]byte{kind}); err != nil {
		s.Close()
		return nil, l.reason(err)
	}
	return &stream{Stream: s, link: l}, nil
}

// openStream waits for yamux, which does not know of contexts, and waits while the peer has many streams to accept.
func (l *Link) openStream(ctx context.Context) (*yamux.Stream, error) {
	type opened struct {
		s   *yamux.Stream
		err error
	}
	got := make(chan opened, 1)
	go func() {
		s, err := l.mux.OpenStream()
		got <- opened{s, err}
	}()
	select {
	case o := <-got:
		if o.err != nil {
			return nil, l.reason(o.err)
		}
		return o.s, nil
	case <-ctx.Done():
		go func() {
			if o := <-got; o.err == nil {
				o.s.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// reason is why the link ended, if it has, for whom an operation failed with err.
func (l *Link) reason(err error) error {
	if l.mux.IsClosed() {
		<-l.done // at once: watch sees the same
	}
	if gone := l.Err(); gone != nil {
		return gone
	}
	return err
}

// Accept waits for a stream or a connection that the peer opens, of any kind. It fails when the link has ended, with Err.
func (l *Link) Accept() (kind byte, conn net.Conn, err error) {
	select {
	case a := <-l.arrived:
		<-l.room
		return a.kind, a.conn, nil
	case <-l.done:
		return 0, nil, l.err
	}
}

// arrive hands over what the peer has opened, to Accept.
func (l *Link) arrive(kind byte, conn net.Conn) {
	select {
	case l.arrived <- arrival{kind, conn}:
	case <-l.done:
		conn.Close()
	}
}

// serve takes the streams that the peer opens, as many as there is room for.
func (l *Link) serve() {
	if l.listener != nil {
		if err := l.startControl(); err != nil {
			return // the link has ended
		}
	}
	for {
		select {
		case l.room <- struct{}{}:
		case <-l.done:
			return
		}
		s, err := l.mux.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			var kind [1]byte
			if _, err := io.ReadFull(s, kind[:]); err != nil || kind[0] == 0 {
				s.Close() // opened by one who gave up
				<-l.room
				return
			}
			l.arrive(kind[0], &stream{Stream: s, link: l})
		}()
	}
}

// watch ends the link when its connection breaks, or when nothing comes any more.
func (l *Link) watch() {
	tick := time.NewTicker(l.silence / 20)
	defer tick.Stop()
	// Ticks are counted and not time: a process that was stopped, or got no processor, has not listened.
	quiet := 0
	for {
		select {
		case <-l.done:
			return
		case <-l.mux.CloseChan():
			select {
			case <-l.ready:
				<-l.heardAll // its last message may be a farewell
			default:
			}
			err := l.wire.broken()
			if err == nil {
				err = fmt.Errorf("it sent what is no link's")
			}
			l.finish(explain(err, l.host, l.silence))
			return
		case <-tick.C:
		}
		quiet++
		if l.wire.heard.Swap(false) {
			quiet = 0
		}
		if quiet >= 20 {
			l.finish(silent(l.host, l.silence))
			return
		}
	}
}
