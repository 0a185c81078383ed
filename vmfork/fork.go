package vmfork

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// A Ticket allows one fork into the clones that it describes (table I): m of
// them where n were asked for, m ≤ n, with their ids 1…m, addresses on the
// private network, virtual CPUs, and hosts.
type Ticket = ticket.Ticket

// A TicketOption is a wish at [RequestTicket].
type TicketOption func(api.Request) api.Request

// Hierarchical makes n the number of processors: clones get up to as many
// virtual CPUs as the machine has, all together at most n, and the caller
// forks processes in each of them (2.1).
func Hierarchical() TicketOption {
	return func(r api.Request) api.Request { return r.With("hierarchical", "1") }
}

// VCPUs gives each clone k virtual CPUs, at most as many as the machine has.
func VCPUs(k int) TicketOption {
	return func(r api.Request) api.Request { return r.With("vcpus", strconv.Itoa(k)) }
}

// RequestTicket reserves n clones, and returns a ticket for m of them, 1 ≤ m ≤
// n (table I). Errors: [ErrResources] if there is room for none.
func (m Machine) RequestTicket(ctx context.Context, n int, options ...TicketOption) (Ticket, error) {
	r := m.request(api.RequestTicket, "clones", strconv.Itoa(n))
	for _, o := range options {
		r = o(r)
	}
	return m.ticket(ctx, r, "request a ticket")
}

// LookUpTicket is the ticket with that name, as [RequestTicket] returned it.
// Clones can look up the ticket that made them, to know of each other.
func (m Machine) LookUpTicket(ctx context.Context, id string) (Ticket, error) {
	return m.ticket(ctx, m.request(api.ShowTicket, "ticket", id), "look up ticket "+id)
}

func (m Machine) ticket(ctx context.Context, r api.Request, what string) (Ticket, error) {
	reply, err := m.do(ctx, r)
	var t Ticket
	if err == nil {
		t, err = reply.Ticket()
	}
	if err != nil {
		return Ticket{}, fmt.Errorf("%s: %w", what, err)
	}
	return t, nil
}

// Clone forks the machine, and returns in each copy of it: 0 in the parent,
// when all clones run, and in a clone its id (table I). When it fails there
// are no clones, and the ticket is discarded. Errors: [ErrState] if the ticket
// has made its clones already, [ErrFailed], [ErrKilled].
func (m Machine) Clone(ctx context.Context, t Ticket) (id int, err error) {
	reply, err := m.do(ctx, m.request(api.Clone, "ticket", t.ID))
	if err == nil {
		id, err = reply.ID()
	}
	if err != nil {
		return 0, fmt.Errorf("clone ticket %s: %w", t.ID, err)
	}
	return id, nil
}

// A Checkpoint is a machine as it was once, of which clones can be made at any
// later time (table I, 2.3).
type Checkpoint string

// CheckpointParent makes an immutable checkpoint of the machine, which runs on.
// It returns with id 0 there; and again, with a clone's id, in each clone that
// [CreateClones] makes of it: that one begins here.
func (m Machine) CheckpointParent(ctx context.Context) (c Checkpoint, id int, err error) {
	reply, err := m.do(ctx, m.request(api.CheckpointParent))
	var name string
	if err == nil {
		name, err = reply.Name("checkpoint")
	}
	if err == nil {
		id, err = reply.ID()
	}
	if err != nil {
		return "", 0, fmt.Errorf("checkpoint the machine: %w", err)
	}
	return Checkpoint(name), id, nil
}

// CreateClones makes the ticket's clones of a checkpoint, and returns when all
// of them run (table I). It never returns in a clone; [CheckpointParent] does.
// Errors as of [Clone]; [ErrUnknown] if the checkpoint was discarded.
func (m Machine) CreateClones(ctx context.Context, c Checkpoint, t Ticket) error {
	if _, err := m.do(ctx, m.request(api.CreateClones, "checkpoint", string(c), "ticket", t.ID)); err != nil {
		return fmt.Errorf("create clones of checkpoint %s: %w", c, err)
	}
	return nil
}

