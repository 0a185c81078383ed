package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Listener is where a daemon is found by others.
type Listener struct {
	options
	id  *Identity
	tcp *net.TCPListener

	handshakes handshakes
	arrived    chan *Link
	closed     chan struct{}
	close      sync.Once

	mu      sync.Mutex // guards those below
	allowed map[Fingerprint]string
	links   map[token]*Link
	calls   map[token]*Link // by the token of a call for a connection, the link that it is for
}

// Listen opens a port; an address of ":0" is any port on all addresses. It stays open until ctx ends, or Close. Nobody may
// connect before [Listener.Allow]. A link lives on without its listener, but gets no more connections.
func Listen(ctx context.Context, id *Identity, address string, opts ...Option) (*Listener, error) {
	o := optionsOf(opts)
	config := net.ListenConfig{KeepAliveConfig: keepAlive(o.silence)}
	tcp, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for the job's other daemons: %w", err)
	}
	l := &Listener{
		options: o, id: id, tcp: tcp.(*net.TCPListener),
		handshakes: handshakes{most: o.most},
		arrived:    make(chan *Link), closed: make(chan struct{}),
		allowed: map[Fingerprint]string{}, links: map[token]*Link{}, calls: map[token]*Link{},
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		defer stop()
		l.accept()
	}()
	return l, nil
}

// Addr is where the listener listens. The address is unspecified where it listens on all.
func (l *Listener) Addr() netip.AddrPort { return addressOf(l.tcp.Addr()) }

// Allow lets the daemons with these keys connect, from now on.
func (l *Listener) Allow(keys ...Fingerprint) {
	for _, f := range keys {
		l.AllowHost("", f)
	}
}

// AllowHost is Allow for a daemon whose host's name is known, for errors.
func (l *Listener) AllowHost(name string, key Fingerprint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if name != "" || l.allowed[key] == "" {
		l.allowed[key] = name
	}
}

// Forbid takes Allow back. Links that there are go on.
func (l *Listener) Forbid(keys ...Fingerprint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range keys {
		delete(l.allowed, f)
	}
}

// nameOf is the name of the host that has a key, and whether it may connect.
func (l *Listener) nameOf(f Fingerprint) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name, ok := l.allowed[f]
	return name, ok
}

// AcceptLink waits for a link that another daemon makes. It fails when the listener is closed.
func (l *Listener) AcceptLink() (*Link, error) {
	select {
	case link := <-l.arrived:
		return link, nil
	case <-l.closed:
		return nil, fmt.Errorf("wait for the job's other daemons: %w", net.ErrClosed)
	}
}

// Close closes the port. Links go on.
func (l *Listener) Close() error {
	l.close.Do(func() {
		l.tcp.Close()
		close(l.closed)
		l.handshakes.closeAll()
	})
	return nil
}

func (l *Listener) accept() {
	for {
		conn, err := l.tcp.AcceptTCP()
		if err != nil {
			select {
			case <-l.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, say: some come back
			}
			continue
		}
		h, evicted := l.handshakes.begin(conn)
		if evicted != nil {
			l.refused(evicted.conn.RemoteAddr(), errors.New("too many came at once from there, and this was the oldest"))
		}
		go func() {
			err := l.serve(conn, h)
			stayed := l.handshakes.end(h)
			if err != nil {
				conn.Close()
				if stayed {
					l.refused(conn.RemoteAddr(), err)
				}
			}
		}()
	}
}

// serve makes what the dialler says of a connection.
func (l *Listener) serve(raw *net.TCPConn, h *handshake) error {
	ctx, cancel := context.WithTimeout(context.Background(), l.handshake)
	defer cancel()
	limit, _ := ctx.Deadline()
	raw.SetDeadline(limit)
	var name string
	config := l.secure(l.id, func(f Fingerprint) (err error) {
		known := false
		if name, known = l.nameOf(f); !known {
			err = fmt.Errorf("its key %s is not one of this job's", f)
		}
		return err
	})
	var offered []string
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		offered = hello.SupportedProtos
		return nil, nil
	}
	secured := tls.Server(raw, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("it did not prove who it is: %w", err)
	}
	if name == "" {
		name = raw.RemoteAddr().String()
	}
	if secured.ConnectionState().NegotiatedProtocol != l.alpn()[0] {
		writeVerdict(secured, otherVersion, protocolToken(uint32(l.protocol)))
		secured.Close()
		return l.errVersion(name, l.otherProtocols(offered))
	}
	p, err := readPreface(secured)
	if err != nil {
		return fmt.Errorf("read what it wants: %w", err)
	}
	// It has proved who it is, and is not closed for a stranger's sake any more.
	if !l.handshakes.end(h) {
		return net.ErrClosed
	}
	peer := fingerprintOf(secured.ConnectionState().PeerCertificates[0])
	if p.role == asLink {
		return l.welcome(raw, secured, name)
	}
	link := l.take(p, peer)
	if link == nil {
		writeVerdict(secured, unknown, token{})
		secured.Close()
		return errors.New("it has a connection for a link that has ended")
	}
	if err := writeVerdict(secured, accepted, token{}); err != nil {
		return fmt.Errorf("accept a connection of host %s: %w", name, err)
	}
	raw.SetDeadline(time.Time{})
	link.connected(p, link.adopt(raw, secured))
	return nil
}

// welcome makes a link, and waits until somebody takes it.
func (l *Listener) welcome(raw *net.TCPConn, secured *tls.Conn, name string) error {
	t := newToken()
	o := l.options
	o.host = name
	// Known before the dialler knows it, who may have a connection for it at once.
	link, err := newLink(raw, secured, o, t, nil, l)
	if err == nil {
		err = writeVerdict(secured, accepted, t)
	}
	if err != nil {
		if link != nil {
			link.Close()
		}
		return fmt.Errorf("accept host %s: %w", name, err)
	}
	raw.SetDeadline(time.Time{})
	select {
	case l.arrived <- link:
	case <-link.Done():
	case <-l.closed:
		link.Close()
	}
	return nil
}

// enter makes a link known, so that it can get connections.
func (l *Listener) enter(t token, link *Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.links[t] = link
}

// leave forgets a link that has ended.
func (l *Listener) leave(link *Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.links, link.token)
}

// call notes that a link waits for a connection, until forget is called.
func (l *Listener) call(link *Link) (t token, forget func()) {
	t = newToken()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[t] = link
	return t, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.calls, t)
	}
}

// take finds the link that a connection is for, which must be one with the same peer.
func (l *Listener) take(p preface, peer Fingerprint) *Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	link := l.links[p.token]
	if p.role == asAnswer {
		link = l.calls[p.token]
		delete(l.calls, p.token) // one call, one answer
	}
	if link == nil || link.peer != peer {
		return nil
	}
	return link
}
