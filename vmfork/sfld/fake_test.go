package sfld

import (
	"context"
	bytesof "encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/hashicorp/yamux"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// An engine of the real network, memtap and slices, with machines that are
// nothing but an agent: all of a job's life but QEMU.

// fakeDriver makes them.
type fakeDriver struct {
	hypervisor.Driver // not all of it is used

	mu      sync.Mutex // guards all below
	restore func(name string) error
	order   func(name string, kind byte) error
	vms     map[*fakeVM]bool
	guests  map[*os.File]*fakeGuest // by the control port, which stays in a fork
}

// fakeVM is a hypervisor's process.
type fakeVM struct {
	d    *fakeDriver
	cfg  hypervisor.Config
	done chan struct{}

	mu  sync.Mutex
	err error
}

// fakeGuest is what lives on in a successor.
type fakeGuest struct {
	name   string
	mac    string // as its hypervisor says it
	frozen bool   // of the goroutine that reads orders

	mu      sync.Mutex
	session []byte // its mark
	mux     *yamux.Session
}

// ask has restore asked before a machine runs, and order before an agent
// answers. Each may be nil.
func (d *fakeDriver) ask(restore func(name string) error, order func(name string, kind byte) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restore, d.order = restore, order
}

func (d *fakeDriver) asked() (restore func(name string) error, order func(name string, kind byte) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.restore, d.order
}

func (d *fakeDriver) Prepare(_ context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v := &fakeVM{d: d, cfg: cfg, done: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.vms[v] = true
	return v, nil
}

// live are the names of processes.
func (d *fakeDriver) live() (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for v := range d.vms {
		names = append(names, v.cfg.Name)
	}
	return names
}

// guest is who lives in a machine of that name.
func (d *fakeDriver) guest(t *testing.T, name string) *fakeGuest {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.guests {
		if g.name == name {
			return g
		}
	}
	t.Fatalf("there is no guest %s", name)
	return nil
}

// disk is the path of a machine's disk.
func (d *fakeDriver) disk(t *testing.T, name string) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for v := range d.vms {
		if v.cfg.Name == name {
			return v.cfg.DiskPath
		}
	}
	t.Fatalf("there is no machine %s", name)
	return ""
}

// Describe implements [hypervisor.Driver], for descriptors.
func (d *fakeDriver) Describe(hypervisor.Shape) hypervisor.Description {
	return hypervisor.Description{Accelerator: "none", Machine: "fake", MemoryMap: []descriptor.Range{{Size: 1 << 20}}}
}

func (d *fakeDriver) Name() string    { return "fake" }
func (d *fakeDriver) Version() string { return "1" }

// die ends the processes of a machine.
func (d *fakeDriver) die(name string) {
	d.mu.Lock()
	var dying []*fakeVM
	for v := range d.vms {
		if v.cfg.Name == name {
			dying = append(dying, v)
		}
	}
	d.mu.Unlock()
	for _, v := range dying {
		v.end(fmt.Errorf("%s: it died", name))
	}
}

func (v *fakeVM) end(reason error) {
	v.d.mu.Lock()
	there := v.d.vms[v]
	delete(v.d.vms, v)
	v.d.mu.Unlock()
	if there {
		v.mu.Lock()
		v.err = reason
		v.mu.Unlock()
		close(v.done)
	}
}

func (v *fakeVM) Kill()                           { v.end(nil) }
func (v *fakeVM) Done() <-chan struct{}           { return v.done }
func (v *fakeVM) CPUTime() (time.Duration, error) { return 0, nil }
func (v *fakeVM) PID() int                        { return 0 }
func (v *fakeVM) Resume(context.Context) error    { return nil }
func (v *fakeVM) Err() error                      { v.mu.Lock(); defer v.mu.Unlock(); return v.err }
func (v *fakeVM) Suspend(context.Context) ([]byte, error) {
	return []byte("state of " + v.cfg.Name), nil
}

func (v *fakeVM) Dirtied(context.Context) (*bitset.BitSet, io.ReaderAt, error) {
	pages := bitset.New(uint(v.cfg.Memory / slice.BlockSize))
	pages.Set(1)
	return pages, strings.NewReader(strings.Repeat(v.cfg.Name+" ", int(v.cfg.Memory)/4)), nil
}

func (v *fakeVM) Restore(ctx context.Context, state []byte) error {
	if !strings.HasPrefix(string(state), "state of ") {
		return fmt.Errorf("the state is %q", state)
	}
	if ask, _ := v.d.asked(); ask != nil {
		if err := ask(v.cfg.Name); err != nil {
			return err
		}
	}
	v.d.mu.Lock()
	defer v.d.mu.Unlock()
	if g := v.d.guests[v.cfg.Ports[0].File]; g != nil { // it goes on
		if g.mac != v.cfg.MAC.String() {
			return fmt.Errorf("%s has the address %s, and goes on with %v", g.name, g.mac, v.cfg.MAC)
		}
		return nil
	}
	control, err := net.FileConn(v.cfg.Ports[0].File)
	if err != nil {
		return err
	}
	data, err := net.FileConn(v.cfg.Ports[1].File)
	if err != nil {
		return err
	}
	g := &fakeGuest{name: v.cfg.Name, mac: v.cfg.MAC.String()}
	for file, former := range v.d.guests {
		if former.name == g.name { // its number is free again
			delete(v.d.guests, file)
		}
	}
	v.d.guests[v.cfg.Ports[0].File] = g
	go func() {
		defer control.Close()
		defer data.Close()
		g.obey(v.d, control, data)
	}()
	return nil
}

// obey is the agent's side of the control port.
func (g *fakeGuest) obey(d *fakeDriver, control, data net.Conn) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(control, head[:]); err != nil {
			return
		}
		payload := make([]byte, bytesof.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(control, payload); err != nil {
			return
		}
		err := g.carryOut(head[0], payload, data)
		if _, ask := d.asked(); ask != nil && err == nil {
			err = ask(g.name, head[0])
		}
		var text string
		if err != nil {
			text = err.Error()
		}
		if _, err := control.Write(append(bytesof.BigEndian.AppendUint32(nil, uint32(len(text))), text...)); err != nil {
			return
		}
	}
}

