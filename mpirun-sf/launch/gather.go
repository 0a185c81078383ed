package launch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// arrival is a connection of a clone that has proved to be one.
type arrival struct {
	id   int
	conn net.Conn
}

// awaited are the clones of a ticket that are to come.
type awaited struct {
	ticket   ticket.Ticket
	arrivals chan arrival
	done     chan struct{} // closed when nobody waits any more
}

func (f *Fork) await(t ticket.Ticket) *awaited {
	a := &awaited{ticket: t, arrivals: make(chan arrival), done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.awaited[t.ID] = a
	return a
}

func (f *Fork) stopAwaiting(a *awaited) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.awaited, a.ticket.ID)
	close(a.done)
}

// anybody tells whether a clone is awaited.
func (f *Fork) anybody() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.awaited) > 0
}

// acceptPause is waited after a connection that could not be taken, for want of
// descriptors as a rule.
const acceptPause = 10 * time.Millisecond

// receive lets clones in as long as the fork is open. Strangers, and clones that
// nobody awaits, are sent away; they cannot hold up others.
func (f *Fork) receive(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(acceptPause)
		case !f.anybody():
			conn.Close()
		default:
			go f.admit(conn)
		}
	}
}

// admit finds out who has come.
func (f *Fork) admit(conn net.Conn) {
	who, err := f.key.admit(conn)
	if err != nil {
		return
	}
	f.mu.Lock()
	a := f.awaited[who.ticket]
	f.mu.Unlock()
	if a == nil {
		conn.Close()
		return
	}
	select {
	case a.arrivals <- arrival{who.id, conn}:
	case <-a.done:
		conn.Close()
	}
}

// gather waits for every clone of a ticket, once each. Who comes twice is sent
// away.
func (f *Fork) gather(ctx context.Context, a *awaited) (_ []*agent.Session, err error) {
	clones := a.ticket.Clones
	sessions := make([]*agent.Session, len(clones))
	defer func() {
		if err != nil {
			for _, s := range sessions {
				if s != nil {
					s.Close()
				}
			}
		}
	}()
	for missing := len(sessions); missing > 0; {
		select {
		case c := <-a.arrivals:
			at := slices.IndexFunc(clones, func(k ticket.Clone) bool { return k.ID == c.id })
			if at < 0 || sessions[at] != nil {
				c.conn.Close()
				continue
			}
			if sessions[at], err = agent.Dial(c.conn); err != nil {
				c.conn.Close()
				return nil, fmt.Errorf("%s: %w", clones[at].Name, err)
			}
			missing--
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, ctx.Err()
			}
			var names []string
			for i, s := range sessions {
				if s == nil {
					names = append(names, clones[i].Name)
				}
			}
			return nil, fmt.Errorf("%s did not come back to this VM in %v; is this machine overloaded? --start-timeout gives more time", strings.Join(names, ", "), f.Limit)
		}
	}
	return sessions, nil
}

// watchInterval is how often clones are looked after. A machine that is gone
// says nothing more, and its connections neither.
const watchInterval = 2 * time.Second

// Watch reports a clone of a ticket that is lost, until ctx ends: from then on
// the clones may go.
func (f *Fork) Watch(ctx context.Context, t ticket.Ticket, lost chan<- string) {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	reasons := make(chan string, 2)
	go func() {
		if err := f.API.Join(watching, t.ID); err != nil {
			reasons <- err.Error()
		}
	}()
	go func() {
		for {
			select {
			case <-watching.Done():
				return
			case <-time.After(watchInterval):
			}
			// Of what it cannot be asked now, it will be asked again.
			if names, err := f.API.Machines(watching); err == nil {
				for _, c := range t.Clones {
					if !slices.Contains(names, c.Name) {
						reasons <- c.Name + " was lost: its virtual machine has ended"
						return
					}
				}
			}
		}
	}()
	select {
	case reason := <-reasons:
		if ctx.Err() != nil {
			return // it has gone as it should
		}
		select {
		case lost <- reason:
		default:
		}
	case <-ctx.Done():
	}
}
