package launch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// Self is what a VM knows of itself.
type Self struct {
	ID     int // 0: not a clone
	Member int // number on the private network, unique in it
	Name   string
	IP     netip.Addr // its own, on the private network
	VCPUs  int
	Ticket string // that it was made by; empty: not a clone
}

// API is the part of the VM fork API (paper table I) that a job inside a VM
// needs. Calls may be made from several goroutines at once.
type API interface {
	Whoami(ctx context.Context) (Self, error)
	// RequestTicket asks for clones of vcpus virtual CPUs each; it may be
	// granted fewer, but not none.
	RequestTicket(ctx context.Context, clones, vcpus int) (ticket.Ticket, error)
	// Clone returns in the parent, with 0, and in every clone, with its id.
	Clone(ctx context.Context, ticket string) (id int, err error)
	// Join waits for the end of all clones, and fails at once if there is
	// nothing more to wait for: somebody killed the ticket.
	Join(ctx context.Context, ticket string) error
	// Machines are the names of all machines that there are.
	Machines(ctx context.Context) ([]string, error)
	Kill(ctx context.Context, ticket string) error
	// Exit ends the clone that it is called in. It returns only if it cannot.
	Exit() error
}

// Fork makes clones of the VM that this process runs in, and in each of them its
// copy serves the launcher in the parent as a guest's agent serves a host.
type Fork struct {
	API    API
	Self   Self
	Ticket ticket.Ticket
	// Limit is how long clones may take until they have all come.
	Limit time.Duration
	// InClone, if set, is called first in every clone.
	InClone func()

	// What the copies have to know of the original.
	key    key
	parent netip.AddrPort
}

// Clone forks. In the parent it returns a session for each clone, in the order
// of the ticket; in a clone it does not return.
func (f *Fork) Clone(ctx context.Context) ([]*agent.Session, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.Self.IP, 0)))
	if err != nil {
		return nil, fmt.Errorf("listen for the clones: %w", err)
	}
	defer l.Close()
	f.key, f.parent = newKey(), l.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithTimeout(ctx, f.Limit)
	defer cancel()
	id, err := f.API.Clone(ctx, f.Ticket.ID)
	switch {
	case id > 0:
		l.Close()
		f.BeClone(id)
	case err != nil:
		f.leaveIfClone()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("the clones of this VM were not ready in %v; --start-timeout gives more time", f.Limit)
		}
		return nil, err
	}
	return f.gather(ctx, l)
}

// leaveIfClone ends this copy if it is in a clone of this fork whose call has
// failed, for instance because a signal came at the moment of the fork: the
// shell that the original returns to must not go on twice. In a clone of
// somebody else's fork it is theirs to end.
func (f *Fork) leaveIfClone() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if now, err := f.API.Whoami(ctx); err == nil && now.Member != f.Self.Member && now.Ticket == f.Ticket.ID {
		f.leave()
	}
}

// BeClone is the life of the launcher's copy in clone id: it serves the original
// until that is gone or done, and ends the clone. It never returns, for whoever
// called the launcher waits for it in every copy.
func (f *Fork) BeClone(id int) {
	defer f.leave() // also of a panic
	if f.InClone != nil {
		f.InClone()
	}
	detach()
	// As in the guest's agent: a collection costs more than what it finds.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	d := net.Dialer{Timeout: handshakeLimit}
	conn, err := d.Dial("tcp", f.parent.String())
	if err != nil {
		return
	}
	if f.key.introduce(conn, id) != nil {
		return
	}
	agent.Serve(conn)
}

// leave ends the clone. There is nowhere to return to, and nobody to tell.
func (f *Fork) leave() {
	for {
		f.API.Exit()
		time.Sleep(time.Second)
	}
}

// detach takes the standard streams away from a copy: they are the original's.
// Even what the runtime says when it dies goes nowhere.
func detach() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	for fd := range 3 {
		unix.Dup3(int(null.Fd()), fd, 0)
	}
	null.Close()
}

// arrival is a connection that has been looked at.
type arrival struct {
	id   int // 0: it was a stranger's
	conn net.Conn
}

// gather waits for every clone of the ticket, once each. Strangers, and who
// comes twice, are sent away; they cannot hold up others.
func (f *Fork) gather(ctx context.Context, l *net.TCPListener) (_ []*agent.Session, err error) {
	arrivals := make(chan arrival)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed: whoever waits has stopped
			}
			go func() {
				id, err := f.key.admit(conn)
				if err != nil {
					return
				}
				select {
				case arrivals <- arrival{id, conn}:
				case <-done:
					conn.Close()
				}
			}()
		}
	}()
	sessions := make([]*agent.Session, len(f.Ticket.Clones))
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
		case a := <-arrivals:
			at := slices.IndexFunc(f.Ticket.Clones, func(c ticket.Clone) bool { return c.ID == a.id })
			if at < 0 || sessions[at] != nil {
				a.conn.Close()
				continue
			}
			if sessions[at], err = agent.Dial(a.conn); err != nil {
				a.conn.Close()
				return nil, fmt.Errorf("%s: %w", f.Ticket.Clones[at].Name, err)
			}
			missing--
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, ctx.Err()
			}
			var names []string
			for i, s := range sessions {
				if s == nil {
					names = append(names, f.Ticket.Clones[i].Name)
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

// Watch reports a clone that is lost, until the job's context ends.
func (f *Fork) Watch(ctx context.Context, lost chan<- string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reasons := make(chan string, 2)
	go func() {
		if err := f.API.Join(ctx, f.Ticket.ID); err != nil && ctx.Err() == nil {
			reasons <- err.Error()
		}
	}()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(watchInterval):
			}
			// Of what it cannot be asked now, it will be asked again.
			if names, err := f.API.Machines(ctx); err == nil {
				for _, c := range f.Ticket.Clones {
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
		select {
		case lost <- reason:
		default:
		}
	case <-ctx.Done():
	}
}

// Places says which ranks run where: the first in the parent, if it has a
// session of its own, the others in the clones as the ticket has it.
func (f *Fork) Places(np, parentRanks int, parent *agent.Session, clones []*agent.Session) []Place {
	var places []Place
	if parentRanks > 0 {
		p := Place{Name: f.Self.Name, IP: f.Self.IP.String(), Session: parent}
		for rank := range parentRanks {
			p.Ranks = append(p.Ranks, rank)
		}
		places = append(places, p)
	}
	for i, ranks := range f.Ticket.Ranks(np - parentRanks) {
		c := f.Ticket.Clones[i]
		for n := range ranks {
			ranks[n] += parentRanks
		}
		places = append(places, Place{Name: c.Name, IP: c.IP.String(), Session: clones[i], Ranks: ranks})
	}
	return places
}
