package sfld

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Engine is a job on this machine.
type Engine struct {
	ctx    context.Context // the job's life
	opts   Options
	self   string // path of this program
	host   string // name of this machine
	notify func(Notice)
	plan   network.Plan
	starts *semaphore.Weighted // hypervisor processes that start at once

	accel  func() (qemu.Accel, error) // the probe, run once, begun early
	net    *network.Network
	tap    *memtap.Tap
	driver hypervisor.Driver
	image  *guest.Image
	booted *generation // the checkpoint of the booted guest
	shape  hypervisor.Shape

	background sync.WaitGroup // what goes on beside the calls, until ctx ends

	mu          sync.Mutex // guards all below, and what says so in machines, grants and generations
	taken       map[int]bool
	warm        map[int]*warmed // by member
	machines    map[int]*machine
	grants      map[string]*grant
	checkpoints map[string]*checkpoint
	layers      map[*slice.Slice]int // how many generations and disks have each
	shares      []*share.Server
	first       *allocator.Grant // of the first VM, nil before there is one
	closed      bool
	serial      int   // of names
	copied      int64 // bytes of dirtied pages, by all forks
}

// newEngine begins a job in the namespaces that settle made.
func newEngine(ctx context.Context, opts Options, notify func(Notice)) (*Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("begin a job: find this program's file: %w", err)
	}
	host, _ := os.Hostname()
	e := &Engine{
		ctx: ctx, opts: opts, self: self, host: host, notify: notify,
		plan:   network.NewPlan(opts.Job),
		starts: semaphore.NewWeighted(int64(2 * runtime.NumCPU())),
		taken:  map[int]bool{}, warm: map[int]*warmed{}, machines: map[int]*machine{},
		grants: map[string]*grant{}, checkpoints: map[string]*checkpoint{}, layers: map[*slice.Slice]int{},
	}
	e.accel = sync.OnceValues(func() (qemu.Accel, error) {
		switch accel := qemu.Accel(opts.Accel); accel {
		case qemu.TCG:
			return accel, nil
		case qemu.KVM: // as asked, but a guest that crawls needs a reason
			_, reason := qemu.Probe(ctx)
			return accel, reason
		}
		return qemu.Probe(ctx)
	})
	go e.accel()
	if e.net, err = network.Create(ctx, e.plan); err != nil {
		return nil, err
	}
	mount := filepath.Join(jobDir, "memtap")
	if err := os.Mkdir(mount, 0o700); err != nil {
		return nil, fmt.Errorf("begin a job: %w", err)
	}
	if e.tap, err = memtap.Mount(ctx, mount, memtap.Options{Window: opts.Window, Logger: zerolog.Nop()}); err != nil {
		return nil, err
	}
	return e, nil
}

// scratch is a file beside the image for what only this job has: the writes of
// a disk, the dirtied pages of a fork. It has a name only for as long as it
// takes to open it, and its space goes with the job.
func (e *Engine) scratch(open func(path string) (*slice.Slice, error)) (*slice.Slice, error) {
	path := filepath.Join(e.image.Dir, fmt.Sprintf("%s%s-%d", tmpFiles, e.opts.Job, e.number()))
	defer os.Remove(path)
	return open(path)
}

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

// Close ends the job. The kernel would do all of this when the daemon ends;
// what is done here is what has a name outside of the job's namespaces, and
// what can say that something went wrong. The job's context has ended.
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
	var grants []*grant
	for _, g := range e.grants {
		grants = append(grants, g)
	}
	shares, first := e.shares, e.first
	e.shares = nil
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, m := range machines {
		wg.Go(func() { e.end(m) })
	}
	for _, w := range warm {
		wg.Go(func() { e.cool(w.member) })
	}
	wg.Wait()
	e.background.Wait()
	var errs []error
	for _, s := range shares {
		errs = append(errs, s.Close())
	}
	if e.tap != nil {
		errs = append(errs, e.tap.Unmount(context.Background()))
	}
	if e.net != nil {
		errs = append(errs, e.net.Close())
	}
	if e.image != nil {
		e.image.Release()
	}
	for _, g := range grants {
		g.reserved.Release()
	}
	if first != nil {
		first.Release()
	}
	return errors.Join(errs...)
}
