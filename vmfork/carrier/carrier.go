package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// Config is what a carrier must know from the start.
type Config struct {
	Job          string       // the job's id, unique on this host
	Host         string       // the host's name
	Number       int          // the host's number in the job; 0 is the coordinator's
	Dir          string       // an existing folder in memory, the job's alone
	Scratch      string       // an existing folder on disk, for what machines write
	Reservations string       // where the jobs of this host keep their reservations
	Plan         network.Plan // of the job's private network
	Window       int          // memtap's, bytes, 0 for the default
	Events       Events
	Driver       hypervisor.Driver // of the machines, nil to make one as [Carrier.Equip] is told
	Trace        *trace.Collector  // records what takes how long, nil for nothing
}

// Carrier is a job's part on this host.
type Carrier struct {
	ctx    context.Context // the job's life
	cfg    Config
	starts *semaphore.Weighted // hypervisor processes that start at once

	net    *network.Network
	tap    *memtap.Tap
	driver hypervisor.Driver
	kind   hypervisor.Kind // the driver's
	shape  hypervisor.Shape
	image  *guest.Image // what Checkpoint was given, nil on other hosts
	probes probes

	background sync.WaitGroup // what goes on beside the calls, until ctx ends

	mu          sync.Mutex // guards all below, and what says so in bodies and generations
	bodies      map[int]*body
	generations map[string]*generation
	layers      map[*slice.Slice]*layer
	leaving     map[slice.ID]chan struct{} // slices of other hosts that nobody has any more; closed when they can be had anew
	reserved    map[string]*allocator.Grant
	fabric      *fabric // the other hosts, nil while there are none
	closed      bool
	serial      int   // of names
	copied      int64 // bytes of dirtied pages, by all forks
}

// New begins a job's part on this host: its network, and memtap.
func New(ctx context.Context, cfg Config) (*Carrier, error) {
	c := &Carrier{
		ctx: ctx, cfg: cfg,
		starts: semaphore.NewWeighted(int64(2 * runtime.NumCPU())),
		bodies: map[int]*body{}, generations: map[string]*generation{},
		layers: map[*slice.Slice]*layer{}, leaving: map[slice.ID]chan struct{}{}, reserved: map[string]*allocator.Grant{},
	}
	net, err := network.Create(ctx, cfg.Plan)
	if err != nil {
		return nil, err
	}
	mount := filepath.Join(cfg.Dir, "memtap")
	if err = os.Mkdir(mount, 0o700); err == nil {
		c.tap, err = memtap.Mount(ctx, mount, memtap.Options{Window: cfg.Window, Logger: zerolog.Nop()})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin a job: %w", err), net.Close())
	}
	c.net = net
	return c, nil
}

// Name implements [Host].
func (c *Carrier) Name() string { return c.cfg.Host }

// Network is the job's private network, as this host has it.
func (c *Carrier) Network() *network.Network { return c.net }

// reservations are those of this host's jobs.
func (c *Carrier) reservations() allocator.Local {
	return allocator.Local{Dir: c.cfg.Reservations, Machine: allocator.MachineOf(c.kind)}
}

// Room implements [Host].
func (c *Carrier) Room(context.Context) (allocator.Room, error) {
	return c.reservations().Room()
}

// Reserve implements [Host].
func (c *Carrier) Reserve(_ context.Context, id string, d allocator.Demand) (r Reserved, err error) {
	g, err := c.reservations().Reserve(c.cfg.Job, d)
	if err != nil {
		return r, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserved[id] = g
	return Reserved{VCPUs: g.VCPUs, Cores: g.Cores, Free: g.Free, Each: g.Each}, nil
}

// Unreserve implements [Host].
func (c *Carrier) Unreserve(id string) {
	c.mu.Lock()
	g := c.reserved[id]
	delete(c.reserved, id)
	c.mu.Unlock()
	if g != nil {
		g.Release()
	}
}

// scratch is a file for what only this job has: the writes of a disk, the
// dirtied pages of a fork, the blocks that came from another host. It has a name
// only for as long as it takes to open it, and its space goes with the job.
func (c *Carrier) scratch(open func(path string) (*slice.Slice, error)) (*slice.Slice, error) {
	// Hosts may share the folder.
	path := filepath.Join(c.scratchDir(), fmt.Sprintf("%s%s-%d-%d", tmpFiles, c.cfg.Job, c.cfg.Number, c.number()))
	defer os.Remove(path)
	return open(path)
}

func (c *Carrier) scratchDir() string {
	if c.image != nil {
		return c.image.Dir
	}
	return c.cfg.Scratch
}

// number is a number that was not used before.
func (c *Carrier) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serial++
	return c.serial
}

