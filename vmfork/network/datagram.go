package network

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// idleFlow is after how long without a datagram a flow is over, and idleQuestion when it was for a resolver.
	idleFlow, idleQuestion = time.Minute, 10 * time.Second
	maxDatagram            = 1 << 16
)

// A flow is the datagrams between a member's port and one outside.
type flow struct {
	key   flowKey
	early chan []byte // those that came before the flow had a socket of its own
	last  atomic.Int64
}

type flowKey struct{ member, outside netip.AddrPort }

// receive gets the first datagrams of flows.
func (w *way) receive() {
	buffer, control := make([]byte, maxDatagram), make([]byte, 256)
	for {
		size, controls, _, member, err := w.udp.ReadMsgUDPAddrPort(buffer, control)
		if w.ctx.Err() != nil {
			return
		}
		outside, ok := meantFor(control[:controls])
		if err != nil || !ok {
			w.sleep(time.Millisecond)
			continue
		}
		key := flowKey{member, outside}
		w.mu.Lock()
		f := w.flows[key]
		if f == nil && len(w.flows) < maxDatagramFlows {
			f = &flow{key: key, early: make(chan []byte, 16)}
			w.flows[key] = f
			w.work.Go(func() {
				w.carryFlow(f)
				w.mu.Lock()
				delete(w.flows, key)
				w.mu.Unlock()
			})
		}
		w.mu.Unlock()
		if f == nil {
			continue
		}
		select {
		case f.early <- append([]byte(nil), buffer[:size]...):
		default: // lost, as datagrams are
		}
	}
}

// meantFor is the destination that a datagram had.
func meantFor(control []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, message := range messages {
		address, err := unix.ParseOrigDstAddr(&message)
		if v4, ok := address.(*unix.SockaddrInet4); err == nil && ok {
			return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port)), true
		}
	}
	return netip.AddrPort{}, false
}

// carryFlow carries a flow until it is idle. It has a socket at each end; the inner one's address is the destination's,
// so that answers come from there, and what the member sends from now on is read from it.
func (w *way) carryFlow(f *flow) {
	outer, err := w.dialOut("udp", f.key.outside)
	if err != nil {
		return
	}
	defer outer.Close()
	dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(f.key.outside), Control: transparent}
	var inner net.Conn
	err = w.network.inside(func() (err error) {
		inner, err = dialer.DialContext(w.ctx, "udp4", f.key.member.String())
		return err
	})
	if err != nil {
		return
	}
	defer inner.Close()
	ctx, over := context.WithCancel(w.ctx)
	defer over()
	stop := context.AfterFunc(ctx, func() {
		inner.Close()
		outer.Close()
	})
	defer stop()
	idle := idleFlow
	if f.key.outside.Port() == resolverPort {
		idle = idleQuestion
	}
	f.last.Store(time.Now().UnixNano())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case datagram := <-f.early:
				w.forward(outer, datagram, w.out)
			case <-ctx.Done():
				return
			}
		}
	})
	for _, way := range []struct {
		to, from net.Conn
		pace     *pace
	}{{outer, inner, w.out}, {inner, outer, w.in}} {
		all.Go(func() {
			defer over()
			w.pumpDatagrams(f, way.to, way.from, way.pace, idle)
		})
	}
	all.Wait()
}

func (w *way) pumpDatagrams(f *flow, to, from net.Conn, p *pace, idle time.Duration) {
	buffer := make([]byte, maxDatagram)
	for {
		_ = from.SetReadDeadline(time.Unix(0, f.last.Load()).Add(idle))
		size, err := from.Read(buffer)
		if err == nil {
			f.last.Store(time.Now().UnixNano())
			w.forward(to, buffer[:size], p)
			continue
		}
		// Nobody may be there yet (ECONNREFUSED), which ends nothing; nor does a silence in one direction alone.
		if w.ctx.Err() != nil || time.Since(time.Unix(0, f.last.Load())) >= idle {
			return
		}
		w.sleep(time.Millisecond)
	}
}

// forward loses a datagram that the pace has no room for: to wait would not make the sender slower.
func (w *way) forward(to net.Conn, datagram []byte, p *pace) {
	if p.late() {
		return
	}
	p.spend(int64(len(datagram)))
	_, _ = to.Write(datagram)
}
