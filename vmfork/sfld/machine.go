package sfld

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// machine is a VM of the job: a clone, or the parent of all.
type machine struct {
	ticket.Clone // who it is; ID 0 for one that is nobody's clone
	grant        *grant
	parent       *machine // whose fork made it, nil for one of the booted guest
	host         *site    // which carries it

	forking sync.Mutex // one fork at a time

	// Guarded by Engine.mu.
	base   *generation // what it goes on from
	next   *successor  // of its next fork
	ready  bool        // it has started
	frozen bool        // it is being forked
	ended  bool
	gone   chan struct{} // closed when nothing is left of it
}

// successor is the generation that a machine's next fork freezes, and the
// process in which the machine goes on then.
type successor struct {
	generation *generation
	ready      chan struct{} // closed when the process waits, or err is known
	err        error
}

// newMachine is a machine whose hypervisor waits over a generation.
func (e *Engine) newMachine(who ticket.Clone, host *site, g *generation) *machine {
	return &machine{Clone: who, host: host, base: e.retain(g), gone: make(chan struct{})}
}

// start brings a machine to life, whose hypervisor was prepared, with an
// identity of its own.
func (e *Engine) start(ctx context.Context, m *machine, fork agent.Fork) (carrier.Started, error) {
	e.mu.Lock()
	e.machines[m.Member] = m // what it calls can come before Start returns
	e.mu.Unlock()
	s, err := m.host.Start(ctx, m.Member, e.identity(m, fork))
	e.mu.Lock()
	m.ready = err == nil
	e.mu.Unlock()
	return s, err
}

// machine finds one by its number, nil if there is none.
func (e *Engine) machine(member int) *machine {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.machines[member]
}

// identity is all that tells one machine from the others. Its randomness is
// fresh for every one.
func (e *Engine) identity(m *machine, fork agent.Fork) agent.Identity {
	random := make([]byte, 112)
	rand.Read(random)
	seed, boot, machineID, session := random[:64], random[64:80], random[80:96], random[96:]
	boot[6], boot[8] = boot[6]&0x0f|0x40, boot[8]&0x3f|0x80 // a random UUID, RFC 9562
	var others []int
	e.mu.Lock()
	for member := range e.machines {
		others = append(others, member)
	}
	ticketID := ""
	if m.grant != nil {
		ticketID = m.grant.ticket.ID
		for _, c := range m.grant.ticket.Clones {
			if e.machines[c.Member] == nil {
				others = append(others, c.Member)
			}
		}
	}
	e.mu.Unlock()
	id := agent.Identity{
		Clone: m.ID, Ticket: ticketID, Member: m.Member, Name: m.Name, Host: m.Host, VCPUs: m.VCPUs,
		Network:   e.plan.Guest(m.Member, others),
		Seed:      seed,
		BootID:    fmt.Sprintf("%x-%x-%x-%x-%x", boot[:4], boot[4:6], boot[6:8], boot[8:10], boot[10:]),
		MachineID: hex.EncodeToString(machineID),
		Session:   session, Fork: fork,
	}
	id.Network.Gateway = e.gateway
	if m := e.connected(); m != nil {
		id.Network.MTU = m.mtu
	}
	return id
}

// end takes a machine away, and with it what it has: its clones, unless they
// are another's, and its checkpoints. Afterwards its number is free for others,
// also for who was not the first to end it.
func (e *Engine) end(m *machine) {
	e.mu.Lock()
	if m.ended {
		e.mu.Unlock()
		<-m.gone
		return
	}
	m.ended = true
	defer close(m.gone)
	if e.machines[m.Member] == m {
		delete(e.machines, m.Member)
	}
	var grants []*grant
	for _, g := range e.grants {
		if g.owner == m {
			grants = append(grants, g)
		}
	}
	var checkpoints []string
	for id, c := range e.checkpoints {
		if c.owner == m {
			checkpoints = append(checkpoints, id)
		}
	}
	e.mu.Unlock()
	m.host.End(m.Member) // what waits for it fails now, a fork that is under way too
	for _, g := range grants {
		e.discard(g)
	}
	for _, id := range checkpoints {
		e.forget(id)
	}
	m.forking.Lock()
	defer m.forking.Unlock()
	e.mu.Lock()
	base, next := m.base, m.next
	e.mu.Unlock()
	if next != nil {
		<-next.ready
		e.dismiss(m, next)
	}
	e.release(base)
}
