package sfld

import (
	"context"
	"fmt"
	"maps"
	"sort"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// grant is a ticket and what became of it. It makes its clones once; when they
// are all gone, or it is killed, it is discarded.
type grant struct {
	ticket ticket.Ticket
	owner  *machine         // who may clone, join and kill by it; nil for the host
	at     []*site          // for each clone, the host that carries it
	room   carrier.Reserved // of all hosts together

	// Guarded by Engine.mu.
	used    bool // it has made its clones, or is at it
	cancel  context.CancelFunc
	forked  chan struct{} // with cancel, once used: closed when nobody makes clones any more
	gone    bool          // discarded
	clones  map[int]*machine
	exits   map[int]int   // by id, of those that have called exit
	lost    map[int]error // of those that ended otherwise
	changed chan struct{} // closed at the next change of exits, lost or gone
}

// demand is what a ticket is asked for.
type demand struct {
	clones       int
	vcpus        int
	hierarchical bool
	strict       bool
}

// request reserves memory and numbers for as many clones as fit.
func (e *Engine) request(ctx context.Context, owner *machine, d demand, vcpus int, memory int64) (*grant, error) {
	g := &grant{
		owner:  owner,
		clones: map[int]*machine{}, exits: map[int]int{}, lost: map[int]error{}, changed: make(chan struct{}),
	}
	id := fmt.Sprintf("%s-t%d", e.opts.Job, e.number())
	g.ticket.ID = id
	if err := e.reserve(ctx, g, allocator.Demand{
		Clones: d.clones, VCPUs: d.vcpus, Memory: memory, Strict: d.strict,
		Hierarchical: d.hierarchical, MaxVCPUs: vcpus,
	}); err != nil {
		return nil, err
	}
	members := e.takeMembers(len(g.at))
	e.mu.Lock()
	defer e.mu.Unlock()
	g.at = g.at[:len(members)]
	var hosts []string
	for _, s := range g.at {
		hosts = append(hosts, s.Name())
	}
	g.ticket = ticket.New(id, e.plan, d.clones, members, g.room.VCPUs, hosts)
	switch {
	case owner != nil && owner.ended:
		// What ends with it has been looked up already.
		e.freeLocked(g)
		return nil, unknown("%s is gone", owner.Name)
	case len(members) == 0:
		e.freeLocked(g)
	default:
		e.grants[id] = g
	}
	return g, nil
}

// freeLocked gives back what a grant has reserved.
func (e *Engine) freeLocked(g *grant) {
	for i, c := range g.ticket.Clones {
		delete(e.taken, c.Member)
		g.at[i].used -= c.VCPUs
	}
	for _, s := range e.hosts {
		s.Unreserve(g.ticket.ID)
	}
}

// forkLimit is how long a fork may take if its caller sets no limit: more than
// an agent takes to give up.
const forkLimit = 5 * time.Minute

// use marks a grant as having made its clones, and returns a context that
// discarding it ends. Whoever discards it waits for done.
func (e *Engine) use(ctx context.Context, g *grant) (limited context.Context, done func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case g.gone:
		return nil, nil, killedError(g)
	case g.used:
		return nil, nil, &api.Error{Kind: api.KindState, Text: fmt.Sprintf("ticket %s has made its clones; ask for another", g.ticket.ID)}
	}
	g.used = true
	limited, g.cancel = context.WithTimeout(ctx, forkLimit)
	g.forked = make(chan struct{})
	return limited, func() { g.cancel(); close(g.forked) }, nil
}

func killedError(g *grant) error {
	return &api.Error{Kind: api.KindKilled, Text: fmt.Sprintf("ticket %s was killed", g.ticket.ID)}
}

// fork makes a grant's clones by make, all or none. After an error the grant is
// discarded.
func (e *Engine) fork(ctx context.Context, g *grant, make func(ctx context.Context) error) error {
	limited, done, err := e.use(ctx, g)
	if err != nil {
		return err
	}
	err = make(limited)
	done()
	e.mu.Lock()
	gone := g.gone
	e.mu.Unlock()
	if err != nil || gone {
		e.discard(g)
		if gone {
			return killedError(g)
		}
	}
	return err
}

// live forks a running VM into the clones of a grant.
func (e *Engine) live(ctx context.Context, g *grant, of *machine, call string) (f carrier.Frozen, c *Cloned, err error) {
	err = e.fork(ctx, g, func(ctx context.Context) error {
		began := time.Now()
		generation, frozen, err := e.freeze(ctx, of)
		if err != nil {
			return err
		}
		defer e.release(generation)
		f = frozen
		frozenAt := time.Since(began)
		if c, err = e.clones(ctx, g, generation, of, agent.Fork{Call: call}); err == nil {
			c.after(frozenAt)
		}
		return err
	})
	return f, c, err
}