func (g *fakeGuest) carryOut(kind byte, payload []byte, data net.Conn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch kind {
	case 'f', 't':
		if g.frozen == (kind == 'f') {
			return fmt.Errorf("order %q, and frozen is %v", kind, g.frozen)
		}
		g.frozen = kind == 'f'
	case 'i':
		id, err := agent.ParseIdentity(payload)
		if err != nil {
			return err
		}
		if id.Network.MAC.String() != g.mac {
			return fmt.Errorf("%s is to have the address %v, and woke with %s", g.name, id.Network.MAC, g.mac)
		}
		g.session = id.Session
	case 'b':
		// What the VM that was cloned had still to say comes first.
		if _, err := data.Write(append([]byte("the former session's rest"), g.session...)); err != nil {
			return err
		}
		var err error
		g.mux, err = yamux.Server(data, agent.MuxConfig())
		return err
	}
	return nil
}

// call makes a call as a process of the VM.
func (g *fakeGuest) call(ctx context.Context, call string, args ...string) (api.Reply, error) {
	g.mu.Lock()
	mux := g.mux
	g.mu.Unlock()
	conn, err := mux.Open()
	if err != nil {
		return api.Reply{}, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\x04call")); err != nil {
		return api.Reply{}, err
	}
	return api.NewConn(conn).Do(ctx, api.NewRequest(call, args...))
}

// testEngine is a job with a booted guest, whose machines are fakes.
func testEngine(t *testing.T) (*Engine, *fakeDriver) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a job has a network and a memtap: this test needs root")
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &fakeDriver{vms: map[*fakeVM]bool{}, guests: map[*os.File]*fakeGuest{}}
	e := &Engine{
		ctx: ctx, opts: Options{Job: jobName(t)}, notify: func(n Notice) { t.Logf("notice: %+v", n) },
		plan: network.NewPlan(t.Name()), shape: hypervisor.Shape{VCPUs: 2, Memory: 1 << 20}, disk: 1 << 20,
		taken: map[int]bool{}, warm: map[int]*warmed{}, machines: map[int]*machine{},
		grants: map[string]*grant{}, checkpoints: map[string]*checkpoint{}, layers: map[slice.ID]*placed{}, listeners: map[uint16]net.Listener{},
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	e.local, err = carrier.New(ctx, carrier.Config{
		Job: jobName(t), Host: "here", Dir: t.TempDir(), Scratch: t.TempDir(), Reservations: jobsDir,
		Plan: e.plan, Events: events{e, 0}, Driver: d,
	})
	must(err)
	e.hosts = []*site{{Host: e.local, carries: true}}
	t.Cleanup(func() {
		cancel()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if live := d.live(); len(live) > 0 {
			t.Errorf("after the job's end there are processes of %v", live)
		}
		if r := reservations(t); len(r) > 0 {
			t.Errorf("after the job's end there are the reservations %v", r)
		}
	})
	_, err = e.equip(ctx, carrier.Equipment{Shape: e.shape})
	must(err)
	memory, err := slice.NewImage(frozen(t, e.shape.Memory, slice.Memory))
	must(err)
	disk := []*slice.Slice{frozen(t, 1<<20, slice.Disk), frozen(t, 1<<20, slice.Disk)}
	e.booted = e.newGeneration(e.hosts[0])
	must(e.local.Found(ctx, e.booted.name, carrier.Instant{State: []byte("state of the booted guest"), Memory: memory, Disk: disk}))
	var layers []carrier.Layer
	for _, s := range append(memory.Layers(), disk...) {
		layers = append(layers, carrier.Layer{ID: s.ID()})
	}
	e.mu.Lock()
	e.frozenLocked(e.booted, layers)
	e.mu.Unlock()
	return e, d
}

