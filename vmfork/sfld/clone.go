package sfld

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
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

// warmUp begins to start the hypervisor process of a grant's clone over a
// generation. One that is started already is good if it is over the same
// generation, and is ended otherwise. For a grant that is discarded nothing is
// started, for nobody would end it.
func (e *Engine) warmUp(t *grant, i int, g *generation) *warmed {
	who := t.ticket.Clones[i]
	e.mu.Lock()
	if w := e.warm[who.Member]; w != nil && w.base != g {
		e.mu.Unlock()
		e.cool(who.Member)
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	return e.warmUpLocked(t, i, g)
}

func (e *Engine) warmUpLocked(t *grant, i int, g *generation) *warmed {
	who, host := t.ticket.Clones[i], t.at[i]
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
		if w.err = e.expect(e.ctx, g, host); w.err != nil {
			return
		}
		if w.err = host.Prepare(e.ctx, who, g.name, e.disk); w.err == nil {
			w.machine = e.newMachine(who, host, g)
		}
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
	var sites []*site // that carry some of them
	for i, s := range t.at {
		e.warmUp(t, i, g)
		if !slices.Contains(sites, s) {
			sites = append(sites, s)
		}
	}
	if err := e.place(ctx, t); err != nil {
		return nil, err
	}
	if err := e.bring(ctx, g, sites); err != nil {
		return nil, err
	}
	var mu sync.Mutex // guards result
	group, each := errgroup.WithContext(ctx)
	for i, who := range t.ticket.Clones {
		group.Go(func() error {
			w := e.warmUp(t, i, g)
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
			waited := time.Since(began)
			s, err := e.start(each, m, fork)
			if err != nil {
				return m.host.blame(err)
			}
			e.mu.Lock()
			delete(e.warm, who.Member)
			t.clones[who.ID] = m
			e.mu.Unlock()
			mu.Lock()
			result.Running[who.ID], result.Ready[who.ID], result.CPU[who.ID] = waited+s.Running, waited+s.Ready, s.CPU
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
	if err := parent.host.Introduce(ctx, parent.Member, members); err != nil && !e.isEnded(parent) {
		return err
	}
	return nil
}
