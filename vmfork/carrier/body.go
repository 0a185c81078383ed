package carrier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// body is what a machine is made of here. A fork changes the process that it
// runs in; ports, disk and tap stay.
type body struct {
	ticket.Clone // who it is

	cfg     hypervisor.Config
	control *port
	data    *port
	orders  sync.Mutex // held over an order to its agent
	agent   *agent.Control

	disk *slice.Image

	forking sync.Mutex // one fork at a time

	// Guarded by Carrier.mu.
	vm        hypervisor.VM
	base      *generation // what its memory is a private mapping of
	successor *successor  // waits for the next fork
	session   *agent.Session
	began     time.Time // when it started
	ended     bool
	gone      chan struct{} // closed when nothing is left of it
}

// diskName is memtap's name of a machine's disk.
func diskName(member int) string { return fmt.Sprintf("disk-%d", member) }

// processLimit is how long a hypervisor process may take to start.
const processLimit = time.Minute

// Prepare implements [Host].
func (c *Carrier) Prepare(ctx context.Context, who ticket.Clone, generation string, disk int64) error {
	defer c.cfg.Trace.Begin("start hypervisor", who.Name).End()
	ctx, cancel := context.WithTimeout(ctx, processLimit)
	defer cancel()
	if err := c.starts.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("start a hypervisor for %s: wait for others to start: %w", who.Name, err)
	}
	defer c.starts.Release(1)
	g, err := c.retain(generation)
	if err != nil {
		return fmt.Errorf("make %s: %w", who.Name, err)
	}
	b := &body{Clone: who, base: g, gone: make(chan struct{})}
	c.mu.Lock()
	_, there := c.bodies[who.Member]
	closed := c.closed
	if !there && !closed {
		c.bodies[who.Member] = b
	}
	c.mu.Unlock()
	if there || closed {
		c.release(g)
		return fmt.Errorf("make %s: its number %d is taken, or the job ends", who.Name, who.Member)
	}
	if err := c.assemble(ctx, b, disk); err != nil {
		c.End(who.Member)
		return fmt.Errorf("make %s: %w", who.Name, err)
	}
	return nil
}

// assemble makes a body as far as it goes without its generation's state: its
// hypervisor waits. The layers of its disk, other than its own, come later too.
func (c *Carrier) assemble(ctx context.Context, b *body, size int64) (err error) {
	b.forking.Lock() // End waits
	defer b.forking.Unlock()
	if b.control, err = newPort(agent.ControlPort); err != nil {
		return err
	}
	if b.data, err = newPort(agent.DataPort); err != nil {
		return err
	}
	b.agent = agent.NewControl(b.control)
	top, err := c.newTop(size)
	if err != nil {
		return err
	}
	if b.disk, err = slice.NewImage(top); err != nil {
		top.Close()
		return err
	}
	c.hold([]*slice.Slice{top})
	disk, err := c.tap.AddDisk(diskName(b.Member), b.disk)
	if err != nil {
		return err
	}
	tap, err := c.net.AddTap(b.Member)
	if err != nil {
		return err
	}
	b.cfg = hypervisor.Config{
		Name: b.Name, Dir: c.cfg.Dir, Shape: c.shape,
		MemoryPath: b.base.path, DiskPath: disk,
		// A clone that wakes with its parent's MAC, for it is in the device state, is given its own by
		// the agent before the link comes up. Where the hypervisor says it anew, also to a successor, it is the own.
		Tap: tap, MAC: c.cfg.Plan.MAC(b.Member),
		Ports: []hypervisor.Port{b.control.machine, b.data.machine},
	}
	vm, err := c.driver.Prepare(ctx, b.cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b.vm = vm
	return nil
}

// newTop is an empty slice for a machine's writes to its disk.
func (c *Carrier) newTop(size int64) (*slice.Slice, error) {
	return c.scratch(func(path string) (*slice.Slice, error) { return slice.Create(path, size, slice.Disk) })
}

// close lets go of what a machine has beside its process and its names.
func (c *Carrier) close(b *body) {
	for _, p := range []*port{b.control, b.data} {
		if p != nil {
			p.Close()
		}
	}
	if b.disk != nil {
		c.drop(b.disk.Layers())
	}
	c.release(b.base)
}

// restack puts its generation's disk under what a machine has written to its own.
func (c *Carrier) restack(b *body) error {
	memory, below := c.stacks(b.base)
	defer c.drop(memory)
	before := b.disk.Layers()
	if err := b.disk.Restack(append(before[:1:1], below...)...); err != nil {
		c.drop(below)
		return err
	}
	c.drop(before[1:])
	return nil
}

// find is the body of a machine that lives.
func (c *Carrier) find(member int) (*body, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.bodies[member]
	if b == nil || b.ended {
		return nil, fmt.Errorf("machine %d is gone", member)
	}
	return b, nil
}

// Start implements [Host].
func (c *Carrier) Start(ctx context.Context, member int, id agent.Identity) (t Started, err error) {
	began := time.Now()
	b, err := c.find(member)
	if err != nil {
		return t, err
	}
	if err := c.restack(b); err != nil {
		return t, fmt.Errorf("give %s its disk: %w", b.Name, err)
	}
	span := c.cfg.Trace.Begin("load device state", b.Name).Set("bytes", len(b.base.state))
	if err := b.vm.Restore(ctx, b.base.state); err != nil {
		return t, c.blame(b.base, err)
	}
	span.End()
	ctx, stop := whileRuns(ctx, b.vm)
	defer stop()
	t.Running = time.Since(began)
	if t.CPU, err = b.vm.CPUTime(); err != nil {
		return t, c.blame(b.base, err)
	}
	span = c.cfg.Trace.Begin("take identity", b.Name)
	id.Time = time.Now()
	if err := b.agent.Identify(ctx, id); err != nil {
		return t, c.blame(b.base, fmt.Errorf("%w%s", err, lastWords(b.vm, b.cfg)))
	}
	span.End()
	span = c.cfg.Trace.Begin("begin: mounts, hooks, session", b.Name)
	if err := c.net.Up(member); err != nil {
		return t, err
	}
	if err := b.agent.Begin(ctx); err != nil {
		return t, c.blame(b.base, fmt.Errorf("%s: %w%s", b.Name, err, lastWords(b.vm, b.cfg)))
	}
	session, err := dialAfter(ctx, b.data, id.Session)
	if err != nil {
		return t, fmt.Errorf("%s: %w", b.Name, err)
	}
	span.End()
	t.Ready = time.Since(began)
	c.mu.Lock()
	b.began = id.Time
	if b.ended {
		c.mu.Unlock()
		session.Close()
		return t, fmt.Errorf("%s was killed while it started", b.Name)
	}
	b.session = session
	vm := b.vm
	c.mu.Unlock()
	c.background.Go(func() { c.watch(b, vm) })
	c.background.Go(func() { c.serveCalls(b, session) })
	return t, nil
}

// whileRuns is a context that ends with a machine's process too: the ports stay
// open without it, and who waits there would wait on.
func whileRuns(ctx context.Context, vm hypervisor.VM) (limited context.Context, stop func()) {
	limited, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-vm.Done():
			cancel(errors.New("the guest is gone"))
		case <-limited.Done():
		}
	}()
	return limited, func() { cancel(nil) }
}

