package sfld

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
//  2. The agent freezes the guest's processes, so that none runs in a clone
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

// Frozen says how a fork went for the VM that was forked.
type Frozen struct {
	Pause   time.Duration // for so long its processes stood still
	State   int           // bytes of device state
	Dirtied int64         // pages that it had written since its last generation
}

// succeed begins to start a VM's successor, once.
func (e *Engine) succeed(m *machine) *successor {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.successor != nil {
		return m.successor
	}
	s := &successor{ready: make(chan struct{})}
	if m.ended {
		s.err = errors.New("it is gone")
		close(s.ready)
		return s
	}
	m.successor = s
	e.background.Go(func() {
		defer close(s.ready)
		s.err = e.prepareSuccessor(m, s)
	})
	return s
}

func (e *Engine) prepareSuccessor(m *machine, s *successor) (err error) {
	if s.generation, err = e.expectGeneration(); err != nil {
		return err
	}
	tap, err := e.net.Spare(m.Member)
	if err != nil {
		return err
	}
	s.cfg = m.cfg
	s.cfg.MemoryPath, s.cfg.Tap = s.generation.path, tap
	ctx, cancel := context.WithTimeout(e.ctx, processLimit)
	defer cancel()
	s.vm, err = e.driver.Prepare(ctx, s.cfg)
	return err
}

// dismiss ends a successor that is of no use.
func (e *Engine) dismiss(m *machine, s *successor) {
	<-s.ready
	if s.vm != nil {
		s.vm.Kill()
	}
	e.net.HandBack(m.Member)
	if s.generation != nil {
		e.release(s.generation)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.successor == s {
		m.successor = nil
	}
}

// freeze forks a VM. It goes on in its successor, and what it was at that
// instant is the generation returned, for the caller to release. After an
// error it goes on as before.
func (e *Engine) freeze(ctx context.Context, m *machine) (g *generation, f Frozen, err error) {
	m.forking.Lock()
	defer m.forking.Unlock()
	s := e.succeed(m)
	defer func() {
		if err != nil {
			e.dismiss(m, s)
			err = fmt.Errorf("fork %s: %w", m.Name, err)
		}
	}()
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, f, fmt.Errorf("wait for its successor to start: %w", ctx.Err())
	}
	if s.err != nil {
		return nil, f, s.err
	}
	release, err := m.data.hold(ctx)
	if err != nil {
		return nil, f, err
	}
	defer release()
	m.orders.Lock()
	defer m.orders.Unlock()

	// From here on it is quick or it fails, whatever the caller's patience.
	ctx, cancel := context.WithTimeout(e.ctx, pauseLimit)
	defer cancel()
	stopped := time.Now()
	if err := m.agent.Freeze(ctx); err != nil {
		return nil, f, err
	}
	state, dirtied, err := e.swap(ctx, m, s)
	if err != nil {
		// The context may be what is over.
		ctx, cancel := context.WithTimeout(e.ctx, pauseLimit)
		defer cancel()
		return nil, f, errors.Join(err, m.agent.Thaw(ctx))
	}
	e.mu.Lock()
	old, base := m.vm, m.base
	m.vm, m.base, m.cfg, m.successor = s.vm, s.generation, s.cfg, nil
	s.generation.uses++ // the machine's, beside the caller's
	e.mu.Unlock()
	thawErr := m.agent.Thaw(ctx)
	f.Pause = time.Since(stopped)
	f.State, f.Dirtied = len(state), dirtied.Lent()
	e.net.Retire(m.Member)
	e.background.Go(func() { e.watch(m, s.vm) })
	e.background.Go(func() {
		e.settle(m, dirtied)
		old.Kill()
		e.release(base)
	})
	if thawErr != nil {
		e.background.Go(func() { e.lose(m, thawErr) })
	}
	return s.generation, f, nil
}

// pauseLimit bounds a pause that goes wrong.
const pauseLimit = 20 * time.Second

