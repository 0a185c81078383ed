package pmi

import (
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// barrier is one that local ranks are in.
type barrier struct {
	local  []int        // its members on this clone
	in     map[int]bool // those that have entered
	remote bool         // it has members on other clones: the server says when it is over
	out    chan struct{}
}

// enter puts a local rank into a barrier. The last one of the clone takes everybody's puts upstream, if the barrier goes
// beyond the clone. out is closed when all members are in. A rank that is in this barrier already, with another thread, has
// to wait for out and enter again.
func (p *Proxy) enter(rank int, m members) (out <-chan struct{}, entered bool, err error) {
	p.writing.Lock() // before mu: puts must go up in the order in which they are taken from pending
	defer p.writing.Unlock()
	p.mu.Lock()
	b := p.barriers[m.name]
	if b == nil {
		local := m.of(p.ranks)
		b = &barrier{
			local: local, in: map[int]bool{}, out: make(chan struct{}),
			remote: !m.node && len(local) < m.size(p.group.Size),
		}
		p.barriers[m.name] = b
	}
	if b.in[rank] {
		p.mu.Unlock()
		return b.out, false, nil
	}
	b.in[rank] = true
	if len(b.in) < len(b.local) {
		p.mu.Unlock()
		return b.out, true, nil
	}
	if !b.remote {
		p.release(m.name, b)
		p.mu.Unlock()
		return b.out, true, nil
	}
	frames := appendPairs(nil, message{kind: kindBarrierIn, barrier: m.name}, p.pending.take())
	p.mu.Unlock()
	return b.out, true, p.writeLocked(frames)
}

// release ends a barrier, with p.mu held.
func (p *Proxy) release(name string, b *barrier) {
	delete(p.barriers, name)
	close(b.out)
}

// barrierOut does what the server asks for when all are in.
func (p *Proxy) barrierOut(m message) error {
	b := p.barriers[m.barrier]
	if b == nil || !b.remote || len(b.in) < len(b.local) {
		return fmt.Errorf("the launcher ended barrier %s out of turn", hearsay.Clip(m.barrier))
	}
	if err := p.learn(m.pairs); err != nil {
		return err
	}
	p.release(m.barrier, b)
	return nil
}

// missing says whom a rank waits for in a barrier, or nothing if it is in none.
func (p *Proxy) missing(rank int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.barriers {
		if !b.in[rank] {
			continue
		}
		var local []int
		for _, r := range b.local {
			if !b.in[r] {
				local = append(local, r)
			}
		}
		if len(local) > 0 {
			return "local ranks " + formatRanks(local)
		}
		return "ranks of other clones"
	}
	return ""
}
