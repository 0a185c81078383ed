package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listenTransparently opens the sockets that get what is diverted: TCP and UDP, with one port.
func (w *way) listenTransparently(ctx context.Context) error {
	address := netip.AddrPortFrom(w.network.plan.Host(), 0)
	config := net.ListenConfig{Control: transparent}
	config.SetMultipathTCP(false)
	err := w.network.inside(func() (err error) {
		// The port that is free for one is rarely another's for the other.
		for range 10 {
			if w.tcp, err = config.Listen(ctx, "tcp4", address.String()); err != nil {
				return err
			}
			var udp net.PacketConn
			if udp, err = config.ListenPacket(ctx, "udp4", w.tcp.Addr().String()); err == nil {
				w.udp = udp.(*net.UDPConn)
				return nil
			}
			w.tcp.Close()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("listen to what goes out: %w", err)
	}
	return nil
}

// transparent lets a socket have addresses that are not this host's.
func transparent(_, _ string, raw syscall.RawConn) (err error) {
	set := func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
			return
		}
		if err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1); err != nil {
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return errors.Join(raw.Control(set), err)
}

// accept gives each connection to carry, which runs on its own and closes it.
func (w *way) accept(listener net.Listener, carry func(*net.TCPConn)) {
	for {
		conn, err := listener.Accept()
		switch {
		case w.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case err != nil: // there are no descriptors, or it was gone already
			w.sleep(10 * time.Millisecond)
			continue
		}
		c := conn.(*net.TCPConn)
		select {
		case w.connections <- struct{}{}:
			w.work.Go(func() {
				defer func() { <-w.connections }()
				carry(c)
			})
		default:
			reset(c)
		}
	}
}

// reset closes a connection so that the other end sees that it failed.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}

// carryOut carries a member's connection to where the member meant it to go, which is the local address of this end.
func (w *way) carryOut(inner *net.TCPConn) {
	outer, err := w.dialOut("tcp", inner.LocalAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		reset(inner)
		return
	}
	w.join(inner, outer.(*net.TCPConn))
}

// carryIn carries a connection from outside to the parent.
func (w *way) carryIn(outer *net.TCPConn, port uint16) {
	parent := netip.AddrPortFrom(w.network.plan.IP(0), port)
	inner, err := w.dial(w.network.inside, "tcp4", parent)
	if err != nil {
		reset(outer)
		return
	}
	w.join(inner.(*net.TCPConn), outer)
}

func (w *way) dialOut(kind string, to netip.AddrPort) (net.Conn, error) {
	to, err := w.permitted(to)
	if err != nil {
		return nil, err
	}
	return w.dial(func(f func() error) error { return inNamespace(w.home, f) }, kind, to)
}

// dial occupies a thread until there is a connection, or none.
func (w *way) dial(inside func(func() error) error, kind string, to netip.AddrPort) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(w.ctx, dialLimit)
	defer cancel()
	select {
	case w.dials <- struct{}{}:
		defer func() { <-w.dials }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to %v: wait until others are: %w", to, ctx.Err())
	}
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	err = inside(func() (err error) {
		conn, err = dialer.DialContext(ctx, kind, to.String())
		return err
	})
	return conn, err
}

// join carries both directions of a connection, until both are at their ends or one fails.
func (w *way) join(inner, outer *net.TCPConn) {
	abort := func() {
		reset(inner)
		reset(outer)
	}
	stop := context.AfterFunc(w.ctx, abort)
	defer stop()
	var both sync.WaitGroup
	for _, way := range []struct {
		to, from *net.TCPConn
		pace     *pace
	}{{outer, inner, w.out}, {inner, outer, w.in}} {
		both.Go(func() {
			err := w.pump(way.to, way.from, way.pace)
			if err == nil {
				err = way.to.CloseWrite()
			}
			if err != nil {
				abort()
			}
		})
	}
	both.Wait()
	inner.Close()
	outer.Close()
}

// pump copies in pieces, and takes the time after each that the pace demands: meanwhile the sender's window fills, and
// TCP slows down without losing a packet. The kernel copies (splice(2)).
func (w *way) pump(to, from *net.TCPConn, p *pace) error {
	if p == nil {
		_, err := io.Copy(to, from)
		return err
	}
	for {
		n, err := io.CopyN(to, from, p.piece)
		switch {
		case err == io.EOF:
			p.spend(n)
			return nil
		case err != nil:
			return err
		}
		w.sleep(p.spend(n))
	}
}

// sleep ends early with the way.
func (w *way) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.ctx.Done():
	}
}

// slack is for how long a pace may have been unused and have that made up for.
const slack = 50 * time.Millisecond

// A pace is how fast bytes may go one way, of all connections together. A nil pace is any.
type pace struct {
	rate  float64 // bytes per second
	piece int64   // a sensible number of bytes between two calls of spend

	mu   sync.Mutex
	next time.Time // when all that was spent has had its time
}

func newPace(bits int64) *pace {
	if bits == 0 {
		return nil
	}
	rate := float64(bits) / 8
	return &pace{rate: rate, piece: min(max(int64(rate/100), 500), 256<<10)}
}

// spend says how long to wait after n bytes.
func (p *pace) spend(n int64) time.Duration {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if earliest := now.Add(-slack); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	return p.next.Sub(now)
}

// late says that a datagram would have to wait for so long that it had better be lost.
func (p *pace) late() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Until(p.next) > slack
}