// Discard gives a checkpoint up. Clones that were made of it live on.
func (m Machine) Discard(ctx context.Context, c Checkpoint) error {
	if _, err := m.do(ctx, m.request(api.Discard, "checkpoint", string(c))); err != nil {
		return fmt.Errorf("discard checkpoint %s: %w", c, err)
	}
	return nil
}

// HoldTicket has the ticket killed when the caller's process ends, however it
// does, or when ctx does; until then it waits. It is for programs of which nothing
// may stay when they are killed: a ticket that nobody joins lasts as long as its
// machine. A fork ends it in the clones alone, with [ErrCloned].
func (m Machine) HoldTicket(ctx context.Context, t Ticket) error {
	_, err := m.do(ctx, m.request(api.Hold, "ticket", t.ID))
	return fmt.Errorf("hold ticket %s: %w", t.ID, err)
}

// HoldCheckpoint is [Machine.HoldTicket] for a checkpoint, which is discarded.
func (m Machine) HoldCheckpoint(ctx context.Context, c Checkpoint) error {
	_, err := m.do(ctx, m.request(api.Hold, "checkpoint", string(c)))
	return fmt.Errorf("hold checkpoint %s: %w", c, err)
}

// exitLimit is how long a clone may take to end.
const exitLimit = time.Minute

// Exit ends the clone that it is called in, the whole machine, with a status
// of 0 to 255 for [Join] (table I). It does not return, and deferred functions
// do not run. Elsewhere it fails with [ErrRefused]. As a transitive call it
// ends the other machine, and returns nil.
func (m Machine) Exit(status int) error {
	err := fmt.Errorf("the clone has not ended within %v", exitLimit)
	ctx, cancel := context.WithTimeoutCause(context.Background(), exitLimit, err)
	defer cancel()
	_, err = m.do(ctx, m.request(api.Exit, "status", strconv.Itoa(status)))
	if err == nil && m.Name == "" {
		<-ctx.Done() // it was answered, and the machine has moments left
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("exit: %w", err)
	}
	return nil
}

// Join waits until the ticket's clones have all ended; then the ticket is
// discarded (table I). It returns the statuses of [Exit] by id. If some ended
// without it, the error is a [*LostError], and the statuses are of the others.
// If ctx ends first, the ticket stays, and can be joined again.
func (m Machine) Join(ctx context.Context, t Ticket) (statuses map[int]int, err error) {
	return m.join(ctx, m.request(api.Join, "ticket", t.ID), t.ID)
}

// TryJoin is [Machine.Join] for those who do not want to wait: it fails with
// [ErrTimeout] if not all clones have ended, and the ticket stays.
func (m Machine) TryJoin(ctx context.Context, t Ticket) (statuses map[int]int, err error) {
	return m.join(ctx, m.request(api.Join, "ticket", t.ID, "timeout", "0"), t.ID)
}

func (m Machine) join(ctx context.Context, r api.Request, id string) (map[int]int, error) {
	reply, failed := m.do(ctx, r)
	if failed != nil {
		failed = fmt.Errorf("join ticket %s: %w", id, failed)
		if !errors.Is(failed, ErrLost) {
			return nil, failed
		}
	}
	statuses, err := reply.Statuses()
	if err != nil {
		return nil, fmt.Errorf("join ticket %s: %w", id, err)
	}
	if failed == nil {
		return statuses, nil
	}
	lost, err := reply.Lost()
	if err != nil {
		return nil, fmt.Errorf("join ticket %s: %w", id, err)
	}
	return statuses, &LostError{Clones: lost, Statuses: statuses, err: failed}
}

// Kill ends all clones of a ticket at once, and discards it (table I). What
// waits for the ticket fails with [ErrKilled].
func (m Machine) Kill(ctx context.Context, t Ticket) error {
	if _, err := m.do(ctx, m.request(api.Kill, "ticket", t.ID)); err != nil {
		return fmt.Errorf("kill ticket %s: %w", t.ID, err)
	}
	return nil
}

// KillClone ends one clone of a ticket. Its status is 137.
func (m Machine) KillClone(ctx context.Context, t Ticket, id int) error {
	if _, err := m.do(ctx, m.request(api.Kill, "ticket", t.ID, "clone", strconv.Itoa(id))); err != nil {
		return fmt.Errorf("kill clone %d of ticket %s: %w", id, t.ID, err)
	}
	return nil
}
