package sfld

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// clone is a running copy of the checkpoint.
type clone struct {
	id   int
	vm   hypervisor.VM
	disk *slice.Slice // what it has written
}

func (c *clone) end() {
	c.vm.Kill()
	c.disk.Close()
}

// warmed is a clone's hypervisor process, started ahead of the fork.
type warmed struct {
	clone
	done chan struct{}
	err  error
}

func (w *warmed) end() {
	<-w.done
	if w.err == nil {
		w.clone.end()
	}
}

// startAhead begins to start the hypervisor processes of clones 1…n.
func (e *Engine) startAhead(n int) {
	for id := 1; id <= n; id++ {
		e.startProcess(id)
	}
}

// startProcess begins to start a clone's hypervisor process, once.
func (e *Engine) startProcess(id int) *warmed {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.warm[id]; w != nil {
		return w
	}
	w := &warmed{clone: clone{id: id}, done: make(chan struct{})}
	e.warm[id] = w
	go func() {
		defer close(w.done)
		w.err = e.prepareProcess(w)
	}()
	return w
}

// processLimit is how long a hypervisor process may take to start.
const processLimit = time.Minute

func (e *Engine) prepareProcess(w *warmed) error {
	ctx, cancel := context.WithTimeout(context.Background(), processLimit)
	defer cancel()
	if err := e.starts.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("start a hypervisor for clone %d: wait for others to start: %w", w.id, err)
	}
	defer e.starts.Release(1)
	name := fmt.Sprintf("disk-%d", w.id)
	// The file has a name only for as long as it takes to open it.
	path := filepath.Join(e.image.Dir, fmt.Sprintf("%s%s-%d", tmpDisks, e.opts.Job, w.id))
	top, err := slice.Create(path, e.frozen.disk[0].Size(), slice.Disk)
	if err != nil {
		return fmt.Errorf("give clone %d a disk: %w", w.id, err)
	}
	os.Remove(path)
	image, err := slice.NewImage(append([]*slice.Slice{top}, e.frozen.disk...)...)
	if err != nil {
		top.Close()
		return fmt.Errorf("give clone %d a disk: %w", w.id, err)
	}
	disk, err := e.tap.AddDisk(name, image)
	if err != nil {
		top.Close()
		return err
	}
	cfg, err := e.config(w.id, e.frozen.memPath, disk)
	if err == nil {
		w.vm, err = e.driver.Prepare(ctx, cfg)
	}
	if err != nil {
		e.tap.Remove(name)
		top.Close()
		return err
	}
	w.disk = top
	return nil
}

// fork makes the clones of a ticket, all at once.
func (e *Engine) fork(ctx context.Context, t ticket.Ticket) (*Cloned, error) {
	begin := time.Now()
	var mu sync.Mutex // guards result
	result := &Cloned{Running: map[int]time.Duration{}, Ready: map[int]time.Duration{}, CPU: map[int]time.Duration{}}
	for _, tc := range t.Clones {
		e.startProcess(tc.ID)
	}
	outer := ctx
	group, ctx := errgroup.WithContext(ctx)
	for _, tc := range t.Clones {
		group.Go(func() error {
			w := e.startProcess(tc.ID)
			select {
			case <-w.done:
			case <-ctx.Done():
				return fmt.Errorf("clone %d: wait for its hypervisor to start: %w", tc.ID, ctx.Err())
			}
			if w.err != nil {
				return w.err
			}
			if err := w.vm.Restore(ctx, e.frozen.desc.DeviceState); err != nil {
				return e.blame(err)
			}
			running := time.Since(begin)
			cpu, err := w.vm.CPUTime()
			if err != nil {
				return e.blame(err)
			}
			if err := agent.Greet(ctx, w.vm.Channel(), e.identity(t, tc)); err != nil {
				return e.blame(fmt.Errorf("%w%s", err, lastWords(w.vm, hypervisor.Config{Name: tc.Name, Dir: jobDir})))
			}
			if err := e.net.Up(tc.ID); err != nil {
				return err
			}
			ready := time.Since(begin)
			mu.Lock()
			result.Running[tc.ID], result.Ready[tc.ID], result.CPU[tc.ID] = running, ready, cpu
			mu.Unlock()
			e.mu.Lock()
			delete(e.warm, tc.ID)
			e.clones[tc.ID] = &w.clone
			e.mu.Unlock()
			go e.watch(&w.clone, tc)
			return nil
		})
	}
	err := group.Wait()
	if err != nil && outer.Err() != nil {
		// Every clone waited for the same deadline: name all that missed it.
		var missing []string
		for _, tc := range t.Clones {
			if _, ok := result.Ready[tc.ID]; !ok {
				missing = append(missing, tc.Name)
			}
		}
		return nil, fmt.Errorf("%s did not become ready in time (the first: %w); is this machine overloaded? --start-timeout gives more time", strings.Join(missing, ", "), err)
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// identity is all that tells one clone from the others. Its randomness is
// fresh for every clone.
func (e *Engine) identity(t ticket.Ticket, tc ticket.Clone) agent.Identity {
	seed, ids := make([]byte, 64), make([]byte, 32)
	rand.Read(seed)
	rand.Read(ids)
	boot := ids[:16]
	boot[6], boot[8] = boot[6]&0x0f|0x40, boot[8]&0x3f|0x80 // a random UUID, RFC 9562
	return agent.Identity{
		Clone: tc.ID, Ticket: t.ID, Name: tc.Name,
		Network: e.plan.Guest(tc.ID, t.IDs()),
		Seed:    seed, Time: time.Now(),
		BootID:    fmt.Sprintf("%x-%x-%x-%x-%x", boot[:4], boot[4:6], boot[6:8], boot[8:10], boot[10:]),
		MachineID: hex.EncodeToString(ids[16:]),
	}
}

// watch tells the launcher of a clone that ends by itself.
func (e *Engine) watch(c *clone, tc ticket.Clone) {
	<-c.vm.Done()
	if err := c.vm.Err(); err != nil {
		e.notify(Notice{Clone: c.id, Reason: e.blame(err).Error()})
	}
}

// blame adds memtap's reason to the end of a machine, if it has one: a guest
// whose memory cannot be read dies of SIGBUS, which by itself explains nothing.
func (e *Engine) blame(err error) error {
	if reason := e.tap.Err(memoryName); reason != nil {
		return fmt.Errorf("%w: %w", err, reason)
	}
	return err
}

// lastWords is what a machine left behind that may explain its end.
func lastWords(vm hypervisor.VM, cfg hypervisor.Config) string {
	s := ""
	if err := vm.Err(); err != nil {
		s = ": " + err.Error()
	}
	if line := qemu.ConsoleLog(cfg); line != "" {
		s += fmt.Sprintf(" (the guest's console ends: %s)", line)
	}
	return s
}

// get returns a running clone.
func (e *Engine) get(id int) (*clone, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.clones[id]; c != nil {
		return c, nil
	}
	return nil, errors.New("there is no clone " + e.plan.Name(id))
}

// kill ends clones. Those that are gone already are no error.
func (e *Engine) kill(ids []int) {
	var wg sync.WaitGroup
	for _, id := range ids {
		e.mu.Lock()
		c, w := e.clones[id], e.warm[id]
		delete(e.clones, id)
		delete(e.warm, id)
		delete(e.taps, id)
		e.mu.Unlock()
		wg.Go(func() {
			switch {
			case c != nil:
				c.end()
			case w != nil:
				w.end()
			}
			e.tap.Remove(fmt.Sprintf("disk-%d", id))
			e.net.Remove(id)
		})
	}
	wg.Wait()
}
