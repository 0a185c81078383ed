package pmi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// greetTime is how long one that connects to a port may take to say who it is.
const greetTime = 30 * time.Second

// maxGreetings is how many may be about to say it at once; the next ones wait for their turn.
const maxGreetings = 64

// PortEnviron is what a local rank must find in its environment to connect to ServePort: addr is where the listener can be
// reached, as IP:PORT, and id is what the rank will call itself.
func (p *Proxy) PortEnviron(rank int, addr string, id int) ([]string, error) {
	env, err := p.environ(rank)
	return append([]string{"PMI_PORT=" + addr, fmt.Sprintf("PMI_ID=%d", id)}, env...), err
}

// ServePort serves ranks that connect by TCP, as they do where PMI_PORT and PMI_ID are in their environment (PortEnviron)
// in place of PMI_FD. It accepts from l until that is closed or ctx ends, and returns when all connections have ended.
//
// Who may connect is the caller's decision, on which everything rests, since PMI knows no secrets: who is asked about each
// connection and the ID that it gives, and says which rank of which proxy that is, or why not. IDs need not be ranks: one
// port can serve several groups, and random IDs that only the ranks' environment tells are hard to guess. l should listen
// on loopback.
//
// report, which may be called by several goroutines, hears of connections that were refused and of ServeRank's errors. A
// rank whose process ends without having connected must be given to Absent, or Run waits for it for ever.
func ServePort(ctx context.Context, l net.Listener, who func(id int, conn net.Conn) (p *Proxy, rank int, err error), report func(error)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var served sync.WaitGroup
	defer served.Wait()
	greetings := make(chan struct{}, maxGreetings)
	for {
		select {
		case greetings <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept PMI connections on %s: %w", l.Addr(), err)
		}
		served.Go(func() {
			link, p, rank, err := greet(ctx, conn, who)
			<-greetings
			if err != nil {
				conn.Close()
				report(fmt.Errorf("PMI connection from %s: %w", conn.RemoteAddr(), err))
				return
			}
			if err := p.serve(ctx, rank, link); err != nil {
				report(err)
			}
		})
	}
}

// greet finds out who has connected: a client of PMI-1 says it in its first request, one of PMI-2 in its second.
func greet(ctx context.Context, conn net.Conn, who func(id int, conn net.Conn) (*Proxy, int, error)) (*link, *Proxy, int, error) {
	stop := context.AfterFunc(ctx, func() { interrupt(conn) })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(greetTime))
	l := newLink(conn)
	q, err := l.next()
	if err == nil && q.cmd == "init" {
		var version int
		if version, err = q.number("pmi_version"); err == nil && version == 2 {
			l.greetV2()
			q, err = l.next()
		}
	}
	if err != nil {
		return nil, nil, 0, fmt.Errorf("waiting for it to say who it is: %w", err)
	}
	l.held = append(l.held, q)
	l.id, err = q.identity()
	if err != nil {
		return nil, nil, 0, err
	}
	_ = conn.SetDeadline(time.Time{})
	p, rank, err := who(l.id, conn)
	return l, p, rank, err
}

// identity is the ID that a first request gives.
func (q request) identity() (int, error) {
	switch {
	case q.cmd == "initack" && !q.packet:
		return q.number("pmiid")
	case q.cmd == "fullinit" && q.packet:
		if _, given := q.get("pmirank"); given {
			return q.number("pmirank")
		}
		return q.number("srcid") // Slurm's client
	}
	return 0, fmt.Errorf("%s does not say who it is: is PMI_ID in its environment?", hearsay.Clip(q.cmd))
}

// Absent says that a rank's process has ended. One that never connected to the port counts as closed from then on; the
// connection of one that did ends by itself. ctx bounds the wait for Run to have begun.
func (p *Proxy) Absent(ctx context.Context, rank int) error {
	s, err := p.claim(rank)
	if err != nil {
		return nil // it has been served
	}
	select {
	case <-p.ready:
	case <-p.done:
		return p.lost()
	case <-ctx.Done():
		return fmt.Errorf("tell that rank %d never connected: waiting for the stream to the launcher: %w", rank, context.Cause(ctx))
	}
	return p.close(s)
}
