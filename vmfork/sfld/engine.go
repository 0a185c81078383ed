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
)

// Engine is a job on this machine.
type Engine struct {
	opts   Options
	self   string // path of this program
	notify func(Notice)
	plan   network.Plan
	starts *semaphore.Weighted // hypervisor processes that start at once

	accel  func() (qemu.Accel, error) // the probe, run once, begun early
	net    *network.Network
	tap    *memtap.Tap
	driver hypervisor.Driver
	image  *guest.Image
	frozen *checkpoint
	shape  hypervisor.Shape

	mu     sync.Mutex // guards all below
	grants []*allocator.Grant
	warm   map[int]*warmed
	clones map[int]*clone
	shares []*share.Server
	taps   map[int]*os.File
}

// newEngine begins a job in the namespaces that settle made.
func newEngine(ctx context.Context, opts Options, notify func(Notice)) (*Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("begin a job: find this program's file: %w", err)
	}
	e := &Engine{
		opts: opts, self: self, notify: notify,
		plan:   network.NewPlan(opts.Job),
		starts: semaphore.NewWeighted(int64(2 * runtime.NumCPU())),
		warm:   map[int]*warmed{}, clones: map[int]*clone{}, taps: map[int]*os.File{},
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

// tapFor returns the host end of a clone's network device.
func (e *Engine) tapFor(id int) (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.taps[id]; f != nil {
		return f, nil
	}
	f, err := e.net.AddTap(id)
	if err != nil {
		return nil, err
	}
	e.taps[id] = f
	return f, nil
}

// config is the machine of a clone, or of the parent for id 0.
func (e *Engine) config(id int, memory, disk string) (hypervisor.Config, error) {
	tap, err := e.tapFor(id)
	if err != nil {
		return hypervisor.Config{}, err
	}
	return hypervisor.Config{
		Name: e.plan.Name(id), Dir: jobDir, Shape: e.shape,
		MemoryPath: memory, DiskPath: disk,
		// Every clone wakes with the parent's MAC, so the device is made with
		// it; the agent sets the clone's own before the link comes up.
		Tap: tap, MAC: e.plan.MAC(0),
	}, nil
}

// Close ends the job. The kernel would do all of this when the daemon ends;
// what is done here is what has a name outside of the job's namespaces, and
// what can say that something went wrong.
func (e *Engine) Close() error {
	e.mu.Lock()
	clones, warm, shares, grants := e.clones, e.warm, e.shares, e.grants
	e.clones, e.warm, e.shares, e.grants = map[int]*clone{}, map[int]*warmed{}, nil, nil
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range clones {
		wg.Go(c.end)
	}
	for _, w := range warm {
		wg.Go(w.end)
	}
	wg.Wait()
	var errs []error
	for _, s := range shares {
		errs = append(errs, s.Close())
	}
	if e.tap != nil {
		errs = append(errs, e.tap.Unmount(context.Background()))
	}
	if e.frozen != nil {
		e.frozen.close()
	}
	if e.net != nil {
		errs = append(errs, e.net.Close())
	}
	if e.image != nil {
		e.image.Release()
	}
	for _, g := range grants {
		g.Release()
	}
	return errors.Join(errs...)
}
