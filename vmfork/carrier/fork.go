package carrier

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// The live fork of a running VM. Nothing is copied while it stands, so its pause
// does not depend on how much RAM it has, and on how much of that it has written
// only by the time that its page table takes to read: 30 ms for each GB.
//
//  1. Ahead, at the request of a ticket: a successor of the VM's process is
//     started. It waits over the file of the generation to come, with the same
//     disk and the same ports, and with a tap of its own that gets no frames yet.
//  2. The session between host and agent stands still, with nothing on its way. The agent freezes the guest's processes, so that none runs in a clone
//     before the clone knows who it is. Frames go to the successor's tap, where
//     they queue.
//  3. The VM is suspended: its device state is some hundred kilobytes, and from
//     here on its process does nothing but keep its memory.
//  4. The disk's top slice is frozen, and an empty one put over it.
//  5. The successor loads the state and runs; the agent thaws. This is the end
//     of the pause.
//  6. Beside 5, the kernel's page table of the stopped process tells which pages
//     the VM has written since its last generation. These, read from that
//     process for now, over the memory of the last generation, are the memory
//     of the new one. Page faults that were earlier have waited for it.
//  7. Afterwards they are copied into a slice, and the process is killed.

// successor is the process in which a VM goes on after its next fork.
type successor struct {
	ready      chan struct{} // closed when the rest is known
	generation *generation   // the one to come
	cfg        hypervisor.Config
	vm         hypervisor.VM
	err        error
}

// Succeed implements [Host].
func (c *Carrier) Succeed(ctx context.Context, member int, generation string) error {
	b, err := c.find(member)
	if err != nil {
		return err
	}
	if err := c.Expect(ctx, generation); err != nil {
		return err
	}
	s := &successor{ready: make(chan struct{})}
	c.mu.Lock()
	s.generation = c.generations[generation]
	if b.ended || b.successor != nil {
		c.mu.Unlock()
		c.Release(generation)
		return fmt.Errorf("start a successor of %s: it is gone, or has one", b.Name)
	}
	s.generation.uses++ // the successor's
	b.successor = s
	c.mu.Unlock()
	s.err = c.prepareSuccessor(b, s)
	close(s.ready)
	return s.err
}

func (c *Carrier) prepareSuccessor(b *body, s *successor) error {
	tap, err := c.net.Spare(b.Member)
	if err != nil {
		return err
	}
	s.cfg = b.cfg
	s.cfg.MemoryPath, s.cfg.Tap = s.generation.path, tap
	ctx, cancel := context.WithTimeout(c.ctx, processLimit)
	defer cancel()
	s.vm, err = c.driver.Prepare(ctx, s.cfg)
	return err
}

// dismiss ends a successor that is of no use.
func (c *Carrier) dismiss(b *body, s *successor) {
	<-s.ready
	if s.vm != nil {
		s.vm.Kill()
	}
	c.net.HandBack(b.Member)
	c.release(s.generation)
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.successor == s {
		b.successor = nil
	}
}

// Freeze implements [Host].
func (c *Carrier) Freeze(ctx context.Context, member int) (f Frozen, err error) {
	b, err := c.find(member)
	if err != nil {
		return f, err
	}
	b.forking.Lock()
	defer b.forking.Unlock()
	c.mu.Lock()
	s := b.successor
	c.mu.Unlock()
	if s == nil {
		return f, fmt.Errorf("fork %s: it is gone, or its successor has not been started", b.Name)
	}
	defer func() {
		if err != nil {
			c.dismiss(b, s)
			err = fmt.Errorf("fork %s: %w", b.Name, err)
		}
	}()
	select {
	case <-s.ready:
	case <-ctx.Done():
		return f, fmt.Errorf("wait for its successor to start: %w", ctx.Err())
	}
	if s.err != nil {
		return f, s.err
	}
	sent, release, err := b.data.hold(ctx)
	if err != nil {
		return f, err
	}
	defer release()
	b.orders.Lock()
	defer b.orders.Unlock()

	// From here on it is quick or it fails, whatever the caller's patience.
	ctx, cancel := context.WithTimeout(c.ctx, pauseLimit)
	defer cancel()
	stopped, span := time.Now(), c.cfg.Trace.Begin("pause", b.Name)
	if err := b.agent.Freeze(ctx, sent); err != nil {
		return f, err
	}
	state, dirtied, err := c.swap(ctx, b, s)
	if err != nil {
		// The context may be what is over.
		ctx, cancel := context.WithTimeout(c.ctx, pauseLimit)
		defer cancel()
		return f, errors.Join(err, b.agent.Thaw(ctx))
	}
	c.mu.Lock()
	old, base := b.vm, b.base
	b.vm, b.base, b.cfg, b.successor = s.vm, s.generation, s.cfg, nil // and its use of the generation
	c.mu.Unlock()
	thawErr := b.agent.Thaw(ctx)
	f.Pause = time.Since(stopped)
	span.Set("dirtied pages", dirtied.Lent()).End()
	f.State, f.Dirtied = len(state), dirtied.Lent()
	c.net.Retire(b.Member)
	c.background.Go(func() { c.watch(b, s.vm) })
	c.background.Go(func() {
		span := c.cfg.Trace.Begin("copy dirtied pages", b.Name)
		c.settle(b, dirtied)
		span.End()
		old.Kill()
		c.release(base)
		c.fold(b)
	})
	if thawErr != nil {
		c.background.Go(func() { c.cfg.Events.Gone(member, thawErr) })
	}
	f.Layers = c.layersOf(s.generation)
	return f, nil
}

