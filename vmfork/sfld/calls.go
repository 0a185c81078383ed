package sfld

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
)

// The VM fork API (table I of the paper), as processes in VMs and on the host
// call it.

// checkpoint is a generation that is kept for later clones.
type checkpoint struct {
	generation *generation
	owner      *machine // nil for the host
	of         *machine
	call       string // the one in the VM that asked for it, whose copies return in clones
}

// caller is who calls.
type caller struct {
	e    *Engine
	m    *machine // nil for the host
	call string   // names the call, if it may fork the machine that it comes from
}

// Call implements [api.Handler].
func (c caller) Call(ctx context.Context, r api.Request) api.Reply {
	reply, err := c.do(ctx, r)
	if err != nil {
		return api.FailWith(err)
	}
	return reply
}

func (c caller) do(ctx context.Context, r api.Request) (reply api.Reply, err error) {
	e := c.e
	target, err := c.target(r)
	if err != nil {
		return reply, err
	}
	switch r.Call {
	case api.Whoami:
		return e.who(target).Reply(), nil
	case api.List:
		return e.list(), nil
	case api.RequestTicket:
		return c.requestTicket(ctx, r, target)
	case api.Exit:
		if target.grant == nil {
			return reply, refuse("%s is no clone: only clones exit", target.Name)
		}
		e.exit(target, r.Int("status", 0))
		if target == c.m {
			<-ctx.Done() // a clone's exit does not return
		}
		return api.OK(), nil
	case api.CheckpointParent:
		return c.checkpointParent(ctx, target)
	case api.Hold:
		return reply, c.hold(ctx, r)
	case api.Discard:
		k, err := c.checkpoint(r)
		if err != nil {
			return reply, err
		}
		e.release(k.generation)
		e.forget(r.Value("checkpoint"))
		return api.OK(), nil
	}
	g, err := c.grant(r)
	if err != nil {
		return reply, err
	}
	switch r.Call {
	case api.ShowTicket:
		return api.TicketReply(g.ticket), nil
	case api.Clone:
		call := c.call
		if target != c.m {
			call = ""
		}
		f, cloned, err := e.live(ctx, g, target, call)
		if err != nil {
			return reply, err
		}
		return withTimes(api.IDReply(0), f, cloned), nil
	case api.CreateClones:
		k, err := c.checkpoint(r)
		if err != nil {
			return reply, err
		}
		defer e.release(k.generation)
		err = e.fork(ctx, g, func(ctx context.Context) error {
			_, err := e.clones(ctx, g, k.generation, k.of, agent.Fork{Call: k.call, Checkpoint: r.Value("checkpoint")})
			return err
		})
		return api.IDReply(0), err
	case api.Join:
		if limit, ok := r.Timeout(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		exits, lost, err := e.join(ctx, g)
		if err != nil {
			return reply, err
		}
		if len(lost) > 0 {
			var reasons []string
			ids := slices.Sorted(maps.Keys(lost))
			for _, id := range ids {
				reasons = append(reasons, fmt.Sprintf("clone %d was lost: %v", id, lost[id]))
			}
			return api.LostReply(ids, exits, "%s", strings.Join(reasons, "; ")), nil
		}
		return api.JoinReply(exits), nil
	case api.Kill:
		if id := r.Int("clone", 0); id != 0 {
			return api.OK(), e.kill(g, id)
		}
		e.discard(g)
		return api.OK(), nil
	}
	return reply, &api.Error{Kind: api.KindInvalid, Text: "the host daemon knows no call " + r.Call}
}

// withTimes adds what a fork cost, for whoever measures it.
func withTimes(r api.Reply, f carrier.Frozen, c *Cloned) api.Reply {
	add := func(key string, n int64) {
		r.Args = append(r.Args, api.Arg{Key: key, Value: strconv.FormatInt(n, 10)})
	}
	add("pause-us", f.Pause.Microseconds())
	add("state-bytes", int64(f.State))
	add("dirtied-pages", f.Dirtied)
	if c != nil {
		add("running-us", longest(c.Running).Microseconds())
		add("ready-us", longest(c.Ready).Microseconds())
	}
	return r
}

// target is the VM that a call is about: the caller's own, or one that it owns.
func (c caller) target(r api.Request) (*machine, error) {
	name := r.Value("vm")
	if name == "" {
		if c.m != nil {
			return c.m, nil
		}
		name = c.e.plan.Name(0)
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	for _, m := range c.e.machines {
		if m.Name != name {
			continue
		}
		if !c.ownsLocked(m) {
			return nil, refuse("%s is not a VM of yours: neither this one nor a clone of it", name)
		}
		return m, nil
	}
	return nil, unknown("there is no VM %s", name)
}

// ownsLocked says whether a machine is the caller's, or came of it by forks.
func (c caller) ownsLocked(m *machine) bool {
	if c.m == nil {
		return true
	}
	for ; m != nil; m = m.parent {
		if m == c.m {
			return true
		}
	}
	return false
}

// grant is the ticket that a call names.
func (c caller) grant(r api.Request) (*grant, error) {
	id := r.Value("ticket")
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	g := c.e.grants[id]
	switch {
	case g == nil:
		return nil, unknown("there is no ticket %s; one that was joined or killed is gone", id)
	case r.Call == api.ShowTicket: // no secret
	case c.m != nil && (g.owner == nil || !c.ownsLocked(g.owner)):
		return nil, refuse("ticket %s is another VM's", id)
	}
	return g, nil
}

// checkpoint is the checkpoint that a call names. Its generation is the
// caller's to release: it may be discarded meanwhile.
func (c caller) checkpoint(r api.Request) (*checkpoint, error) {
	id := r.Value("checkpoint")
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	k := c.e.checkpoints[id]
	switch {
	case k == nil:
		return nil, unknown("there is no checkpoint %s; one that was discarded is gone", id)
	case c.m != nil && (k.owner == nil || !c.ownsLocked(k.owner)):
		return nil, refuse("checkpoint %s is another VM's", id)
	}
	k.generation.uses++
	return k, nil
}

func (c caller) requestTicket(ctx context.Context, r api.Request, target *machine) (reply api.Reply, err error) {
	e := c.e
	d := demand{clones: r.Int("clones", 1), vcpus: r.Int("vcpus", 1), hierarchical: r.Int("hierarchical", 0) == 1}
	if d.vcpus > e.shape.VCPUs {
		return reply, &api.Error{Kind: api.KindInvalid, Text: fmt.Sprintf("%d virtual CPUs are more than the %d that %s was made with", d.vcpus, e.shape.VCPUs, target.Name)}
	}
	g, err := e.request(ctx, c.m, d, e.shape.VCPUs, e.shape.Memory)
	if err == nil && ctx.Err() != nil {
		e.discard(g) // who asked has gone, and nobody else knows of it
		err = ctx.Err()
	}
	if err != nil {
		return reply, err
	}
	if len(g.ticket.Clones) == 0 {
		return reply, &api.Error{Kind: api.KindResources, Text: fmt.Sprintf("no clone of %d MB fits into the %d MB that are free on %s", g.room.Each>>20, g.room.Free>>20, e.where())}
	}
	// The fork is likely soon: what takes long is begun.
	s := e.succeed(target)
	e.background.Go(func() {
		if <-s.ready; s.err != nil {
			return // the fork will say so
		}
		e.warmUpFor(g, target, s)
	})
	return api.TicketReply(g.ticket), nil
}

// warmUpFor starts the hypervisors of a ticket's clones over the generation
// that a VM's next fork will make, unless the ticket is used by now.
func (e *Engine) warmUpFor(g *grant, of *machine, s *successor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g.gone || g.used || of.ended || of.next != s {
		return
	}
	for i := range g.ticket.Clones {
		e.warmUpLocked(g, i, s.generation)
	}
}

func (c caller) checkpointParent(ctx context.Context, target *machine) (reply api.Reply, err error) {
	e := c.e
	generation, f, err := e.freeze(ctx, target)
	if err != nil {
		return reply, err
	}
	k := &checkpoint{generation: generation, owner: c.m, of: target}
	if target == c.m {
		k.call = c.call
	}
	id := fmt.Sprintf("%s-c%d", e.opts.Job, e.number())
	e.mu.Lock()
	gone := c.m != nil && c.m.ended // and its checkpoints with it
	unasked := ctx.Err() != nil     // who asked has gone, and nobody else knows its name
	if !gone && !unasked {
		e.checkpoints[id] = k
	}
	e.mu.Unlock()
	switch {
	case gone:
		e.release(generation)
		return reply, unknown("%s is gone", c.m.Name)
	case unasked:
		e.release(generation)
		return reply, ctx.Err()
	}
	return withTimes(api.CheckpointReply(id, 0, ""), f, nil), nil
}

// hold waits until the caller goes away, and gives back what the call names.
func (c caller) hold(ctx context.Context, r api.Request) error {
	if r.Value("ticket") == "" && r.Value("checkpoint") == "" {
		return &api.Error{Kind: api.KindInvalid, Text: "hold wants ticket= or checkpoint="}
	}
	if id := r.Value("checkpoint"); id != "" {
		k, err := c.checkpoint(r)
		if err != nil {
			return err
		}
		c.e.release(k.generation)
		defer c.e.forget(id)
	}
	if r.Value("ticket") != "" {
		g, err := c.grant(r)
		if err != nil {
			return err
		}
		defer c.e.discard(g)
	}
	<-ctx.Done()
	return ctx.Err() // which nobody reads
}

// forget discards a checkpoint. Clones that were made of it live on.
func (e *Engine) forget(id string) {
	e.mu.Lock()
	k := e.checkpoints[id]
	delete(e.checkpoints, id)
	e.mu.Unlock()
	if k != nil {
		e.release(k.generation)
	}
}

func (e *Engine) who(m *machine) api.Identity {
	i := api.Identity{ID: m.ID, Member: m.Member, Name: m.Name, IP: m.IP, VCPUs: m.VCPUs, Host: m.Host}
	if m.grant != nil {
		i.Ticket = m.grant.ticket.ID
	}
	return i
}

func (e *Engine) list() api.Reply {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []api.Machine
	for _, member := range slices.Sorted(maps.Keys(e.machines)) {
		m := e.machines[member]
		one := api.Machine{Name: m.Name, Member: member, IP: m.IP, Parent: -1, ID: m.ID}
		if m.parent != nil {
			one.Parent = m.parent.Member
		}
		if m.grant != nil {
			one.Ticket = m.grant.ticket.ID
		}
		all = append(all, one)
	}
	return api.ListReply(all)
}

func (e *Engine) isEnded(m *machine) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return m.ended
}

func refuse(format string, args ...any) error {
	return &api.Error{Kind: api.KindRefused, Text: fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) error {
	return &api.Error{Kind: api.KindUnknown, Text: fmt.Sprintf(format, args...)}
}