// discard ends a grant: its clones are killed, what it reserved is free. If
// clones are made of it just now, that fails first, so that none is forgotten.
func (e *Engine) discard(g *grant) {
	e.mu.Lock()
	if g.gone {
		e.mu.Unlock()
		return
	}
	g.gone = true
	delete(e.grants, g.ticket.ID)
	e.tellLocked(g)
	used := g.used
	e.mu.Unlock()
	if used {
		g.cancel()
		<-g.forked
	}
	e.killClones(g)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.freeLocked(g)
}

// killClones ends all that a grant has, also what was started ahead.
func (e *Engine) killClones(g *grant) {
	e.mu.Lock()
	running := maps.Clone(g.clones)
	e.mu.Unlock()
	done := make(chan struct{})
	for _, c := range g.ticket.Clones {
		go func() {
			defer func() { done <- struct{}{} }()
			e.cool(c.Member)
			if m := running[c.ID]; m != nil {
				e.end(m)
			}
		}()
	}
	for range g.ticket.Clones {
		<-done
	}
}

// tellLocked wakes who waits for a change.
func (e *Engine) tellLocked(g *grant) {
	close(g.changed)
	g.changed = make(chan struct{})
}

// exit ends a clone that has called exit.
func (e *Engine) exit(m *machine, status int) {
	e.mu.Lock()
	g := m.grant
	if _, done := g.exits[m.ID]; !done && g.lost[m.ID] == nil {
		g.exits[m.ID] = status
		e.tellLocked(g)
	}
	e.mu.Unlock()
	e.end(m)
}

// lose ends a machine that did not want to end.
func (e *Engine) lose(m *machine, reason error) {
	e.mu.Lock()
	g, ended := m.grant, m.ended
	if g != nil && !ended {
		if _, done := g.exits[m.ID]; !done && g.lost[m.ID] == nil {
			g.lost[m.ID] = reason
			e.tellLocked(g)
		}
	}
	e.mu.Unlock()
	if ended {
		return
	}
	if g == nil || g.owner == nil {
		e.notify(Notice{Gone: m.Name, Reason: reason.Error()})
	}
	e.end(m)
}

// kill ends one clone of a grant. One that is gone already is no error.
func (e *Engine) kill(g *grant, id int) error {
	e.mu.Lock()
	if id < 1 || id > len(g.ticket.Clones) {
		e.mu.Unlock()
		return &api.Error{Kind: api.KindUnknown, Text: fmt.Sprintf("ticket %s has no clone %d", g.ticket.ID, id)}
	}
	m := g.clones[id]
	if _, done := g.exits[id]; m != nil && !done && g.lost[id] == nil {
		// Whoever joins the others is not to wait for it.
		g.exits[id] = killedStatus
		e.tellLocked(g)
	}
	e.mu.Unlock()
	if m != nil {
		e.end(m)
	}
	return nil
}

// killedStatus is the exit status of a clone that was killed: what a shell
// says of a process that SIGKILL ended.
const killedStatus = 128 + 9

// join waits until all clones of a grant have ended, and discards it. The
// clones that did not call exit are lost.
func (e *Engine) join(ctx context.Context, g *grant) (exits map[int]int, lost map[int]error, err error) {
	for {
		e.mu.Lock()
		exits, lost = maps.Clone(g.exits), maps.Clone(g.lost)
		used, gone, changed := g.used, g.gone, g.changed
		e.mu.Unlock()
		switch {
		case len(exits)+len(lost) == len(g.ticket.Clones): // also where another has joined them just before
			e.discard(g)
			return exits, lost, nil
		case gone:
			return nil, nil, killedError(g)
		case !used:
			return nil, nil, &api.Error{Kind: api.KindState, Text: fmt.Sprintf("ticket %s has not made its clones", g.ticket.ID)}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var missing []string
			for _, c := range g.ticket.Clones {
				if _, done := exits[c.ID]; !done && lost[c.ID] == nil {
					missing = append(missing, c.Name)
				}
			}
			sort.Strings(missing)
			return nil, nil, &api.Error{Kind: api.KindTimeout, Text: fmt.Sprintf("%s did not exit in time", strings.Join(missing, ", "))}
		}
	}
}
