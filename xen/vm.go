package xen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/device"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/store"
)

// vm is one machine: a domain, or, before Restore, what will be one.
type vm struct {
	d        *Driver
	cfg      hypervisor.Config
	name     string // of the domain, unique on this machine
	layout   layout
	restored bool // and not booted

	ctx    context.Context // ends with the machine
	cancel context.CancelFunc
	done   chan struct{}

	op       sync.Mutex // guards all below, and is held by what changes the machine
	id       privcmd.Domain
	exists   bool   // there is a domain, or may be one
	parts    []part // devices
	log      *consoleLog
	watching chan struct{} // closed when nobody looks after the domain
	image    bool          // the memory file is the machine's RAM, of an earlier suspension
	dirtied  *comparer     // of the last suspension of one that was restored
	machine  *translation  // of that, if its guest is PV
	pager    *pager        // what brings its memory, nil if it is there

	mu     sync.Mutex // guards all below
	ended  bool
	killed bool
	err    error
}

var _ hypervisor.VM = (*vm)(nil)

// part is a device of a machine (package device), or the process that serves one.
type part interface {
	Drain(ctx context.Context) error
	Resume()
	Close(ctx context.Context) error
	Err() error
}

// newVM checks what is cheap to check.
func (d *Driver) newVM(ctx context.Context, cfg hypervisor.Config) (*vm, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	if info, err := os.Stat(cfg.MemoryPath); err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	} else if info.Size() != cfg.Memory {
		return nil, fmt.Errorf("start %s: its memory file has %d bytes, want %d", cfg.Name, info.Size(), cfg.Memory)
	}
	v := &vm{
		d: d, cfg: cfg, name: d.owner.domainName(cfg.Name, d.domains.Add(1)),
		layout: d.guests.memoryMap(cfg.Memory), done: make(chan struct{}),
	}
	v.ctx, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return v, nil
}

// limit makes a context that ends with the machine as well.
func (v *vm) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// boot makes the domain and lets it run.
func (v *vm) boot(ctx context.Context, k hypervisor.Kernel) error {
	v.op.Lock()
	defer v.op.Unlock()
	ctx, cancel := v.limit(ctx)
	defer cancel()
	k.Cmdline = cmdline(k.Cmdline, v.cfg.Ports)
	if err := v.create(ctx, k, nil, "create", "-q", "-p", "-e"); err != nil {
		return err
	}
	return v.run(ctx)
}

// create has xl make the domain, paused. file is what it reads a state from.
func (v *vm) create(ctx context.Context, k hypervisor.Kernel, file *os.File, args ...string) error {
	if err := checkQuotable(v.name, k.Image, k.Initrd, k.Cmdline); err != nil {
		return err
	}
	path := filepath.Join(v.cfg.Dir, v.name+".cfg")
	if err := os.WriteFile(path, []byte(config(v.name, v.d.guests, v.cfg.Shape, k)), 0o600); err != nil {
		return err
	}
	defer os.Remove(path)
	if args = append(args, path); file != nil {
		args = append(args, inheritedFile)
	}
	v.exists = true // also if xl fails, or is ended before it cleans up
	if _, err := v.d.runTool(ctx, file, args...); err != nil {
		return err
	}
	names, err := v.d.names(ctx)
	if err != nil {
		return fmt.Errorf("look for the number of its domain: %w", err)
	}
	for number, name := range names {
		if n, err := strconv.ParseUint(number, 10, 15); err == nil && name == v.name {
			v.id = privcmd.Domain(n)
			return nil
		}
	}
	return fmt.Errorf("xl %s made no domain that is named %s", args[0], v.name)
}

// run gives a paused domain its devices and lets it run.
func (v *vm) run(ctx context.Context) error {
	if err := v.addParts(ctx); err != nil {
		return err
	}
	var err error
	if v.log, err = v.d.logConsole(ctx, v.id, v.cfg.ConsolePath()); err != nil {
		return err
	}
	w, err := v.d.store.Watch(ctx, store.ReleaseDomain)
	if err != nil {
		return err
	}
	v.watching = make(chan struct{})
	go v.watch(w, v.id, v.parts, v.pager)
	return v.d.xen.Unpause(v.id)
}

// addParts gives a domain its devices, in an order that is the machine's shape.
func (v *vm) addParts(ctx context.Context) error {
	bus, id := v.d.bus, uint16(v.id)
	add := func(p part, err error) error {
		if err == nil {
			v.parts = append(v.parts, p)
		}
		return err
	}
	for i, p := range v.cfg.Ports {
		c, err := bus.NewConsole(ctx, id, firstPort+i, p.Name, p.File)
		if err := add(c, err); err != nil {
			return err
		}
	}
	if v.cfg.DiskPath != "" {
		d, err := v.startDisk(ctx)
		if err := add(d, err); err != nil {
			return err
		}
	}
	if v.cfg.Tap != nil {
		n, err := bus.NewNetwork(ctx, id, v.cfg.MAC, v.cfg.Tap)
		if err := add(n, err); err != nil {
			return err
		}
	}
	return nil
}

