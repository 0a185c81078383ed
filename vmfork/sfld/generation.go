package sfld

import (
	"fmt"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// A generation is a VM at one instant, frozen: what clones are made of, and
// what the VM itself goes on from. The first one of a job is the checkpoint of
// the booted guest, from the cache.
//
// It exists a little before that instant: hypervisor processes wait over its
// memory's file, of which nothing is known yet.
type generation struct {
	name   string // of its memory in memtap
	path   string // of the file
	folder string // of the booted guest's checkpoint, for its generation alone
	state  []byte // the device state, nil before the instant
	memory *slice.Image
	disk   []*slice.Slice // top first, none of them writable

	uses int // guarded by Engine.mu: machines over it, checkpoints, and who makes clones of it
}

// expectGeneration begins a VM's next generation. It is the caller's to
// release.
func (e *Engine) expectGeneration() (*generation, error) {
	g := &generation{name: fmt.Sprintf("memory-%d", e.number()), uses: 1}
	var err error
	if g.path, err = e.tap.Expect(g.name, e.shape.Memory, slice.Memory); err != nil {
		return nil, err
	}
	return g, nil
}

// freezeGeneration gives a generation its disk layers and device state.
func (e *Engine) freezeGeneration(g *generation, state []byte, disk []*slice.Slice) {
	e.mu.Lock()
	defer e.mu.Unlock()
	g.state, g.disk = state, disk
	e.holdLocked(disk)
}

// deliverMemory gives it its memory: faults wait for it.
func (e *Engine) deliverMemory(g *generation, memory *slice.Image) error {
	e.mu.Lock()
	g.memory = memory
	e.holdLocked(memory.Layers())
	e.mu.Unlock()
	return e.tap.Deliver(g.name, memory)
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
	layers := g.disk
	if g.memory != nil {
		layers = slices.Concat(layers, g.memory.Layers())
	}
	e.mu.Unlock()
	e.tap.Remove(g.name)
	e.drop(layers)
}

// Slices are shared by generations, and by the disks of machines. The last one
// that drops a slice closes it.

func (e *Engine) hold(layers []*slice.Slice) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holdLocked(layers)
}

func (e *Engine) holdLocked(layers []*slice.Slice) {
	for _, l := range layers {
		e.layers[l]++
	}
}

func (e *Engine) drop(layers []*slice.Slice) {
	e.mu.Lock()
	var unused []*slice.Slice
	for _, l := range layers {
		if e.layers[l]--; e.layers[l] == 0 {
			delete(e.layers, l)
			unused = append(unused, l)
		}
	}
	e.mu.Unlock()
	for _, l := range unused {
		l.Close()
	}
}
