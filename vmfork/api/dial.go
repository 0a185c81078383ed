package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
)

// A Conn is a client's connection. Calls of several goroutines take turns.
type Conn struct {
	conn net.Conn
	r    *bufio.Reader
	turn chan struct{} // holds one token while a call is under way
}

// Dial connects to the socket at path. The error wraps that of connect(2).
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the VM fork socket: %w", err)
	}
	return NewConn(conn), nil
}

// NewConn is a client on a connection that there is already.
func NewConn(conn net.Conn) *Conn {
	return &Conn{conn: conn, r: bufio.NewReader(conn), turn: make(chan struct{}, 1)}
}

// Close ends the connection, and cancels a call that waits.
func (c *Conn) Close() error { return c.conn.Close() }

// Do makes one call and waits for its reply, as long as ctx lets it. The error
// is the reply's own [Error]; or ctx's cause, and then the call has been
// cancelled and the connection closed; or of kind [KindUnavailable] if the
// connection ended, and then it is not known whether the call was carried out.
func (c *Conn) Do(ctx context.Context, r Request) (Reply, error) {
	if err := r.Check(); err != nil {
		return Reply{}, err
	}
	line, err := r.Line()
	if err != nil {
		return Reply{}, Fail(KindInvalid, "%v", err).Err
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return Reply{}, context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return Reply{}, context.Cause(ctx) // or it would be sent first
	}
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	reply, err := c.exchange(line)
	if err != nil {
		c.conn.Close() // a reply that comes now would be taken for the next call's
		if ctx.Err() != nil {
			return Reply{}, context.Cause(ctx)
		}
		return Reply{}, Fail(KindUnavailable, "%v", err).Err
	}
	if reply.Err != nil {
		return reply, reply.Err
	}
	return reply, nil
}

func (c *Conn) exchange(line []byte) (Reply, error) {
	if _, err := c.conn.Write(line); err != nil {
		return Reply{}, fmt.Errorf("send the call: %w", err)
	}
	answer, err := readLine(c.r)
	if err != nil {
		return Reply{}, fmt.Errorf("wait for the reply: %w", err)
	}
	return ParseReply(answer)
}
