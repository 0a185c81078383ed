package carrier

import (
	"fmt"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Each fork puts a slice on the stack of a machine's memory, and one on that of
// its disk. A machine that is forked again and again would have hundreds, each
// with an open file and bitmaps. So after a fork those that nobody else has are
// folded, two at a time, which by the rule of [slice.Foldable] copies each block
// only a few times. Clones of the machine, checkpoints, and other hosts keep what
// they have from being folded.

// fold folds what can be folded of a machine's slices.
func (c *Carrier) fold(b *body) {
	c.mu.Lock()
	g := b.base
	g.uses++
	c.mu.Unlock()
	defer c.release(g)
	for c.foldOnce(b, g, slice.Memory) || c.foldOnce(b, g, slice.Disk) {
	}
}

// foldOnce folds two slices, if there are two.
func (c *Carrier) foldOnce(b *body, g *generation, kind slice.Kind) bool {
	c.mu.Lock()
	own := c.ownLocked(b, g, kind)
	i := slice.Foldable(own, 0)
	if i < 0 {
		c.mu.Unlock()
		return false
	}
	upper, lower := own[i], own[i+1]
	c.mu.Unlock()
	folded, err := c.scratch(func(path string) (*slice.Slice, error) { return slice.Fold(c.ctx, path, upper, lower) })
	if err != nil {
		if c.ctx.Err() == nil {
			c.cfg.Events.Detail(fmt.Sprintf("slices of %s are left as they are: %v", b.Name, err))
		}
		return false
	}
	// A fork must not come in between: its generation has the same slices.
	b.forking.Lock()
	defer b.forking.Unlock()
	c.mu.Lock()
	now := c.ownLocked(b, g, kind)
	if !slices.Contains(now, upper) || !slices.Contains(now, lower) {
		c.mu.Unlock()
		folded.Close()
		return false
	}
	spare, err := c.replaceLocked(b, g, kind, upper, lower, folded)
	if err != nil {
		c.mu.Unlock()
		folded.Close()
		return false
	}
	c.mu.Unlock()
	c.drop(spare)
	return true
}

// ownLocked are the slices, top first, that nobody has but the machine, which
// goes on from generation g. Those that it writes to are not among them.
func (c *Carrier) ownLocked(b *body, g *generation, kind slice.Kind) (own []*slice.Slice) {
	if b.ended || b.base != g || g.memory == nil {
		return nil
	}
	layers, uses := g.memory.Layers(), 1
	if kind == slice.Disk {
		layers, uses = g.disk, 2 // the machine's disk has them, too
	}
	for _, s := range layers {
		if l := c.layers[s]; l.uses > uses || l.fetch != nil {
			break
		}
		own = append(own, s)
	}
	return own
}

// replaceLocked puts a folded slice in the place of two, and returns them as
// often as they are to be dropped.
func (c *Carrier) replaceLocked(b *body, g *generation, kind slice.Kind, upper, lower, folded *slice.Slice) (spare []*slice.Slice, err error) {
	if kind == slice.Memory {
		if err := g.memory.Replace(upper, lower, folded); err != nil {
			return nil, err
		}
		c.holdLocked([]*slice.Slice{folded})
		return []*slice.Slice{upper, lower}, nil
	}
	if err := b.disk.Replace(upper, lower, folded); err != nil {
		return nil, err
	}
	i := slices.Index(g.disk, upper)
	g.disk = slices.Concat(g.disk[:i], []*slice.Slice{folded}, g.disk[i+2:])
	c.holdLocked([]*slice.Slice{folded, folded})
	return []*slice.Slice{upper, lower, upper, lower}, nil
}
