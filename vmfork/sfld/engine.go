package sfld

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// Engine is a job: it says what is to be made, and hosts carry it.
type Engine struct {
	ctx    context.Context // the job's life
	opts   Options
	self   string // path of this program
	notify func(Notice)
	plan   network.Plan
	began  time.Time
	pauses metrics.Histogram // of forks

	local *carrier.Carrier // this host, which the first VM is on

	gateway netip.Addr // out of the private network, invalid if there is no way

	booted *generation // the checkpoint of the booted guest
	shape  hypervisor.Shape
	disk   int64 // bytes of a machine's disk

	background sync.WaitGroup // what goes on beside the calls, until ctx ends

	mu          sync.Mutex // guards all below, and what says so in machines, grants and generations
	mesh        *mesh      // connects the hosts, nil while there is one
	hosts       []*site    // by number
	taken       map[int]bool
	warm        map[int]*warmed // by member
	machines    map[int]*machine
	grants      map[string]*grant
	checkpoints map[string]*checkpoint
	layers      map[slice.ID]*placed // of all generations
	shares      []*share.Server
	listeners   map[uint16]net.Listener // of the launcher's, by port
	first       string                  // the reservation of the first VM, "" before there is one
	closed      bool
	serial      int // of names
}

// newEngine begins a job in the namespaces that settle made.
func newEngine(ctx context.Context, opts Options, notify func(Notice)) (*Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("begin a job: find this program's file: %w", err)
	}
	host, _ := os.Hostname()
	e := &Engine{
		ctx: ctx, opts: opts, self: self, notify: notify,
		plan: network.NewPlan(opts.Job), began: time.Now(),
		taken: map[int]bool{}, warm: map[int]*warmed{}, machines: map[int]*machine{},
		grants: map[string]*grant{}, checkpoints: map[string]*checkpoint{}, layers: map[slice.ID]*placed{},
		listeners: map[uint16]net.Listener{},
	}
	var recorded *trace.Collector
	if opts.Traced {
		recorded = trace.New(host, 0)
	}
	e.local, err = carrier.New(ctx, carrier.Config{
		Job: opts.Job, Host: host, Dir: jobDir, Scratch: opts.Cache, Reservations: jobsDir,
		Plan: e.plan, Window: opts.Window, Events: events{e, 0}, Trace: recorded,
	})
	if err != nil {
		return nil, err
	}
	if _, err := metrics.Publish(ctx, jobsDir, opts.Job, e); err != nil {
		return nil, errors.Join(err, e.local.Close())
	}
	kind, err := hypervisor.Choose(opts.Hypervisor)
	if err != nil {
		return nil, errors.Join(err, e.local.Close())
	}
	if opts.Accel == "" || opts.Accel != kind.Anywhere {
		e.local.Probe(kind)
	}
	e.hosts = []*site{{Host: e.local, carries: true}}
	return e, nil
}

// events are what a host tells of its own accord.
type events struct {
	e    *Engine
	host int
}

// Notice implements [carrier.Events].
func (v events) Notice(line string) { v.e.notify(Notice{Line: v.e.on(v.host, line)}) }

// Detail implements [carrier.Events].
func (v events) Detail(line string) { v.e.notify(Notice{Detail: v.e.on(v.host, line)}) }

// Progress implements [carrier.Events].
func (v events) Progress(step string) { v.e.notify(Notice{Progress: v.e.on(v.host, step)}) }

// on names the host in a line, if there is more than one.
func (e *Engine) on(host int, line string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if host == 0 {
		return line
	}
	return e.hosts[host].Name() + ": " + line
}

// Gone implements [carrier.Events].
func (v events) Gone(member int, reason error) {
	if m := v.e.machine(member); m != nil {
		v.e.lose(m, m.host.blame(reason))
	}
}

// Call implements [carrier.Events].
func (v events) Call(member int, call string, conn net.Conn) {
	m := v.e.machine(member)
	if m == nil {
		conn.Close()
		return
	}
	api.ServeConn(v.e.ctx, conn, caller{v.e, m, call})
}

// serveHost answers calls that have the host's authority.
func (e *Engine) serveHost(conn net.Conn) { api.ServeConn(e.ctx, conn, caller{e, nil, ""}) }

// number is a number that was not used before in this job.
func (e *Engine) number() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.serial++
	return e.serial
}

// takeMembers takes n numbers on the private network, ascending.
func (e *Engine) takeMembers(n int) []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	var members []int
	for m := 1; len(members) < n && m <= network.MaxID; m++ {
		if !e.taken[m] {
			e.taken[m] = true
			members = append(members, m)
		}
	}
	return members
}

// attach opens a stream to the agent of a machine.
func (e *Engine) open(member int) (net.Conn, error) {
	m := e.machine(member)
	if m == nil {
		return nil, fmt.Errorf("machine %d is gone", member)
	}
	return m.host.Open(member)
}

// Close ends the job. The kernel would do all of this when the daemons end; what
// is done here is what has a name outside of the job's namespaces, and what can
// say that something went wrong. The job's context has ended.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	var machines []*machine
	for _, m := range e.machines {
		machines = append(machines, m)
	}
	var warm []*warmed
	for _, w := range e.warm {
		warm = append(warm, w)
	}
	shares := e.shares
	e.shares = nil
	for _, l := range e.listeners {
		l.Close()
	}
	e.mu.Unlock()
	var errs []error
	if m := e.connected(); m != nil {
		m.Close() // and with their link other hosts end what they carry
	}
	var wg sync.WaitGroup
	for _, m := range machines {
		wg.Go(func() { e.end(m) })
	}
	for _, w := range warm {
		wg.Go(func() { e.cool(w.member) })
	}
	wg.Wait()
	e.background.Wait()
	for _, s := range shares {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, e.local.Close())...)
}