// lookEvery is how often a domain is looked at when nobody has said that one ended.
const lookEvery = 2 * time.Second

// watch ends the machine when its domain has ended by itself.
func (v *vm) watch(w *store.Watch, id privcmd.Domain, parts []part, p *pager) {
	reason := v.awaitEnd(w, id, parts, p)
	limited, cancel := context.WithTimeout(context.Background(), destroyLimit)
	defer cancel()
	w.Close(limited)
	close(v.watching)
	if reason != nil {
		if said := hypervisor.ConsoleLog(v.cfg); said != "" {
			reason = fmt.Errorf("%w (its console says: %s)", reason, said)
		}
		v.end(fmt.Errorf("%s: %w", v.cfg.Name, reason))
	}
}

// awaitEnd returns why a domain ended, nil if the machine is ended.
func (v *vm) awaitEnd(w *store.Watch, id privcmd.Domain, parts []part, p *pager) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var unpaged <-chan struct{}
	if p != nil {
		unpaged = p.done
	}
	for {
		select {
		case <-v.ctx.Done():
			return nil
		case <-v.d.store.Ended():
			return errors.New("XenStore has ended")
		case <-unpaged:
			if p.err != nil {
				return p.err
			}
			unpaged = nil // all of its memory is there
		case <-w.Changed():
		case <-tick.C:
		}
		info, err := v.d.xen.Info(id)
		switch {
		case errors.Is(err, unix.ESRCH), err == nil && info.Dying:
			return errors.New("its domain was destroyed")
		case err != nil:
			return err
		case info.Shutdown && info.Reason != privcmd.Suspend:
			return errors.New(info.Reason.String())
		}
		for _, p := range parts {
			if err := p.Err(); err != nil {
				return err
			}
		}
	}
}

// Kill implements [hypervisor.VM].
func (v *vm) Kill() {
	v.mu.Lock()
	if !v.ended {
		v.killed = true
	}
	v.mu.Unlock()
	v.finish()
	<-v.done
}

// end ends a machine for a reason, which it returns.
func (v *vm) end(reason error) error {
	v.mu.Lock()
	if v.err == nil && !v.killed {
		v.err = reason
	}
	v.mu.Unlock()
	v.finish()
	<-v.done
	return reason
}

// destroyLimit is how long Xen's tools may take to destroy a domain.
const destroyLimit = 30 * time.Second

// finish ends the domain and what belongs to it, once.
func (v *vm) finish() {
	v.mu.Lock()
	first := !v.ended
	v.ended = true
	v.mu.Unlock()
	if !first {
		return
	}
	v.cancel()
	v.op.Lock()
	defer v.op.Unlock()
	defer close(v.done)
	if v.watching != nil {
		<-v.watching
	}
	ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
	defer cancel()
	err := v.destroy(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil && v.err == nil {
		v.err = fmt.Errorf("destroy %s: %w", v.cfg.Name, err)
	}
}

func (v *vm) destroy(ctx context.Context) error {
	if !v.exists {
		return nil
	}
	if v.pager != nil {
		v.pager.close()
	}
	var errs []error
	for _, p := range v.parts { // what is mapped of it would keep the domain
		errs = append(errs, p.Close(ctx))
	}
	// One that was being made when xl was ended has no number yet, and may not be there.
	_, err := v.d.runTool(ctx, nil, "destroy", v.name)
	if v.id != 0 {
		errs = append(errs, v.awaitGone(ctx, err), device.Forget(ctx, v.d.store, strconv.Itoa(int(v.id))))
	}
	if v.log != nil {
		errs = append(errs, v.log.close())
	}
	return errors.Join(errs...)
}

// awaitGone waits until Xen has no such domain any more.
func (v *vm) awaitGone(ctx context.Context, destroyed error) error {
	for {
		_, err := v.d.xen.Info(v.id)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if destroyed != nil {
			return destroyed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for domain %d to be gone: %w", v.id, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Done implements [hypervisor.VM].
func (v *vm) Done() <-chan struct{} { return v.done }

// Err implements [hypervisor.VM].
func (v *vm) Err() error {
	select {
	case <-v.done:
	default:
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// PID implements [hypervisor.VM]: a domain is no process.
func (v *vm) PID() int { return 0 }

// CPUTime implements [hypervisor.VM].
func (v *vm) CPUTime() (time.Duration, error) {
	select {
	case <-v.done:
		return 0, fmt.Errorf("read CPU time of %s: it is gone", v.cfg.Name)
	default:
	}
	v.op.Lock()
	id := v.id
	v.op.Unlock()
	if id == 0 {
		return 0, nil
	}
	info, err := v.d.xen.Info(id)
	return info.CPUTime, err
}