// pauseLimit bounds a pause that goes wrong.
const pauseLimit = 20 * time.Second

// swap suspends a machine and brings its successor to life, over the generation
// that the two have between them. After an error the machine runs.
func (c *Carrier) swap(ctx context.Context, b *body, s *successor) (state []byte, dirtied *slice.Slice, err error) {
	old := b.vm
	if err := c.net.HandOver(b.Member); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(c.ctx, pauseLimit)
			defer cancel()
			s.vm.Kill()
			c.net.HandBack(b.Member)
			err = errors.Join(err, old.Resume(ctx))
		}
	}()
	if state, err = old.Suspend(ctx); err != nil {
		return nil, nil, err
	}
	disk, err := c.freezeDisk(b)
	if err != nil {
		return nil, nil, err
	}
	c.freezeGeneration(s.generation, state, disk)
	memory := make(chan error, 1)
	go func() {
		var err error
		dirtied, err = c.freezeMemory(ctx, s.generation, b.base, old)
		memory <- err
	}()
	err = s.vm.Restore(ctx, state)
	return state, dirtied, errors.Join(<-memory, err)
}

// freezeDisk freezes what a machine has written to its disk, and puts an empty
// slice over it.
func (c *Carrier) freezeDisk(b *body) ([]*slice.Slice, error) {
	top, err := c.newTop(b.disk.Size())
	if err != nil {
		return nil, err
	}
	layers := b.disk.Layers()
	layers[0].Freeze()
	if err := b.disk.Restack(append([]*slice.Slice{top}, layers...)...); err != nil {
		top.Close()
		return nil, err
	}
	c.hold([]*slice.Slice{top})
	return layers, nil
}

// freezeMemory makes the memory of a generation from the one before it and the
// pages that a stopped process has of its own.
func (c *Carrier) freezeMemory(ctx context.Context, g, base *generation, stopped hypervisor.VM) (*slice.Slice, error) {
	pages, ram, err := stopped.Dirtied(ctx)
	if err != nil {
		return nil, err
	}
	dirtied, err := c.scratch(func(path string) (*slice.Slice, error) {
		return slice.Adopt(path, c.shape.Memory, slice.Memory, pages, ram)
	})
	if err != nil {
		return nil, err
	}
	trace := c.tap.Trace(base.name)
	memory, err := slice.NewImage(append([]*slice.Slice{dirtied}, base.memory.Layers()...)...)
	if err == nil {
		err = c.deliverMemory(g, memory, trace)
	}
	if err != nil {
		dirtied.Close()
		return nil, err
	}
	return dirtied, nil
}

// settle copies the dirtied pages out of the stopped process. If that cannot be
// done, for want of space as a rule, the process stays for as long as the job.
func (c *Carrier) settle(b *body, dirtied *slice.Slice) {
	copied, err := dirtied.Settle(c.ctx)
	c.mu.Lock()
	c.copied += copied
	c.mu.Unlock()
	if errors.Is(err, os.ErrClosed) {
		return // nobody has the generation any more
	}
	if err != nil && c.ctx.Err() == nil {
		c.cfg.Events.Notice(fmt.Sprintf("the pages that %s had written stay in its former process, which takes memory: %v", b.Name, err))
		<-c.ctx.Done()
	}
}
