package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// Conn is a connection beside a link: TCP and TLS of its own, with the same peer. It ends with the link.
type Conn struct {
	*tls.Conn
	raw  *net.TCPConn
	link *Link
}

// Dial opens a connection of a kind, which is not 0. Either end may: see the package's comment for how.
func (l *Link) Dial(ctx context.Context, kind byte) (net.Conn, error) {
	c, err := l.dial(ctx, kind)
	if err != nil {
		return nil, fmt.Errorf("open a connection to host %s: %w", l.host, err)
	}
	return c, nil
}

func (l *Link) dial(ctx context.Context, kind byte) (*Conn, error) {
	if kind == 0 {
		return nil, fmt.Errorf("kind 0 is the link's own")
	}
	if l.dialler == nil {
		return l.call(ctx, kind)
	}
	ctx, cancel := l.within(ctx)
	defer cancel()
	raw, secured, err := l.dialler.again(ctx, preface{asConnection, l.token, kind})
	if err != nil {
		return nil, l.reason(err)
	}
	return l.adopt(raw, secured), nil
}

// within is a context that ends with the link, too.
func (l *Link) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-l.done:
			cancel(l.err)
		case <-stop:
			cancel(nil)
		}
	}()
	return ctx, func() { close(stop) }
}

// call asks the peer, which dialled this link, for a connection.
func (l *Link) call(ctx context.Context, kind byte) (*Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.handshake, fmt.Errorf("it did not come in %v", l.handshake))
	defer cancel()
	t, forget := l.listener.call(l)
	defer forget()
	got := make(chan answer, 1)
	l.mu.Lock()
	l.waiting[t] = got
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, t)
		l.mu.Unlock()
		select {
		case a := <-got: // it came as we gave up
			if a.conn != nil {
				a.conn.Close()
			}
		default:
		}
	}()
	if err := l.send(controlCall, t, kind); err != nil {
		return nil, err
	}
	select {
	case a := <-got:
		return a.conn, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.done:
		return nil, l.err
	}
}

// connected hands over a connection that came to the listener for this link.
func (l *Link) connected(p preface, c *Conn) {
	if p.role == asAnswer {
		l.answer(p.token, answer{conn: c})
		return
	}
	select {
	case l.room <- struct{}{}:
		l.arrive(p.kind, c)
	case <-l.done:
		c.Close()
	}
}

// answer gives a call its outcome, or closes it when nobody waits any more.
func (l *Link) answer(t token, a answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := l.waiting[t]; got != nil {
		delete(l.waiting, t)
		got <- a
	} else if a.conn != nil {
		go a.conn.Close()
	}
}

// callBack does what call asks for at the other end.
func (l *Link) callBack(t token, kind byte) {
	ctx, cancel := l.within(context.Background())
	defer cancel()
	raw, secured, err := l.dialler.again(ctx, preface{asAnswer, t, kind})
	if err != nil {
		l.send(controlCannot, t, 0)
		return
	}
	select {
	case l.room <- struct{}{}:
		l.arrive(kind, l.adopt(raw, secured))
	case <-l.done:
		raw.Close()
	}
}

// adopt binds a connection to the link's life.
func (l *Link) adopt(raw *net.TCPConn, secured *tls.Conn) *Conn {
	c := &Conn{secured, raw, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		raw.Close() // the link has ended, and each use of the connection says so
	} else {
		l.conns[c] = struct{}{}
	}
	return c
}

// Read is as of any connection, but when the link has ended the error is the link's.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.reason(err)
}

// Write is as of any connection, but when the link has ended the error is the link's.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.reason(err)
}

func (c *Conn) reason(err error) error {
	if gone := c.link.Err(); err != nil && gone != nil {
		return gone
	}
	return err
}

// Close ends the connection. The peer is told, unless it does not take it.
func (c *Conn) Close() error {
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	c.raw.SetDeadline(time.Now().Add(time.Second))
	err := c.Conn.Close()
	c.raw.Close()
	return err
}
