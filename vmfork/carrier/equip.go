package carrier

import (
	"context"
	"fmt"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// probes are those of accelerators that have begun, by kind of hypervisor. They take a moment, and nobody may need them.
type probes struct {
	mu  sync.Mutex
	all map[string]func() (accel string, reason error)
}

// of is one kind's probe, which runs once.
func (p *probes) of(ctx context.Context, k hypervisor.Kind) func() (accel string, reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all[k.Name] == nil {
		if p.all == nil {
			p.all = map[string]func() (string, error){}
		}
		p.all[k.Name] = sync.OnceValues(func() (string, error) { return k.Probe(ctx) })
	}
	return p.all[k.Name]
}

// Probe begins to find out which accelerator works, so that Equip need not wait.
func (c *Carrier) Probe(k hypervisor.Kind) { go c.probes.of(c.ctx, k)() }

// Equip implements [Host].
func (c *Carrier) Equip(ctx context.Context, e Equipment) (out Equipped, err error) {
	if c.cfg.Driver != nil {
		c.driver, c.shape = c.cfg.Driver, e.Shape
		return Equipped{Accel: e.Accel, Version: c.driver.Version()}, nil
	}
	kind, err := hypervisor.Choose(e.Hypervisor)
	if err != nil {
		return out, err
	}
	if err := kind.CheckAccelerator(e.Accel); err != nil {
		return out, fmt.Errorf("accelerator %s: %w", e.Accel, err)
	}
	accel, reason := e.Accel, error(nil)
	if accel == "" || accel != kind.Anywhere {
		// One that was asked for is taken, but a guest that crawls needs a reason.
		var best string
		if best, reason = c.probes.of(c.ctx, kind)(); accel == "" {
			accel = best
		}
	}
	driver, err := kind.Find(ctx, accel)
	if err != nil {
		return out, err
	}
	c.kind, c.driver, c.shape = kind, driver, e.Shape
	out = Equipped{Hypervisor: kind.Name, Accel: accel, Version: driver.Version()}
	if reason != nil {
		out.Reason = reason.Error()
	}
	return out, nil
}
