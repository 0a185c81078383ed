package launch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
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
	// Checkpoint keeps the VM as it is now. It returns with id 0 here, and again
	// in every clone that is made of it, with the clone's id.
	Checkpoint(ctx context.Context) (checkpoint string, id int, err error)
	// CreateClones makes a ticket's clones, and returns when all of them run.
	CreateClones(ctx context.Context, checkpoint, ticket string) error
	Discard(ctx context.Context, checkpoint string) error
	// Join waits for the end of all clones, and fails at once if there is
	// nothing more to wait for: somebody killed the ticket.
	Join(ctx context.Context, ticket string) error
	// Machines are the names of all machines that there are.
	Machines(ctx context.Context) ([]string, error)
	Kill(ctx context.Context, ticket string) error
	// HoldTicket has a ticket killed, and HoldCheckpoint a checkpoint discarded,
	// when this process is no more, however it ends, or when ctx has ended: until
	// then they wait.
	HoldTicket(ctx context.Context, ticket string) error
	HoldCheckpoint(ctx context.Context, checkpoint string) error
	// Exit ends the clone that it is called in. It returns only if it cannot.
	Exit() error
}

// Fork makes clones of the VM that this process runs in, and in each of them its
// copy serves the launcher in the parent as a guest's agent serves a host. All
// of them are of one checkpoint: those that are made in the middle of a job are
// copies of the launcher as it was before the job, which holds no conversation.
type Fork struct {
	API  API
	Self Self
	// Limit is how long clones may take until they have all come.
	Limit time.Duration
	// InClone, if set, is called first in every clone.
	InClone func()

	// What the copies have to know of the original.
	key    key
	parent netip.AddrPort

	checkpoint string
	listener   *net.TCPListener
	held       context.CancelFunc

	mu      sync.Mutex          // guards awaited
	awaited map[string]*awaited // by ticket
}

// ErrNoCheckpoint says that clones were asked for that nobody had prepared.
var ErrNoCheckpoint = errors.New("this VM was not checkpointed before the job")

// Checkpoint keeps the VM as it is now, for clones to be made of it. In a clone it
// does not return. The caller closes the fork.
func (f *Fork) Checkpoint(ctx context.Context) error {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.Self.IP, 0)))
	if err != nil {
		return fmt.Errorf("listen for the clones: %w", err)
	}
	f.key, f.parent = newKey(), l.Addr().(*net.TCPAddr).AddrPort()
	// What cuts this short in one copy may not do so in another.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.Limit)
	defer cancel()
	checkpoint, id, err := f.API.Checkpoint(limited)
	if id > 0 {
		l.Close()
		f.BeClone(id)
	}
	if err != nil {
		l.Close()
		f.leaveIfClone(err)
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("this VM was not checkpointed in %v; --start-timeout gives more time", f.Limit)
		}
		return err
	}
	f.checkpoint, f.listener, f.awaited = checkpoint, l, map[string]*awaited{}
	var holding context.Context
	holding, f.held = context.WithCancel(context.WithoutCancel(ctx))
	go f.API.HoldCheckpoint(holding, checkpoint)
	go f.receive(l)
	return nil
}

// Clones makes the clones of a ticket, and returns a session for each, in the
// order of the ticket. After an error the ticket is the caller's to kill.
func (f *Fork) Clones(ctx context.Context, t ticket.Ticket) ([]*agent.Session, error) {
	if f.checkpoint == "" {
		return nil, ErrNoCheckpoint
	}
	a := f.await(t)
	defer f.stopAwaiting(a)
	ctx, cancel := context.WithTimeout(ctx, f.Limit)
	defer cancel()
	if err := f.API.CreateClones(ctx, f.checkpoint, t.ID); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("the clones of this VM were not ready in %v; --start-timeout gives more time", f.Limit)
		}
		return nil, err
	}
	return f.gather(ctx, a)
}

// Close gives the checkpoint up. Clones that were made of it live on.
func (f *Fork) Close(ctx context.Context) {
	if f.listener == nil {
		return
	}
	f.listener.Close()
	f.API.Discard(ctx, f.checkpoint)
	f.held()
	f.listener, f.checkpoint = nil, ""
}

// leaveIfClone ends this copy if it is in a clone of this checkpoint whose call has
// failed: the shell that the original returns to must not go on twice. In a clone
// of somebody else's fork it is theirs to end, and there the call says so.
func (f *Fork) leaveIfClone(err error) {
	if errors.Is(err, vmfork.ErrCloned) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if now, err := f.API.Whoami(ctx); err == nil && now.Member != f.Self.Member {
		f.leave()
	}
}

// whoamiLimit is how long a clone's agent may take to say which ticket made it.
const whoamiLimit = 10 * time.Second

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
	ctx, cancel := context.WithTimeout(context.Background(), whoamiLimit)
	defer cancel()
	self, err := f.API.Whoami(ctx)
	if err != nil {
		return
	}
	d := net.Dialer{Timeout: handshakeLimit}
	conn, err := d.Dial("tcp", f.parent.String())
	if err != nil {
		return
	}
	if f.key.introduce(conn, member{self.Ticket, id}) != nil {
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

// Places says which ranks run where: the first in the parent, if it has a
// session of its own, the others in the clones as their ticket has it.
func (f *Fork) Places(t ticket.Ticket, np, parentRanks int, parent *agent.Session, clones []*agent.Session) []Place {
	var places []Place
	if parentRanks > 0 {
		p := Place{Name: f.Self.Name, IP: f.Self.IP.String(), Session: parent}
		for rank := range parentRanks {
			p.Ranks = append(p.Ranks, rank)
		}
		places = append(places, p)
	}
	for i, ranks := range t.Ranks(np - parentRanks) {
		c := t.Clones[i]
		for n := range ranks {
			ranks[n] += parentRanks
		}
		places = append(places, Place{Name: c.Name, IP: c.IP.String(), Session: clones[i], Ranks: ranks})
	}
	return places
}