// hold keeps the session from writing to the machine, and waits until what was
// written has been read: a process that is about to stop must not take it along.
// What a guest without a buffer for it leaves unread stays for the successor.
func (p *port) hold(ctx context.Context) (release func(), err error) {
	held := make(chan struct{})
	go func() { p.gate.Lock(); close(held) }()
	ctx, cancel := context.WithTimeout(ctx, holdLimit)
	defer cancel()
	select {
	case <-held:
	case <-ctx.Done():
		go func() { <-held; p.gate.Unlock() }()
		return nil, fmt.Errorf("wait for the guest to read what it was sent: %w", ctx.Err())
	}
	for end := time.Now().Add(unreadLimit); ; time.Sleep(time.Millisecond) {
		n, err := p.machine.Unread()
		if err != nil {
			p.gate.Unlock()
			return nil, err
		}
		if n == 0 || time.Now().After(end) {
			return p.gate.Unlock, nil
		}
	}
}

// holdLimit is how long a guest may take to make room for what it is being
// sent.
const holdLimit = 10 * time.Second

// unreadLimit is how long a guest may take to read its port before a fork.
const unreadLimit = 50 * time.Millisecond

// swap suspends a machine and brings its successor to life, over the generation
// that the two have between them. After an error the machine runs.
func (e *Engine) swap(ctx context.Context, m *machine, s *successor) (state []byte, dirtied *slice.Slice, err error) {
	old := m.vm
	if err := e.net.HandOver(m.Member); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(e.ctx, pauseLimit)
			defer cancel()
			s.vm.Kill()
			e.net.HandBack(m.Member)
			err = errors.Join(err, old.Resume(ctx))
		}
	}()
	if state, err = old.Suspend(ctx); err != nil {
		return nil, nil, err
	}
	disk, err := e.freezeDisk(m)
	if err != nil {
		return nil, nil, err
	}
	e.freezeGeneration(s.generation, state, disk)
	memory := make(chan error, 1)
	go func() {
		var err error
		dirtied, err = e.freezeMemory(ctx, s.generation, m.base, old)
		memory <- err
	}()
	err = s.vm.Restore(ctx, state)
	return state, dirtied, errors.Join(<-memory, err)
}

// freezeDisk freezes what a machine has written to its disk, and puts an empty
// slice over it.
func (e *Engine) freezeDisk(m *machine) ([]*slice.Slice, error) {
	top, err := e.newTop(m.disk.Size())
	if err != nil {
		return nil, err
	}
	layers := m.disk.Layers()
	layers[0].Freeze()
	if err := m.disk.Restack(append([]*slice.Slice{top}, layers...)...); err != nil {
		top.Close()
		return nil, err
	}
	e.hold([]*slice.Slice{top})
	return layers, nil
}

// freezeMemory makes the memory of a generation from the one before it and the
// pages that a stopped process has of its own.
func (e *Engine) freezeMemory(ctx context.Context, g, base *generation, stopped hypervisor.VM) (*slice.Slice, error) {
	pages, ram, err := stopped.Dirtied(ctx)
	if err != nil {
		return nil, err
	}
	dirtied, err := e.scratch(func(path string) (*slice.Slice, error) {
		return slice.Adopt(path, e.shape.Memory, slice.Memory, pages, ram)
	})
	if err != nil {
		return nil, err
	}
	trace := e.tap.Trace(base.name)
	memory, err := slice.NewImage(append([]*slice.Slice{dirtied}, base.memory.Layers()...)...)
	if err == nil {
		err = e.deliverMemory(g, memory)
	}
	if err != nil {
		dirtied.Close()
		return nil, err
	}
	e.push(g, trace)
	return dirtied, nil
}

// settle copies the dirtied pages out of the stopped process. If that cannot be
// done, for want of space as a rule, the process stays for as long as the job.
func (e *Engine) settle(m *machine, dirtied *slice.Slice) {
	copied, err := dirtied.Settle(e.ctx)
	e.mu.Lock()
	e.copied += copied
	e.mu.Unlock()
	if errors.Is(err, os.ErrClosed) {
		return // nobody has the generation any more
	}
	if err != nil && e.ctx.Err() == nil {
		e.notify(Notice{Line: fmt.Sprintf("the pages that %s had written stay in its former process, which takes memory: %v", m.Name, err)})
		<-e.ctx.Done()
	}
}