// Counters implements [Host].
func (c *Carrier) Counters(context.Context) (n Counters, err error) {
	n.CPU, n.Reads = map[int]time.Duration{}, map[int]int64{}
	c.mu.Lock()
	n.Copied = c.copied
	var generations []string
	for name := range c.generations {
		generations = append(generations, name)
	}
	vms := map[int]hypervisor.VM{}
	for member, b := range c.bodies {
		vms[member] = b.vm
	}
	fabric := c.fabric
	c.mu.Unlock()
	for _, name := range generations {
		n.Memory.Add(c.tap.Counters(name))
	}
	for member, vm := range vms {
		disk := c.tap.Counters(diskName(member))
		n.Disks.Add(disk)
		n.Reads[member] = disk.Reads
		if vm == nil {
			continue
		}
		if t, err := vm.CPUTime(); err == nil {
			n.CPU[member] = t
		}
	}
	if fabric != nil {
		n.Moved = fabric.node.Counters()
	}
	return n, nil
}

// Inventory is what a host has of the job.
type Inventory struct {
	Machines    []int    // by number
	Generations []string // sorted
	Slices      int      // open
	Reserved    []string // ids of reservations, sorted
}

// Inventory says what there is here now.
func (c *Carrier) Inventory() Inventory {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Inventory{
		Machines:    slices.Sorted(maps.Keys(c.bodies)),
		Generations: slices.Sorted(maps.Keys(c.generations)),
		Slices:      len(c.layers),
		Reserved:    slices.Sorted(maps.Keys(c.reserved)),
	}
}

// Close ends the job's part here. The kernel would do all of this when the
// daemon ends; what is done here is what has a name outside of the job's
// namespaces, and what can say that something went wrong. The job's context has
// ended.
func (c *Carrier) Close() error {
	c.mu.Lock()
	c.closed = true
	var members []int
	for member := range c.bodies {
		members = append(members, member)
	}
	reserved, fabric := c.reserved, c.fabric
	c.reserved = nil
	c.mu.Unlock()
	var wg sync.WaitGroup
	for _, member := range members {
		wg.Go(func() { c.End(member) })
	}
	wg.Wait()
	c.background.Wait()
	var errs []error
	if d, ok := c.driver.(io.Closer); ok {
		errs = append(errs, d.Close())
	}
	if fabric != nil {
		errs = append(errs, fabric.node.Close())
	}
	errs = append(errs, c.tap.Unmount(context.Background()), c.net.Close())
	if c.image != nil {
		c.image.Release()
	}
	for _, g := range reserved {
		g.Release()
	}
	return errors.Join(errs...)
}

// Events implements [Host].
func (c *Carrier) Events(context.Context) ([]trace.Event, time.Duration, error) {
	return c.cfg.Trace.Drain(), 0, nil
}

// Usage implements [Host].
func (c *Carrier) Usage(context.Context) (map[int]Usage, error) {
	all := map[int]Usage{}
	pids := map[int]int{}
	c.mu.Lock()
	for member, b := range c.bodies {
		all[member] = Usage{Began: b.began}
		if b.vm != nil {
			pids[member] = b.vm.PID()
		}
	}
	c.mu.Unlock()
	for member, pid := range pids {
		p, err := metrics.ReadProcess(pid)
		if err != nil {
			continue // it has no process, or that is gone
		}
		u := all[member]
		u.Touched, u.Own = p.Touched, p.Own
		all[member] = u
	}
	return all, nil
}

// Add adds what another host has counted, but what went between hosts: that is
// counted at both ends.
func (n *Counters) Add(other Counters) {
	n.Memory.Add(other.Memory)
	n.Disks.Add(other.Disks)
	n.Copied += other.Copied
	if n.CPU == nil {
		n.CPU, n.Reads = map[int]time.Duration{}, map[int]int64{}
	}
	maps.Copy(n.CPU, other.CPU)
	maps.Copy(n.Reads, other.Reads)
}
