package sfld

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// machine is a VM of the job: a clone, or the parent of all. A fork changes the
// process that it runs in; ports, disk and tap stay.
type machine struct {
	ticket.Clone // who it is; ID 0 for one that is nobody's clone
	grant        *grant
	parent       *machine // whose fork made it, nil for one of the booted guest

	cfg     hypervisor.Config
	control *port
	data    *port
	orders  sync.Mutex // held over an order to its agent
	agent   *agent.Control

	disk *slice.Image

	forking sync.Mutex // one fork at a time

	// Guarded by Engine.mu.
	vm        hypervisor.VM
	base      *generation // what its memory is a private mapping of
	successor *successor  // waits for the next fork
	session   *agent.Session
	ended     bool
	gone      chan struct{} // closed when nothing is left of it
}

// port is the host's end of a serial port, and the machine's, kept for a
// successor of its process.
type port struct {
	net.Conn
	machine hypervisor.Port
	gate    sync.RWMutex // held for writing while nothing may be written to the machine
}

func newPort(name string) (*port, error) {
	conn, p, err := hypervisor.NewPort(name)
	if err != nil {
		return nil, err
	}
	return &port{Conn: conn, machine: p}, nil
}

// Write implements net.Conn.
func (p *port) Write(b []byte) (int, error) {
	p.gate.RLock()
	defer p.gate.RUnlock()
	return p.Conn.Write(b)
}

// Close closes both ends.
func (p *port) Close() error {
	return errors.Join(p.Conn.Close(), p.machine.File.Close())
}

// diskName is memtap's name of a machine's disk.
func diskName(member int) string { return fmt.Sprintf("disk-%d", member) }

// newMachine makes a machine of a generation as far as it goes without the
// generation's state: its hypervisor waits. The generation may be one that is
// still to come, of a VM whose sealed disk layers are below.
func (e *Engine) newMachine(ctx context.Context, who ticket.Clone, g *generation, below []*slice.Slice) (_ *machine, err error) {
	m := &machine{Clone: who, base: e.retain(g), gone: make(chan struct{})}
	defer func() {
		if err != nil {
			e.tap.Remove(diskName(who.Member))
			e.net.Remove(who.Member)
			e.close(m)
			err = fmt.Errorf("make %s: %w", who.Name, err)
		}
	}()
	if m.control, err = newPort(agent.ControlPort); err != nil {
		return nil, err
	}
	if m.data, err = newPort(agent.DataPort); err != nil {
		return nil, err
	}
	m.agent = agent.NewControl(m.control)
	top, err := e.newTop(below[0].Size())
	if err != nil {
		return nil, err
	}
	layers := append([]*slice.Slice{top}, below...)
	if m.disk, err = slice.NewImage(layers...); err != nil {
		top.Close()
		return nil, err
	}
	e.hold(layers)
	disk, err := e.tap.AddDisk(diskName(who.Member), m.disk)
	if err != nil {
		return nil, err
	}
	tap, err := e.net.AddTap(who.Member)
	if err != nil {
		return nil, err
	}
	m.cfg = hypervisor.Config{
		Name: who.Name, Dir: jobDir, Shape: e.shape,
		MemoryPath: g.path, DiskPath: disk,
		// Every clone wakes with its parent's MAC, and the agent sets the
		// clone's own before the link comes up.
		Tap: tap, MAC: e.plan.MAC(0),
		Ports: []hypervisor.Port{m.control.machine, m.data.machine},
	}
	m.vm, err = e.driver.Prepare(ctx, m.cfg)
	return m, err
}

// newTop is an empty slice for a machine's writes to its disk.
func (e *Engine) newTop(size int64) (*slice.Slice, error) {
	return e.scratch(func(path string) (*slice.Slice, error) { return slice.Create(path, size, slice.Disk) })
}

// close lets go of what a machine has beside its process and its names.
func (e *Engine) close(m *machine) {
	for _, p := range []*port{m.control, m.data} {
		if p != nil {
			p.Close()
		}
	}
	if m.disk != nil {
		e.drop(m.disk.Layers())
	}
	e.release(m.base)
}

// restack puts other layers under what a machine has written to its disk.
func (e *Engine) restack(m *machine, below []*slice.Slice) error {
	before := m.disk.Layers()
	layers := append(before[:1:1], below...)
	if err := m.disk.Restack(layers...); err != nil {
		return err
	}
	e.hold(layers)
	e.drop(before)
	return nil
}

