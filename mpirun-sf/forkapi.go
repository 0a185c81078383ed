package main

import (
	"context"
	"errors"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// forkAPI is the VM fork API of the machine that this process runs in.
type forkAPI struct{}

var _ launch.API = forkAPI{}

func (forkAPI) Whoami(ctx context.Context) (launch.Self, error) {
	i, err := vmfork.Whoami(ctx)
	return launch.Self{ID: i.ID, Member: i.Member, Name: i.Name, IP: i.IP, VCPUs: i.VCPUs, Ticket: i.Ticket}, err
}

func (forkAPI) RequestTicket(ctx context.Context, clones, vcpus int) (ticket.Ticket, error) {
	return vmfork.RequestTicket(ctx, clones, vmfork.VCPUs(vcpus))
}

func (forkAPI) Checkpoint(ctx context.Context) (string, int, error) {
	c, id, err := vmfork.CheckpointParent(ctx)
	return string(c), id, err
}

func (forkAPI) CreateClones(ctx context.Context, checkpoint, id string) error {
	return vmfork.CreateClones(ctx, vmfork.Checkpoint(checkpoint), ticket.Ticket{ID: id})
}

func (forkAPI) Discard(ctx context.Context, checkpoint string) error {
	return vmfork.Discard(ctx, vmfork.Checkpoint(checkpoint))
}

func (forkAPI) Join(ctx context.Context, id string) error {
	_, err := vmfork.Join(ctx, ticket.Ticket{ID: id})
	var said *api.Error
	switch {
	case errors.Is(err, vmfork.ErrCloned):
		return errors.New("this copy of mpirun-sf is in a clone that another fork made; its ranks are with the original")
	case errors.As(err, &said):
		return errors.New(said.Text)
	}
	return err
}

func (forkAPI) Machines(ctx context.Context) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	members, err := vmfork.List(ctx)
	for _, m := range members {
		names = append(names, m.Name)
	}
	return names, err
}

func (forkAPI) Kill(ctx context.Context, id string) error {
	return vmfork.Kill(ctx, ticket.Ticket{ID: id})
}

func (forkAPI) HoldTicket(ctx context.Context, id string) error {
	return vmfork.HoldTicket(ctx, ticket.Ticket{ID: id})
}

func (forkAPI) HoldCheckpoint(ctx context.Context, checkpoint string) error {
	return vmfork.HoldCheckpoint(ctx, vmfork.Checkpoint(checkpoint))
}

func (forkAPI) Exit() error { return vmfork.Exit(0) }
