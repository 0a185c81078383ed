package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// elastic is what a job in a virtual machine has of clones.
type elastic struct {
	mu       sync.Mutex // guards all below
	batches  []*batch
	ended    bool           // no ranks are spawned any more
	spawning sync.WaitGroup // of those that began before
}

// batch is a ticket and its clones.
type batch struct {
	ticket  ticket.Ticket
	unhold  context.CancelFunc // gives up what the daemon would do if this process were killed
	unwatch context.CancelFunc // ends the wait for lost clones
}

// request gets a ticket for up to so many clones, but not none.
func (j *inside) request(ctx context.Context, clones int) (*batch, error) {
	tk, err := j.api.RequestTicket(ctx, clones, j.ppn)
	if err != nil {
		return nil, err
	}
	b := &batch{ticket: tk, unwatch: func() {}}
	var holding context.Context
	holding, b.unhold = context.WithCancel(context.WithoutCancel(ctx))
	go j.api.HoldTicket(holding, tk.ID)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.batches = append(j.batches, b)
	return b, nil
}

// make makes a ticket's clones, and watches over them.
func (j *inside) make(ctx context.Context, b *batch) ([]*agent.Session, error) {
	sessions, err := j.fork.Clones(ctx, b.ticket)
	if err != nil {
		return nil, err
	}
	var watching context.Context
	watching, b.unwatch = context.WithCancel(context.WithoutCancel(ctx))
	go j.fork.Watch(watching, b.ticket, j.lost)
	return sessions, nil
}

// dismiss ends a ticket's clones. That nobody knows the ticket any more is no
// error: they may have gone by themselves.
func (j *inside) dismiss(ctx context.Context, b *batch) error {
	j.mu.Lock()
	at := slices.Index(j.batches, b)
	if at >= 0 {
		j.batches = slices.Delete(j.batches, at, at+1)
	}
	j.mu.Unlock()
	if at < 0 {
		return nil
	}
	b.unwatch()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
	defer cancel()
	err := j.api.Kill(ctx, b.ticket.ID)
	b.unhold()
	if errors.Is(err, vmfork.ErrUnknown) || errors.Is(err, vmfork.ErrCloned) {
		return nil
	}
	return err
}

// spawn places ranks that others want to have: where slots are free, and else in
// new clones of this machine as it was before the job, which are joined when the
// ranks have ended.
func (j *inside) spawn(ctx context.Context, apps []launch.App) (places []launch.Place, release func(), err error) {
	np, _, err := findSpawned(apps)
	if err != nil {
		return nil, nil, err
	}
	j.mu.Lock()
	if j.ended {
		j.mu.Unlock()
		return nil, nil, errors.New("the job is at its end")
	}
	j.spawning.Add(1)
	j.mu.Unlock()
	defer j.spawning.Done()
	return j.spare.fit(np, func(launch.Place) error { return nil }, // it has what this machine has
		func(np int) ([]launch.Place, func(), error) { return j.moreClones(ctx, np, apps) })
}

// moreClones makes clones for up to np ranks of apps, numbered from 0. end ends
// them.
func (j *inside) moreClones(ctx context.Context, np int, apps []launch.App) (places []launch.Place, end func(), err error) {
	// What is granted to somebody who has stopped waiting would be nobody's.
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.startLimit)
	defer cancel()
	b, err := j.request(limit, (np+j.ppn-1)/j.ppn)
	if errors.Is(err, vmfork.ErrResources) && fewerWillDo(apps) {
		return nil, func() {}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	end = func() { j.dismiss(ctx, b) }
	room := min(np, b.ticket.Slots())
	if room < np && !fewerWillDo(apps) {
		end()
		return nil, nil, fmt.Errorf("%d ranks more need %s, and %d can be made", np, plural((np+j.ppn-1)/j.ppn, "clone"), len(b.ticket.Clones))
	}
	begin := time.Now()
	sessions, err := j.make(ctx, b)
	if err != nil {
		end()
		return nil, nil, err
	}
	tui.Detail("%s for spawned ranks ready in %.2f s", plural(len(sessions), "clone"), time.Since(begin).Seconds())
	return j.fork.Places(b.ticket, room, 0, nil, sessions), end, nil
}

// fewerWillDo tells whether one of programs to be spawned starts with fewer ranks
// than it wants.
func fewerWillDo(apps []launch.App) bool {
	return slices.ContainsFunc(apps, func(a launch.App) bool { return a.Fewer })
}

// endSpawning ends all clones, and waits for those that are being made.
func (j *inside) endSpawning(ctx context.Context) error {
	j.mu.Lock()
	j.ended = true
	j.mu.Unlock()
	j.spawning.Wait()
	j.mu.Lock()
	left := slices.Clone(j.batches)
	j.mu.Unlock()
	var errs []error
	for _, b := range left {
		errs = append(errs, j.dismiss(ctx, b))
	}
	return errors.Join(errs...)
}
