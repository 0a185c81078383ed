package carrier

import (
	"context"
	"fmt"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// A generation is a VM at one instant, frozen: what clones are made of, and
// what the VM itself goes on from. The first one of a job is the checkpoint of
// the booted guest, from the cache.
//
// It exists a little before that instant: hypervisor processes wait over its
// memory's file, of which nothing is known yet.
type generation struct {
	name   string // the coordinator's, and that of its memory in memtap
	path   string // of the file
	folder string // of the booted guest's checkpoint, for its generation alone
	state  []byte // the device state, nil before the instant
	memory *slice.Image
	disk   []*slice.Slice // top first, none of them writable
	trace  memtap.Trace   // the working set that was pushed into it

	// Guarded by Carrier.mu.
	uses    int        // machines over it, and the coordinator
	objects []slice.ID // under which it is published
}

// Expect implements [Host].
func (c *Carrier) Expect(_ context.Context, name string) error {
	path, err := c.tap.Expect(name, c.shape.Memory, slice.Memory)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generations[name] = &generation{name: name, path: path, uses: 1}
	return nil
}

// Instant is what a machine was when it was frozen.
type Instant struct {
	State  []byte         // of its devices
	Memory *slice.Image   // with no writable slice
	Disk   []*slice.Slice // top first, none of them writable
	Trace  memtap.Trace   // the blocks of memory that are likely to be read first
}

// Found makes a generation of an instant that was not frozen here in this job.
// The slices are the generation's from then on, also after an error.
func (c *Carrier) Found(ctx context.Context, generation string, is Instant) error {
	if err := c.Expect(ctx, generation); err != nil {
		c.hold(slices.Concat(is.Memory.Layers(), is.Disk))
		c.drop(slices.Concat(is.Memory.Layers(), is.Disk))
		return err
	}
	g, err := c.retain(generation)
	if err != nil {
		return err
	}
	defer c.release(g)
	c.freezeGeneration(g, is.State, is.Disk)
	if err := c.deliverMemory(g, is.Memory, is.Trace); err != nil {
		c.release(g)
		return err
	}
	return nil
}

// freezeGeneration gives a generation its disk layers and device state.
func (c *Carrier) freezeGeneration(g *generation, state []byte, disk []*slice.Slice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g.state, g.disk = state, disk
	c.holdLocked(disk)
}

// deliverMemory gives it its memory, for which faults wait, and pushes a working
// set into that.
func (c *Carrier) deliverMemory(g *generation, memory *slice.Image, trace memtap.Trace) error {
	c.mu.Lock()
	g.memory, g.trace = memory, trace
	c.holdLocked(memory.Layers())
	c.mu.Unlock()
	if err := c.tap.Deliver(g.name, memory); err != nil {
		return err
	}
	c.push(g, trace)
	return nil
}

// retain begins a use of a generation, by its name.
func (c *Carrier) retain(name string) (*generation, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.generations[name]
	if g == nil {
		return nil, fmt.Errorf("generation %s is not known on %s", name, c.cfg.Host)
	}
	g.uses++
	return g, nil
}

// Release implements [Host].
func (c *Carrier) Release(name string) {
	c.mu.Lock()
	g := c.generations[name]
	c.mu.Unlock()
	if g != nil {
		c.release(g)
	}
}

// release ends one use. What nobody uses is gone.
func (c *Carrier) release(g *generation) {
	c.mu.Lock()
	if g.uses--; g.uses > 0 {
		c.mu.Unlock()
		return
	}
	delete(c.generations, g.name)
	layers := g.disk
	if g.memory != nil {
		layers = slices.Concat(layers, g.memory.Layers())
	}
	objects, fabric := g.objects, c.fabric
	c.mu.Unlock()
	for _, id := range objects {
		fabric.node.Withdraw(id)
	}
	c.tap.Remove(g.name)
	c.drop(layers)
}

// stacks are the slices of a generation as they are now, top first, for the
// caller to drop.
func (c *Carrier) stacks(g *generation) (memory, disk []*slice.Slice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.memory != nil {
		memory = g.memory.Layers()
	}
	disk = slices.Clone(g.disk)
	c.holdLocked(memory)
	c.holdLocked(disk)
	return memory, disk
}

// name says which slices these are, and where all of each is.
func (c *Carrier) name(layers []*slice.Slice) (all []Layer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range layers {
		all = append(all, Layer{s.ID(), c.layers[s].origin})
	}
	return all
}

// layersOf names the slices of a generation.
func (c *Carrier) layersOf(g *generation) []Layer {
	memory, disk := c.stacks(g)
	layers := slices.Concat(memory, disk)
	defer c.drop(layers)
	return c.name(layers)
}
