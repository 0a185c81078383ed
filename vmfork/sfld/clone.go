package sfld

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// warmed is a clone whose hypervisor was started ahead, over a generation that
// may be still to come.
type warmed struct {
	member  int
	base    *generation
	done    chan struct{}
	machine *machine // once done
	err     error
}

// processLimit is how long a hypervisor process may take to start.
const processLimit = time.Minute

// warmUp begins to start a clone's hypervisor process over a generation, which
// the caller holds, and above the disk layers of that. One that is started
// already is good if it is over the same generation, and is ended otherwise. For
// a grant that is discarded nothing is started, for nobody would end it.
func (e *Engine) warmUp(t *grant, who ticket.Clone, g *generation, below []*slice.Slice) *warmed {
	e.mu.Lock()
	if w := e.warm[who.Member]; w != nil && w.base != g {
		e.mu.Unlock()
		e.cool(who.Member)
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	return e.warmUpLocked(t, who, g, below)
}

func (e *Engine) warmUpLocked(t *grant, who ticket.Clone, g *generation, below []*slice.Slice) *warmed {
	if w := e.warm[who.Member]; w != nil {
		return w
	}
	w := &warmed{member: who.Member, base: g, done: make(chan struct{})}
	if t.gone || e.closed {
		w.err = killedError(t)
		close(w.done)
		return w
	}
	e.warm[who.Member] = w
	g.uses++
	e.background.Go(func() {
		defer close(w.done)
		defer e.release(g)
		ctx, cancel := context.WithTimeout(e.ctx, processLimit)
		defer cancel()
		if w.err = e.starts.Acquire(ctx, 1); w.err != nil {
			w.err = fmt.Errorf("start a hypervisor for %s: wait for others to start: %w", who.Name, w.err)
			return
		}
		defer e.starts.Release(1)
		w.machine, w.err = e.newMachine(ctx, who, g, below)
	})
	return w
}

// cool ends what was started ahead for a clone.
func (e *Engine) cool(member int) {
	e.mu.Lock()
	w := e.warm[member]
	delete(e.warm, member)
	e.mu.Unlock()
	if w == nil {
		return
	}
	if <-w.done; w.err == nil {
		e.end(w.machine)
	}
}

// clones makes the clones of a ticket from a generation, all at once: all of
// them or none. fork says what their copies of a call that waits are told.
func (e *Engine) clones(ctx context.Context, t *grant, g *generation, parent *machine, fork agent.Fork) (*Cloned, error) {
	began := time.Now()
	result := &Cloned{Running: map[int]time.Duration{}, Ready: map[int]time.Duration{}, CPU: map[int]time.Duration{}}
	for _, who := range t.ticket.Clones {
		e.warmUp(t, who, g, g.disk)
	}
	var mu sync.Mutex // guards result
	group, each := errgroup.WithContext(ctx)
	for _, who := range t.ticket.Clones {
		group.Go(func() error {
			w := e.warmUp(t, who, g, g.disk)
			select {
			case <-w.done:
			case <-each.Done():
				return fmt.Errorf("%s: wait for its hypervisor to start: %w", who.Name, each.Err())
			}
			if w.err != nil {
				return w.err
			}
			m := w.machine
			m.grant, m.parent = t, parent
			times, err := e.start(each, m, fork, began)
			if err != nil {
				return err
			}
			e.mu.Lock()
			delete(e.warm, who.Member)
			t.clones[who.ID] = m
			e.mu.Unlock()
			mu.Lock()
			result.Running[who.ID], result.Ready[who.ID], result.CPU[who.ID] = times.running, times.ready, times.cpu
			mu.Unlock()
			return nil
		})
	}
	if parent != nil {
		group.Go(func() error { return e.introduce(parent, t.ticket) })
	}
	err := group.Wait()
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// Every clone waited for the same deadline: name all that missed it.
		var missing []string
		for _, who := range t.ticket.Clones {
			if _, ok := result.Ready[who.ID]; !ok {
				missing = append(missing, who.Name)
			}
		}
		return nil, fmt.Errorf("%s did not become ready in time (the first: %w); is this machine overloaded? --start-timeout gives more time", strings.Join(missing, ", "), err)
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// introduceLimit is how long an agent may take to learn names.
const introduceLimit = time.Minute

// introduce makes the clones to come known to their parent, if that still
// lives: names, and neighbours that nobody has to ask for. It goes to its end
// even where a clone has failed, for an order that is cut off is a VM's last.
func (e *Engine) introduce(parent *machine, t ticket.Ticket) error {
	ctx, cancel := context.WithTimeout(e.ctx, introduceLimit)
	defer cancel()
	var members []network.Member
	for _, c := range t.Clones {
		members = append(members, e.plan.Member(c.Member))
	}
	parent.orders.Lock()
	defer parent.orders.Unlock()
	if err := parent.agent.Members(ctx, members); err != nil && !e.isEnded(parent) {
		return fmt.Errorf("%s: %w", parent.Name, err)
	}
	return nil
}
