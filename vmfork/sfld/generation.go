package sfld

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// generation is a VM at one instant, frozen, or about to be. Its origin is the
// host that carried the VM; others know it when clones of it are made there.
//
// A slice stays with the host that it came from, and generations that are forks
// of forks have slices of several hosts. So it is counted here who needs a slice;
// each host counts for itself who uses it there.
type generation struct {
	name   string
	origin *site

	// Guarded by Engine.mu.
	layers []carrier.Layer   // once it is frozen
	uses   int               // machines over it or about to be, checkpoints, and who makes clones of it
	here   map[*site]*coming // the hosts that know it, beside the origin
}

// placed is a slice of a generation, and where it is.
type placed struct {
	origin int
	uses   int // generations that have it
}

// coming is a generation on its way to a host.
type coming struct {
	expected chan struct{} // closed when hypervisors can wait for it there
	imported chan struct{} // closed when it is there
	asked    bool          // the import has begun; guarded by Engine.mu
	err      error         // of either, once its channel is closed
}

// newGeneration is one that a host is about to freeze. It is the caller's to
// release.
func (e *Engine) newGeneration(origin *site) *generation {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newGenerationLocked(origin)
}

func (e *Engine) newGenerationLocked(origin *site) *generation {
	e.serial++
	return &generation{name: fmt.Sprintf("memory-%d", e.serial), origin: origin, uses: 1, here: map[*site]*coming{}}
}

// frozenLocked says what slices a generation has. Those that it was said to have
// before stay its own.
func (e *Engine) frozenLocked(g *generation, layers []carrier.Layer) {
	for _, l := range layers {
		if slices.ContainsFunc(g.layers, func(known carrier.Layer) bool { return known.ID == l.ID }) {
			continue
		}
		g.layers = append(g.layers, l)
		p := e.layers[l.ID]
		if p == nil {
			p = &placed{origin: l.Origin}
			e.layers[l.ID] = p
		}
		p.uses++
	}
}

func (e *Engine) retain(g *generation) *generation {
	e.mu.Lock()
	defer e.mu.Unlock()
	g.uses++
	return g
}

// release ends one use. What nobody uses is gone.
func (e *Engine) release(g *generation) {
	e.mu.Lock()
	if g.uses--; g.uses > 0 {
		e.mu.Unlock()
		return
	}
	unused := map[int][]slice.ID{}
	for _, l := range g.layers {
		p := e.layers[l.ID]
		if p.uses--; p.uses == 0 {
			delete(e.layers, l.ID)
			unused[p.origin] = append(unused[p.origin], l.ID)
		}
	}
	hosts := []*site{g.origin}
	for s := range g.here {
		hosts = append(hosts, s)
	}
	all := e.hosts
	e.mu.Unlock()
	for _, s := range hosts {
		s.Release(g.name)
	}
	if len(all) > 1 {
		for host, ids := range unused {
			all[host].Withdraw(ids)
		}
	}
}

// expect makes sure that hypervisors can wait for a generation on a host.
func (e *Engine) expect(ctx context.Context, g *generation, s *site) error {
	if s == g.origin {
		return nil
	}
	e.mu.Lock()
	c := g.here[s]
	mine := c == nil
	if mine {
		c = &coming{expected: make(chan struct{}), imported: make(chan struct{})}
		g.here[s] = c
	}
	e.mu.Unlock()
	if mine {
		c.err = s.Expect(ctx, g.name)
		close(c.expected)
	}
	select {
	case <-c.expected:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to expect a fork: %w", s.Name(), ctx.Err())
	}
}

// bring makes sure that a generation, which is frozen, is on hosts: those that
// lack it get its descriptor at once.
func (e *Engine) bring(ctx context.Context, g *generation, sites []*site) error {
	for _, s := range sites {
		if err := e.expect(ctx, g, s); err != nil {
			return err
		}
	}
	e.mu.Lock()
	var lacking []*site
	var to []int
	for _, s := range sites {
		if c := g.here[s]; c != nil && !c.asked {
			c.asked = true
			lacking, to = append(lacking, s), append(to, s.number)
		}
	}
	e.mu.Unlock()
	if len(lacking) > 0 {
		exported, err := g.origin.Export(ctx, g.name, to)
		e.mu.Lock()
		e.frozenLocked(g, exported.Layers)
		e.mu.Unlock()
		var group errgroup.Group
		for _, s := range lacking {
			group.Go(func() error {
				c := g.here[s]
				if c.err = err; err == nil {
					c.err = s.Import(ctx, g.name, exported)
				}
				close(c.imported)
				return nil
			})
		}
		group.Wait()
	}
	var errs []error
	for _, s := range sites {
		e.mu.Lock()
		c := g.here[s]
		e.mu.Unlock()
		if c == nil {
			continue // its origin
		}
		select {
		case <-c.imported:
			errs = append(errs, c.err)
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("wait for %s to get a fork: %w", s.Name(), ctx.Err()))
		}
	}
	return errors.Join(errs...)
}