// frozen is a slice of one block of data.
func frozen(t *testing.T, size int64, kind slice.Kind) *slice.Slice {
	t.Helper()
	s, err := slice.Create(filepath.Join(t.TempDir(), "slice"), size, kind)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteBlocks([]byte(strings.Repeat("x", slice.BlockSize)), 0); err != nil {
		t.Fatal(err)
	}
	s.Freeze()
	return s
}

// startVM starts the job's first VM.
func startVM(t *testing.T, e *Engine) {
	t.Helper()
	var v VMStarted
	if err := (&service{e: e, ctx: e.ctx}).StartVM(VMArgs{VCPUs: 1, Limit: 20 * time.Second}, &v); err != nil {
		t.Fatal(err)
	}
	if v.VM.Name != "parent" || v.VM.Member != 0 || v.VM.ID != 0 {
		t.Fatalf("the first VM is %+v", v.VM)
	}
}

// soon is a context for what takes no time.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// fromHost makes a call with the host's authority, and wants a reply that begins so.
func fromHost(t *testing.T, e *Engine, want, call string, args ...string) string {
	t.Helper()
	got := reply(caller{e, nil, ""}.Call(soon(t), api.NewRequest(call, args...)))
	if !strings.HasPrefix(got, want) {
		t.Fatalf("%s %v: %s, want %s", call, args, got, want)
	}
	return got
}

// process makes a call as a process of a VM, and wants a reply that begins so.
func (d *fakeDriver) process(t *testing.T, vm, want, call string, args ...string) string {
	t.Helper()
	r, err := d.guest(t, vm).call(soon(t), call, args...)
	got := reply(r)
	if err != nil && r.Err == nil {
		got = err.Error()
	}
	if !strings.HasPrefix(got, want) {
		t.Fatalf("in %s, %s %v: %s, want %s", vm, call, args, got, want)
	}
	return got
}

// reply is a reply as it is sent, with its escapes undone where they are spaces.
func reply(r api.Reply) string {
	line, err := r.Line()
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(strings.TrimSuffix(string(line), "\n"), "%20", " ")
}

// field is a value of a reply.
func field(t *testing.T, reply, key string) string {
	t.Helper()
	for f := range strings.FieldsSeq(reply) {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			return v
		}
	}
	t.Fatalf("%q has no %s", reply, key)
	return ""
}

// left waits until exactly these machines are left of a job, and nothing of
// others: no process, no number, no ticket, no name in memtap, no tap, no slice.
func left(t *testing.T, e *Engine, d *fakeDriver, names ...string) {
	t.Helper()
	var wrong string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if wrong = e.wrong(d, names); wrong == "" || time.Now().After(end) {
			break
		}
	}
	if wrong != "" {
		t.Fatalf("of the job is left: %s", wrong)
	}
}

func (e *Engine) wrong(d *fakeDriver, names []string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	want := len(names)
	layers := map[slice.ID]bool{}
	count := func(g *generation) {
		for _, l := range g.layers {
			layers[l.ID] = true
		}
	}
	count(e.booted)
	for _, name := range names {
		member, ok := 0, false
		for n, m := range e.machines {
			if m.Name == name {
				member, ok = n, true
				count(m.base)
				if m.next != nil {
					want++
				}
			}
		}
		if !ok {
			return "no " + name
		}
		if member > 0 && !e.taken[member] {
			return "no number of " + name
		}
	}
	there := e.local.Inventory()
	switch live := d.live(); {
	case len(e.machines) != len(names):
		return fmt.Sprintf("%d machines", len(e.machines))
	case len(there.Machines) != len(names):
		return fmt.Sprintf("the machines %v on the host", there.Machines)
	case len(e.warm) > 0:
		return fmt.Sprintf("%d warm machines", len(e.warm))
	case len(live) != want:
		return fmt.Sprintf("the processes %v", live)
	case there.Slices > len(layers)+len(names): // each has one of its own; some are folded
		return fmt.Sprintf("%d slices instead of %d", there.Slices, len(layers)+len(names))
	case len(e.layers) != len(layers):
		return fmt.Sprintf("%d slices are counted instead of %d", len(e.layers), len(layers))
	}
	return ""
}
