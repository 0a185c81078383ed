package carrier

import (
	"context"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// layer is what there is to know of a slice beside its content. Slices are
// shared by generations, and by the disks of machines; the last one that drops a
// slice closes it.
type layer struct {
	uses     int           // generations and disks that have it, and its export
	origin   int           // the host that has all of it
	fetch    *mcdist.Fetch // brings its blocks from there, nil if it is this host
	exported bool          // other hosts may have it
}

func (c *Carrier) hold(layers []*slice.Slice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holdLocked(layers)
}

func (c *Carrier) holdLocked(layers []*slice.Slice) {
	for _, s := range layers {
		l := c.layers[s]
		if l == nil {
			l = &layer{origin: c.cfg.Number}
			c.layers[s] = l
		}
		l.uses++
	}
}

func (c *Carrier) drop(layers []*slice.Slice) {
	unused := map[*slice.Slice]*layer{}
	c.mu.Lock()
	for _, s := range layers {
		l := c.layers[s]
		if l.uses--; l.uses == 0 {
			delete(c.layers, s)
			unused[s] = l
			if l.fetch != nil {
				c.leaving[s.ID()] = make(chan struct{})
			}
		}
	}
	c.mu.Unlock()
	for s, l := range unused {
		if l.fetch != nil {
			l.fetch.Close() // first, for it gives to the slice
		}
		s.Close()
		if l.fetch != nil {
			c.left(s.ID())
		}
	}
}

// left lets a slice be had anew that is had from another host no more.
func (c *Carrier) left(id slice.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.leaving[id])
	delete(c.leaving, id)
}

// awaitLeft waits until nothing is left here of a slice that nobody has any more:
// the next fork may need what the clones of the one before it are just giving up.
func (c *Carrier) awaitLeft(ctx context.Context, id slice.ID) error {
	c.mu.Lock()
	gone := c.leaving[id]
	c.mu.Unlock()
	if gone == nil {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for what is left of slice %v here: %w", id, context.Cause(ctx))
	}
}

// byID finds a slice that is in use here, and holds it.
func (c *Carrier) byID(id slice.ID) *slice.Slice {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, l := range c.layers {
		if s.ID() == id {
			l.uses++
			return s
		}
	}
	return nil
}