// start brings a prepared machine to life as a copy of its generation, with an
// identity of its own.
func (e *Engine) start(ctx context.Context, m *machine, fork agent.Fork, began time.Time) (t startTimes, err error) {
	if err := e.restack(m, m.base.disk); err != nil {
		return t, fmt.Errorf("give %s its disk: %w", m.Name, err)
	}
	if err := m.vm.Restore(ctx, m.base.state); err != nil {
		return t, e.blame(m.base, err)
	}
	ctx, stop := whileRuns(ctx, m.vm)
	defer stop()
	t.running = time.Since(began)
	if t.cpu, err = m.vm.CPUTime(); err != nil {
		return t, e.blame(m.base, err)
	}
	id := e.identity(m, fork)
	if err := m.agent.Identify(ctx, id); err != nil {
		return t, e.blame(m.base, fmt.Errorf("%w%s", err, lastWords(m.vm, m.cfg)))
	}
	if err := e.net.Up(m.Member); err != nil {
		return t, err
	}
	if err := m.agent.Begin(ctx); err != nil {
		return t, e.blame(m.base, fmt.Errorf("%s: %w%s", m.Name, err, lastWords(m.vm, m.cfg)))
	}
	session, err := dialAfter(ctx, m.data, id.Session)
	if err != nil {
		return t, fmt.Errorf("%s: %w", m.Name, err)
	}
	t.ready = time.Since(began)
	e.mu.Lock()
	if m.ended {
		e.mu.Unlock()
		session.Close()
		return t, fmt.Errorf("%s was killed while it started", m.Name)
	}
	m.session = session
	e.machines[m.Member] = m
	vm := m.vm
	e.mu.Unlock()
	e.background.Go(func() { e.watch(m, vm) })
	e.background.Go(func() { e.serveCalls(m, session) })
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

// startTimes says how long the steps of a start took, from the call that asked
// for it, and the hypervisor's processor time until its vCPUs ran.
type startTimes struct{ running, ready, cpu time.Duration }

// identity is all that tells one machine from the others. Its randomness is
// fresh for every one.
func (e *Engine) identity(m *machine, fork agent.Fork) agent.Identity {
	random := make([]byte, 112)
	rand.Read(random)
	seed, boot, machineID, session := random[:64], random[64:80], random[80:96], random[96:]
	boot[6], boot[8] = boot[6]&0x0f|0x40, boot[8]&0x3f|0x80 // a random UUID, RFC 9562
	var others []int
	e.mu.Lock()
	for member := range e.machines {
		others = append(others, member)
	}
	ticketID := ""
	if m.grant != nil {
		ticketID = m.grant.ticket.ID
		for _, c := range m.grant.ticket.Clones {
			if e.machines[c.Member] == nil {
				others = append(others, c.Member)
			}
		}
	}
	e.mu.Unlock()
	return agent.Identity{
		Clone: m.ID, Ticket: ticketID, Member: m.Member, Name: m.Name, Host: e.host, VCPUs: m.VCPUs,
		Network: e.plan.Guest(m.Member, others),
		Seed:    seed, Time: time.Now(),
		BootID:    fmt.Sprintf("%x-%x-%x-%x-%x", boot[:4], boot[4:6], boot[6:8], boot[8:10], boot[10:]),
		MachineID: hex.EncodeToString(machineID),
		Session:   session, Fork: fork,
	}
}

// dialAfter begins a session behind the mark that the agent has written.
func dialAfter(ctx context.Context, p *port, mark []byte) (*agent.Session, error) {
	stop := context.AfterFunc(ctx, func() { p.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReader(p)
	var last []byte // as many bytes as the mark has
	for !bytes.Equal(last, mark) {
		b, err := in.ReadByte()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("wait for its session: %w", err)
		}
		if last = append(last, b); len(last) > len(mark) {
			last = last[1:]
		}
	}
	return agent.Dial(struct {
		io.Reader
		io.WriteCloser
	}{in, p})
}

// watch ends a machine whose process ends by itself.
func (e *Engine) watch(m *machine, vm hypervisor.VM) {
	<-vm.Done()
	e.mu.Lock()
	current := m.vm == vm && !m.ended
	base := m.base
	e.mu.Unlock()
	err := vm.Err()
	if !current || err == nil {
		return
	}
	e.lose(m, e.blame(base, err))
}

// end takes a machine away, and with it what it has: its clones, unless they
// are another's, and its checkpoints. Afterwards its number is free for others,
// also for who was not the first to end it.
func (e *Engine) end(m *machine) {
	e.mu.Lock()
	if m.ended {
		e.mu.Unlock()
		<-m.gone
		return
	}
	m.ended = true
	defer close(m.gone)
	delete(e.machines, m.Member)
	var grants []*grant
	for _, g := range e.grants {
		if g.owner == m {
			grants = append(grants, g)
		}
	}
	var checkpoints []string
	for id, c := range e.checkpoints {
		if c.owner == m {
			checkpoints = append(checkpoints, id)
		}
	}
	vm := m.vm
	e.mu.Unlock()
	// What waits for the machine or writes to it fails now; a fork that is under
	// way as well, or it has made a successor.
	vm.Kill()
	m.control.Close()
	m.data.Conn.Close()
	for _, g := range grants {
		e.discard(g)
	}
	for _, id := range checkpoints {
		e.forget(id)
	}
	m.forking.Lock()
	defer m.forking.Unlock()
	e.mu.Lock()
	vm, next, session := m.vm, m.successor, m.session
	e.mu.Unlock()
	vm.Kill()
	if next != nil {
		e.dismiss(m, next)
	}
	if session != nil {
		session.Close()
	}
	e.tap.Remove(diskName(m.Member))
	e.net.Remove(m.Member)
	e.close(m)
}

// blame adds memtap's reason to the end of a machine, if it has one: a guest
// whose memory cannot be read dies of SIGBUS, which by itself explains nothing.
func (e *Engine) blame(g *generation, err error) error {
	if reason := e.tap.Err(g.name); reason != nil {
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
