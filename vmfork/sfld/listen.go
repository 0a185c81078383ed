package sfld

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/hashicorp/yamux"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
)

// How machines reach the launcher, which is not in their network.
//
//  1. [Client.Listen] has the daemon listen at the gateway's address of the
//     private network.
//  2. For each connection that the launcher is ready to take it opens a stream.
//     The daemon accepts one connection, writes who it comes from (the address in
//     4 bytes and the port in 2, high first), and carries bytes from then on.
//
// What becomes of a connection is the launcher's affair: the daemon connects to
// nothing. The network lets no member send from another's address.

// Listening is a listener of the launcher's.
type Listening struct{ Address netip.AddrPort }

// Listen listens for connections of machines.
func (s *service) Listen(_ int, out *Listening) error {
	e := s.e
	l, err := e.local.Network().Listen(e.ctx, 0)
	if err != nil {
		return err
	}
	out.Address = l.Addr().(*net.TCPAddr).AddrPort()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		l.Close()
		return net.ErrClosed
	}
	e.listeners[out.Address.Port()] = l
	return nil
}

// StopListening closes a listener. Connections go on.
func (s *service) StopListening(port uint16, _ *int) error {
	e := s.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.listeners[port]; l != nil {
		delete(e.listeners, port)
		return l.Close()
	}
	return nil
}

// peerSize is how long the name of who a connection comes from is, in bytes.
const peerSize = 6

// accept gives one connection of a machine to the launcher.
func (e *Engine) accept(st *yamux.Stream) {
	var port [2]byte
	if _, err := io.ReadFull(st, port[:]); err != nil {
		return
	}
	e.mu.Lock()
	l := e.listeners[uint16(port[0])<<8|uint16(port[1])]
	e.mu.Unlock()
	if l == nil {
		return
	}
	conn, err := l.Accept()
	if err != nil {
		return
	}
	// A machine that is gone does not end its connections.
	stop := context.AfterFunc(e.ctx, func() { conn.Close() })
	defer stop()
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	ip := from.Addr().Unmap().As4()
	if _, err := st.Write(append(ip[:], byte(from.Port()>>8), byte(from.Port()))); err != nil {
		conn.Close()
		return
	}
	carrier.Splice(st, conn)
}

// Listen listens for TCP connections of the job's machines, at an address of
// their private network. A connection's remote address is the machine's.
func (c *Client) Listen(ctx context.Context) (net.Listener, error) {
	var l Listening
	if err := c.call(ctx, "Listen", 0, &l); err != nil {
		return nil, err
	}
	return &listener{client: c, address: l.Address, closed: make(chan struct{})}, nil
}

type listener struct {
	client  *Client
	address netip.AddrPort
	closing sync.Once
	closed  chan struct{}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.address) }

// Accept waits for a connection. One goroutine may wait.
func (l *listener) Accept() (net.Conn, error) {
	port := l.address.Port()
	st, err := l.client.open(streamAccept, byte(port>>8), byte(port))
	if err != nil {
		return nil, fmt.Errorf("accept a machine's connection: %w", err)
	}
	var peer [peerSize]byte
	if _, err := io.ReadFull(st, peer[:]); err != nil {
		st.Close()
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		default:
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("the host daemon listens no more")
		}
		return nil, fmt.Errorf("accept a machine's connection: %w", err)
	}
	from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(peer[:4])), uint16(peer[4])<<8|uint16(peer[5]))
	return &peerConn{st, from}, nil
}

// Close ends a waiting Accept. Connections go on.
func (l *listener) Close() (err error) {
	l.closing.Do(func() {
		close(l.closed)
		err = l.client.call(context.Background(), "StopListening", l.address.Port(), new(int))
	})
	return err
}

// peerConn is a connection that a machine made.
type peerConn struct {
	net.Conn
	from netip.AddrPort
}

func (c *peerConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }
