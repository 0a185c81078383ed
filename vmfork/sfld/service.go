package sfld

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// service is what the launcher calls, by net/rpc.
type service struct {
	e   *Engine
	ctx context.Context // the job's life
}

// Prepare finds or makes what clones are copies of, and begins to start their
// processes.
func (s *service) Prepare(args PrepareArgs, out *Prepared) (err error) {
	e := s.e
	accel, reason := e.accel()
	driver, err := qemu.Find(s.ctx, accel)
	if err != nil {
		return err
	}
	e.driver = driver
	e.shape = hypervisor.Shape{VCPUs: args.VCPUs, Memory: args.Memory}
	out.Accel = string(accel)
	switch {
	case reason != nil && accel == qemu.KVM:
		// Said now, for the guest may not live to see the end of this call.
		e.notify(Notice{Line: reason.Error() + "; using it as asked, expect it to crawl"})
	case reason != nil:
		out.AccelReason = reason.Error()
	}
	if e.image == nil {
		if e.image, err = e.guestImage(s.ctx, args); err != nil {
			return err
		}
	}
	out.Image, out.Built, out.ImageBytes = e.image.Key, !e.image.Found, e.image.Used
	if out.Built {
		out.BuildTime = e.image.Took
	}
	// What is on a user's own disk is not known; without UCX the preload does
	// nothing.
	out.UCX = e.image.OwnDisk || e.image.Program != nil && e.image.Program.UCX
	if args.ColdBoot {
		return s.coldBoot(out)
	}
	if e.booted, out.BootTime, err = e.bootedGeneration(s.ctx); err != nil {
		if args.Disk != "" {
			err = fmt.Errorf("disk image %s: %w", args.Disk, err)
		}
		return err
	}
	out.Booted = out.BootTime > 0
	out.StateBytes = len(e.booted.state)
	s.startAhead(args.Expect)
	return nil
}

// startAhead begins to start the hypervisors of the first n clones that the
// host has tickets for.
func (s *service) startAhead(n int) {
	e := s.e
	e.mu.Lock()
	var grants []*grant
	for _, g := range e.grants {
		if g.owner == nil && !g.used {
			grants = append(grants, g)
		}
	}
	e.mu.Unlock()
	for _, g := range grants {
		for _, c := range g.ticket.Clones[:min(n, len(g.ticket.Clones))] {
			e.warmUp(g, c, e.booted, e.booted.disk)
			n--
		}
	}
}

func (e *Engine) guestImage(ctx context.Context, args PrepareArgs) (*guest.Image, error) {
	cache := &guest.Cache{Dir: e.opts.Cache, Limit: e.opts.Limit}
	spec := guest.Spec{
		Program: args.Program, LibraryPath: args.LibraryPath, Agent: e.self,
		User:  guest.User{Name: args.User, UID: e.opts.UID, GID: e.opts.GID, Home: args.Home},
		Tools: args.Guest.Tools, With: args.Guest.With, Hooks: args.Guest.Hooks, Free: args.Guest.Free,
	}
	progress := func(line string) { e.notify(Notice{Progress: line}) }
	if args.Disk != "" {
		return guest.FromDisk(ctx, cache, args.Disk, spec, progress)
	}
	return guest.Build(ctx, cache, spec, progress)
}

// coldBoot boots a guest to where its agent answers and throws it away.
func (s *service) coldBoot(out *Prepared) error {
	unlock, err := s.e.image.Lock(s.ctx, "checkpoint", bootLimit, nil)
	if err != nil {
		return err
	}
	dir, remove, err := s.e.temporary()
	unlock()
	if err != nil {
		return fmt.Errorf("boot the guest: %w", err)
	}
	defer remove()
	begin := time.Now()
	b, err := s.e.boot(s.ctx, dir)
	if err != nil {
		return err
	}
	out.BootTime, out.Booted = time.Since(begin), true
	b.end()
	return nil
}

// RequestTicket reserves memory for as many clones as fit.
func (s *service) RequestTicket(args RequestArgs, out *Granted) error {
	g, err := s.e.request(nil, demand{clones: args.Clones, vcpus: args.VCPUs, strict: args.Strict}, args.VCPUs, args.Memory)
	if err != nil {
		return err
	}
	out.Ticket = g.ticket
	out.Cores, out.Free, out.Each = g.reserved.Cores, g.reserved.Free, g.reserved.Each
	return nil
}

// Clone makes the clones of a ticket from the booted guest.
func (s *service) Clone(args CloneArgs, out *Cloned) error {
	e := s.e
	g, err := caller{e: e}.grant(api.NewRequest(api.Clone, "ticket", args.Ticket.ID))
	if err != nil {
		return err
	}
	if e.booted == nil {
		return errors.New("there is nothing yet to make clones of")
	}
	ctx, cancel := context.WithTimeout(s.ctx, args.Limit)
	defer cancel()
	return e.fork(ctx, g, func(ctx context.Context) error {
		c, err := e.clones(ctx, g, e.booted, nil, agent.Fork{})
		if err == nil {
			*out = *c
			e.keepTrace(e.booted)
		}
		return err
	})
}

// Kill ends the clones of a ticket. One that is gone is no error.
func (s *service) Kill(t ticket.Ticket, _ *int) error {
	s.e.mu.Lock()
	g := s.e.grants[t.ID]
	s.e.mu.Unlock()
	if g != nil {
		s.e.discard(g)
	}
	return nil
}

// StartVM makes the job's first VM from the booted guest.
func (s *service) StartVM(args VMArgs, out *VMStarted) error {
	e := s.e
	if e.booted == nil {
		return errors.New("there is nothing yet to make a VM of")
	}
	began := time.Now()
	g, err := allocator.Local{Dir: jobsDir}.Reserve(e.opts.Job, allocator.Demand{Clones: 1, VCPUs: args.VCPUs, Memory: e.shape.Memory})
	if err != nil {
		return err
	}
	e.mu.Lock()
	there := e.first != nil
	if !there && g.Clones > 0 {
		e.first = g // or its lock would go with the garbage
	}
	e.mu.Unlock()
	if there {
		g.Release()
		return errors.New("the job has its first VM already")
	}
	if g.Clones == 0 {
		return fmt.Errorf("a VM of %d MB does not fit into the %d MB that are free on %s: give it less with --memory", g.Each>>20, g.Free>>20, e.host)
	}
	ctx, cancel := context.WithTimeout(s.ctx, args.Limit)
	defer cancel()
	out.VM = ticket.Clone{Name: e.plan.Name(0), IP: e.plan.IP(0), VCPUs: args.VCPUs, Host: e.host}
	m, err := e.newMachine(ctx, out.VM, e.booted, e.booted.disk)
	if err == nil {
		if _, err = e.start(ctx, m, agent.Fork{}, began); err != nil {
			e.end(m)
		}
	}
	if err != nil {
		e.mu.Lock()
		e.first = nil
		e.mu.Unlock()
		g.Release()
		return err
	}
	out.Ready = time.Since(began)
	e.keepTrace(e.booted)
	return nil
}

// Share serves a folder to the clones.
func (s *service) Share(args ShareArgs, out *Shared) error {
	e := s.e
	listener, address, err := e.net.ListenFile(s.ctx, 0)
	if err != nil {
		return err
	}
	defer listener.Close()
	config := share.Config{
		Folder: args.Folder, ReadOnly: args.ReadOnly,
		UID: e.opts.UID, GID: e.opts.GID, Groups: e.opts.Groups,
		Token: share.NewToken(),
	}
	server, err := share.Start(s.ctx, config, listener, share.Command{Path: e.self, Args: []string{"share"}})
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.shares = append(e.shares, server)
	e.mu.Unlock()
	out.Mounting = share.Mounting{Server: address, Token: config.Token, Target: args.Target, ReadOnly: args.ReadOnly, Survives: args.Survives}
	return nil
}

// Stage serves a copy of one file, read-only: a program outside of every
// shared folder must not open its folder to the clones.
func (s *service) Stage(args StageArgs, out *Shared) error {
	dir := filepath.Join(jobDir, "program")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("stage %s: %w", args.File, err)
	}
	in, err := os.Open(args.File)
	if err != nil {
		return fmt.Errorf("stage the program: %w", err)
	}
	defer in.Close()
	copied, err := os.OpenFile(filepath.Join(dir, StagedName), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("stage %s: %w", args.File, err)
	}
	if _, err := io.Copy(copied, in); err != nil {
		copied.Close()
		return fmt.Errorf("stage %s: %w", args.File, err)
	}
	if err := copied.Close(); err != nil {
		return fmt.Errorf("stage %s: %w", args.File, err)
	}
	// The server reads it as the job's user, whatever root's umask is.
	for _, path := range []string{dir, copied.Name()} {
		if err := os.Chmod(path, 0o755); err != nil {
			return fmt.Errorf("stage %s: %w", args.File, err)
		}
	}
	return s.Share(ShareArgs{Folder: dir, Target: StagedFolder, ReadOnly: true}, out)
}

// Counters says what the job has moved and used.
func (s *service) Counters(_ int, out *Counters) error {
	e := s.e
	out.CPU = map[int]time.Duration{}
	e.mu.Lock()
	out.Copied = e.copied
	machines := slices.Collect(maps.Values(e.machines))
	generations := map[*generation]bool{}
	if e.booted != nil {
		generations[e.booted] = true
	}
	vms := map[int]hypervisor.VM{}
	for _, m := range machines {
		generations[m.base] = true
		vms[m.Member] = m.vm
	}
	e.mu.Unlock()
	for g := range generations {
		add(&out.Memory, e.tap.Counters(g.name))
	}
	for member, vm := range vms {
		add(&out.Disks, e.tap.Counters(diskName(member)))
		if t, err := vm.CPUTime(); err == nil {
			out.CPU[member] = t
		}
	}
	return nil
}

func add(sum *memtap.Counters, c memtap.Counters) {
	sum.Reads += c.Reads
	sum.BytesServed += c.BytesServed
	sum.BytesFetched += c.BytesFetched
	sum.BytesPushed += c.BytesPushed
	sum.ZeroBlocks += c.ZeroBlocks
	sum.LocalBlocks += c.LocalBlocks
	sum.Writes += c.Writes
	sum.BytesWritten += c.BytesWritten
	sum.Punches += c.Punches
	sum.Errors += c.Errors
}