// serveCalls passes on the calls that come from a machine.
func (c *Carrier) serveCalls(b *body, session *agent.Session) {
	for {
		conn, err := session.Accept()
		if err != nil {
			return // the machine is gone
		}
		go func() {
			call, err := agent.ReadCallName(conn)
			if err != nil {
				conn.Close()
				return
			}
			c.cfg.Events.Call(b.Member, call, conn)
		}()
	}
}

// Open implements [Host].
func (c *Carrier) Open(member int) (net.Conn, error) {
	b, err := c.find(member)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	session := b.session
	c.mu.Unlock()
	if session == nil {
		return nil, fmt.Errorf("%s has not started yet", b.Name)
	}
	return session.Open()
}

// Introduce implements [Host].
func (c *Carrier) Introduce(ctx context.Context, member int, others []network.Member) error {
	b, err := c.find(member)
	if err != nil {
		return err
	}
	b.orders.Lock()
	defer b.orders.Unlock()
	if err := b.agent.Members(ctx, others); err != nil {
		return fmt.Errorf("%s: %w", b.Name, err)
	}
	return nil
}

// watch tells of a machine whose process ends by itself.
func (c *Carrier) watch(b *body, vm hypervisor.VM) {
	<-vm.Done()
	c.mu.Lock()
	current := b.vm == vm && !b.ended
	base := b.base
	c.mu.Unlock()
	err := vm.Err()
	if !current || err == nil {
		return
	}
	c.cfg.Events.Gone(b.Member, c.blame(base, err))
}

// End implements [Host].
func (c *Carrier) End(member int) {
	c.mu.Lock()
	b := c.bodies[member]
	if b == nil {
		c.mu.Unlock()
		return
	}
	if b.ended {
		c.mu.Unlock()
		<-b.gone
		return
	}
	b.ended = true
	vm := b.vm
	c.mu.Unlock()
	// What waits for the machine or writes to it fails now; a fork that is under
	// way as well, or it has made a successor.
	if vm != nil {
		vm.Kill()
		b.control.Close()
		b.data.Conn.Close()
	}
	b.forking.Lock()
	defer b.forking.Unlock()
	c.mu.Lock()
	vm, next, session := b.vm, b.successor, b.session
	c.mu.Unlock()
	if vm != nil {
		vm.Kill()
	}
	if next != nil {
		c.dismiss(b, next)
	}
	if session != nil {
		session.Close()
	}
	c.tap.Remove(diskName(member))
	c.net.Remove(member)
	c.close(b)
	c.mu.Lock()
	delete(c.bodies, member)
	c.mu.Unlock()
	close(b.gone)
}

// blame adds memtap's reason to the end of a machine, if it has one: a guest
// whose memory cannot be read dies of SIGBUS, which by itself explains nothing.
func (c *Carrier) blame(g *generation, err error) error {
	if reason := c.tap.Err(g.name); reason != nil {
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
	if line := hypervisor.ConsoleLog(cfg); line != "" {
		s += fmt.Sprintf(" (the guest's console ends: %s)", line)
	}
	return s
}
