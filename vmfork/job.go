package vmfork

import (
	"context"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// An Identity is who a machine is among those of its job.
type Identity = api.Identity

// A Member is a machine of the job, as [List] has it.
type Member = api.Machine

// Whoami tells who the machine is: its id, and in a clone its ticket.
func (m Machine) Whoami(ctx context.Context) (Identity, error) {
	reply, err := m.do(ctx, m.request(api.Whoami))
	var i Identity
	if err == nil {
		i, err = reply.Identity()
	}
	if err != nil {
		return Identity{}, fmt.Errorf("ask who the machine is: %w", err)
	}
	return i, nil
}

// AwaitFork returns in each clone that any fork makes of this machine, with its
// id and its ticket: it is the callback that a transitive call has in the
// machine that it forks (2.3). In that machine itself it goes on waiting.
func AwaitFork(ctx context.Context) (id int, ticket string, err error) {
	reply, err := Machine{}.do(ctx, api.NewRequest(api.AwaitFork))
	if err == nil {
		id, err = reply.ID()
	}
	if err == nil {
		ticket, err = reply.Name("ticket")
	}
	if err != nil {
		return 0, "", fmt.Errorf("await a fork: %w", err)
	}
	return id, ticket, nil
}

// List is all machines of the job.
func List(ctx context.Context) ([]Member, error) { return Machine{}.List(ctx) }

// List is all machines of the job that m's socket belongs to, whatever m is.
func (m Machine) List(ctx context.Context) ([]Member, error) {
	reply, err := m.do(ctx, api.NewRequest(api.List))
	var members []Member
	if err == nil {
		members, err = reply.Machines()
	}
	if err != nil {
		return nil, fmt.Errorf("list the machines: %w", err)
	}
	return members, nil
}

// The calls of table I upon the caller's own machine.

// RequestTicket is [Machine.RequestTicket] of the caller's own machine.
func RequestTicket(ctx context.Context, n int, options ...TicketOption) (Ticket, error) {
	return Machine{}.RequestTicket(ctx, n, options...)
}

// LookUpTicket is [Machine.LookUpTicket] of the caller's own machine.
func LookUpTicket(ctx context.Context, id string) (Ticket, error) {
	return Machine{}.LookUpTicket(ctx, id)
}

// Clone is [Machine.Clone] of the caller's own machine.
func Clone(ctx context.Context, t Ticket) (id int, err error) { return Machine{}.Clone(ctx, t) }

// CheckpointParent is [Machine.CheckpointParent] of the caller's own machine.
func CheckpointParent(ctx context.Context) (c Checkpoint, id int, err error) {
	return Machine{}.CheckpointParent(ctx)
}

// CreateClones is [Machine.CreateClones] of the caller's own machine.
func CreateClones(ctx context.Context, c Checkpoint, t Ticket) error {
	return Machine{}.CreateClones(ctx, c, t)
}

// Discard is [Machine.Discard] of the caller's own machine.
func Discard(ctx context.Context, c Checkpoint) error { return Machine{}.Discard(ctx, c) }

// Exit is [Machine.Exit] of the caller's own machine.
func Exit(status int) error { return Machine{}.Exit(status) }

// Join is [Machine.Join] of the caller's own machine.
func Join(ctx context.Context, t Ticket) (statuses map[int]int, err error) {
	return Machine{}.Join(ctx, t)
}

// TryJoin is [Machine.TryJoin] of the caller's own machine.
func TryJoin(ctx context.Context, t Ticket) (statuses map[int]int, err error) {
	return Machine{}.TryJoin(ctx, t)
}

// Kill is [Machine.Kill] of the caller's own machine.
func Kill(ctx context.Context, t Ticket) error { return Machine{}.Kill(ctx, t) }

// KillClone is [Machine.KillClone] of the caller's own machine.
func KillClone(ctx context.Context, t Ticket, id int) error { return Machine{}.KillClone(ctx, t, id) }

// HoldTicket is [Machine.HoldTicket] of the caller's own machine.
func HoldTicket(ctx context.Context, t Ticket) error { return Machine{}.HoldTicket(ctx, t) }

// HoldCheckpoint is [Machine.HoldCheckpoint] of the caller's own machine.
func HoldCheckpoint(ctx context.Context, c Checkpoint) error {
	return Machine{}.HoldCheckpoint(ctx, c)
}

// Whoami is [Machine.Whoami] of the caller's own machine.
func Whoami(ctx context.Context) (Identity, error) { return Machine{}.Whoami(ctx) }
