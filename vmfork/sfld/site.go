package sfld

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
)

// site is a host of the job, and what the allocation says of it.
type site struct {
	carrier.Host
	number  int
	carries bool // clones; the coordinator's host may carry none
	slots   int  // virtual CPUs of clones that it may carry, 0: as many as fit
	last    bool // it is filled after the others

	used int // of them; guarded by Engine.mu
}

// blame names the host in the error of something that happened there, unless it
// is named already.
func (s *site) blame(err error) error {
	if s.number == 0 || strings.Contains(err.Error(), "host "+s.Name()) {
		return err
	}
	return fmt.Errorf("host %s: %w", s.Name(), err)
}

// carriers are the hosts that carry clones.
func (e *Engine) carriers() (all []*site) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.hosts {
		if s.carries {
			all = append(all, s)
		}
	}
	slices.SortStableFunc(all, func(a, b *site) int {
		switch {
		case a.last == b.last:
			return 0
		case b.last:
			return -1
		}
		return 1
	})
	return all
}

// slots says how many virtual CPUs the hosts may carry, 0 if one of them has no
// such limit.
func (e *Engine) slots() (hosts, slots int) {
	all := e.carriers()
	for _, s := range all {
		if s.slots == 0 {
			return len(all), 0
		}
		slots += s.slots
	}
	return len(all), slots
}

// where names them.
func (e *Engine) where() string {
	var names []string
	for _, s := range e.carriers() {
		names = append(names, s.Name())
	}
	return strings.Join(names, ", ")
}

// equip settles on all hosts what machines are made with.
func (e *Engine) equip(ctx context.Context, eq carrier.Equipment) (out carrier.Equipped, err error) {
	if out, err = e.local.Equip(ctx, eq); err != nil {
		return out, err
	}
	eq.Hypervisor, eq.Accel = out.Hypervisor, out.Accel
	e.shape = eq.Shape
	e.mu.Lock()
	others := e.hosts[1:]
	e.mu.Unlock()
	errs := make([]error, len(others))
	var hosts []allocator.Host
	var group errgroup.Group
	for i, s := range others {
		hosts = append(hosts, allocator.Host{Name: s.Name()})
		group.Go(func() error {
			there, err := s.Equip(ctx, eq)
			switch {
			case err != nil:
				errs[i] = err
			case there.Version != out.Version:
				errs[i] = fmt.Errorf("its hypervisor is %s, and %s here: a machine's state loads only into the same", there.Version, out.Version)
			}
			return nil
		})
	}
	group.Wait()
	return out, allocator.CollectErrors(hosts, errs)
}

// place tells all hosts where a ticket's clones are.
func (e *Engine) place(ctx context.Context, t *grant) error {
	e.mu.Lock()
	hosts := e.hosts
	e.mu.Unlock()
	if len(hosts) == 1 {
		return nil
	}
	where := map[int]int{}
	for i, c := range t.ticket.Clones {
		where[c.Member] = t.at[i].number
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range hosts {
		group.Go(func() error { return s.Place(ctx, where) })
	}
	return group.Wait()
}

// reserve reserves memory for as many of a grant's clones as fit, and says where
// each of them is to be.
func (e *Engine) reserve(ctx context.Context, g *grant, d allocator.Demand) error {
	sites := e.carriers()
	rooms := make([]allocator.Room, len(sites))
	group, each := errgroup.WithContext(ctx)
	for i, s := range sites {
		group.Go(func() (err error) {
			if rooms[i], err = s.Room(each); err != nil {
				err = fmt.Errorf("%s: %w", s.Name(), err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	e.mu.Lock()
	for i, s := range sites {
		rooms[i].Slots, rooms[i].Used = s.slots, s.used
	}
	shares := allocator.Divide(d, rooms)
	for i, s := range sites {
		for _, vcpus := range shares[i] {
			s.used += vcpus // settled below
		}
	}
	e.mu.Unlock()
	got := make([]carrier.Reserved, len(sites))
	group, each = errgroup.WithContext(ctx)
	for i, s := range sites {
		if len(shares[i]) > 0 {
			group.Go(func() (err error) {
				if got[i], err = s.Reserve(each, g.ticket.ID, d.On(shares[i])); err != nil {
					err = fmt.Errorf("%s: %w", s.Name(), err)
				}
				return err
			})
		}
	}
	err := group.Wait()
	g.room.Each = d.Memory + allocator.Overhead
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, s := range sites {
		for _, vcpus := range shares[i] {
			s.used -= vcpus
		}
		g.room.Cores += rooms[i].CPUs
		g.room.Free += rooms[i].Free
		for _, vcpus := range got[i].VCPUs {
			s.used += vcpus
			g.at, g.room.VCPUs = append(g.at, s), append(g.room.VCPUs, vcpus)
		}
	}
	if err != nil {
		for i, s := range g.at {
			s.used -= g.room.VCPUs[i]
		}
		for _, s := range sites {
			s.Unreserve(g.ticket.ID)
		}
	}
	return err
}
