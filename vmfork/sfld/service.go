package sfld

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// service is what the launcher calls, by net/rpc.
type service struct {
	e   *Engine
	ctx context.Context // the job's life

	keyOnce sync.Once
	id      *link.Identity
	idErr   error
}

// Prepare finds or makes what clones are copies of, and begins to start their
// processes.
func (s *service) Prepare(args PrepareArgs, out *Prepared) (err error) {
	e := s.e
	equipped, err := e.equip(s.ctx, carrier.Equipment{Hypervisor: e.opts.Hypervisor, Accel: e.opts.Accel, Shape: hypervisor.Shape{VCPUs: args.VCPUs, Memory: args.Memory}})
	if err != nil {
		return err
	}
	out.Accel = equipped.Accel
	switch {
	case equipped.Reason != "" && equipped.Accel == "kvm":
		// Said now, for the guest may not live to see the end of this call.
		e.notify(Notice{Line: equipped.Reason + "; using it as asked, expect it to crawl"})
	default:
		out.AccelReason = equipped.Reason
	}
	image, err := e.guestImage(s.ctx, equipped.Hypervisor, args)
	if err != nil {
		return err
	}
	out.Image, out.Built, out.ImageBytes = image.Key, !image.Found, image.Used
	if out.Built {
		out.BuildTime = image.Took
	}
	// What is on a user's own disk is not known; without UCX the preload does
	// nothing.
	out.UCX = image.OwnDisk || image.Program != nil && image.Program.UCX
	if args.ColdBoot {
		out.BootTime, err = e.local.ColdBoot(s.ctx, image)
		out.Booted = true
		return err
	}
	g := e.newGeneration(e.hosts[0])
	booted, err := e.local.Checkpoint(s.ctx, image, g.name)
	if err != nil {
		if args.Disk != "" {
			err = fmt.Errorf("disk image %s: %w", args.Disk, err)
		}
		return err
	}
	e.mu.Lock()
	e.frozenLocked(g, booted.Layers)
	e.mu.Unlock()
	e.booted, e.disk = g, booted.Disk
	out.BootTime, out.Booted, out.StateBytes = booted.Took, booted.Took > 0, booted.State
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
		for i := range g.ticket.Clones[:min(n, len(g.ticket.Clones))] {
			e.warmUp(g, i, e.booted)
			n--
		}
	}
}

// guestImage finds or makes the image of machines on one kind of hypervisor.
func (e *Engine) guestImage(ctx context.Context, on string, args PrepareArgs) (*guest.Image, error) {
	kind, err := hypervisor.Choose(on)
	if err != nil {
		return nil, err
	}
	cache := &guest.Cache{Dir: e.opts.Cache, Limit: e.opts.Limit}
	spec := guest.Spec{
		Program: args.Program, LibraryPath: args.LibraryPath, Agent: e.self,
		User:  guest.User{Name: args.User, UID: e.opts.UID, GID: e.opts.GID, Home: args.Home},
		Tools: args.Guest.Tools, With: args.Guest.With, Needs: args.Guest.Needs, Shared: args.Guest.Shared, Hooks: args.Guest.Hooks, Free: args.Guest.Free,
		Modules: kind.Modules,
	}
	progress := func(line string) { e.notify(Notice{Progress: line}) }
	if args.Disk != "" {
		return guest.FromDisk(ctx, cache, args.Disk, spec, progress)
	}
	return guest.Build(ctx, cache, spec, progress)
}

// RequestTicket reserves memory for as many clones as fit.
func (s *service) RequestTicket(args RequestArgs, out *Granted) error {
	e := s.e
	g, err := e.request(s.ctx, nil, demand{clones: args.Clones, vcpus: args.VCPUs, strict: args.Strict}, args.VCPUs, args.Memory)
	if err != nil {
		return err
	}
	out.Ticket = g.ticket
	out.Cores, out.Free, out.Each = g.room.Cores, g.room.Free, g.room.Each
	out.Hosts, out.Slots = e.slots()
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
			e.keepTrace(g.at[0])
		}
		return err
	})
}

// keepTrace keeps for later jobs what machines on a host have read of the
// booted guest until they were ready.
func (e *Engine) keepTrace(s *site) {
	e.background.Go(func() {
		ctx, cancel := context.WithTimeout(e.ctx, countersLimit)
		defer cancel()
		if trace, err := s.Trace(ctx, e.booted.name); err == nil {
			e.local.KeepTrace(e.booted.name, trace)
		}
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
	e.mu.Lock()
	there := e.first != ""
	if !there {
		e.first = e.opts.Job + "-vm"
	}
	first := e.first
	e.mu.Unlock()
	if there {
		return errors.New("the job has its first VM already")
	}
	r, err := e.local.Reserve(s.ctx, first, allocator.Demand{Clones: 1, VCPUs: args.VCPUs, Memory: e.shape.Memory})
	if err == nil && len(r.VCPUs) == 0 {
		err = fmt.Errorf("a VM of %d MB does not fit into the %d MB that are free on %s: give it less with --memory", r.Each>>20, r.Free>>20, e.local.Name())
	}
	if err == nil {
		err = s.startFirst(args, out)
	}
	if err != nil {
		e.local.Unreserve(first)
		e.mu.Lock()
		e.first = ""
		e.mu.Unlock()
		return err
	}
	out.Ready = time.Since(began)
	e.keepTrace(e.hosts[0])
	return nil
}

func (s *service) startFirst(args VMArgs, out *VMStarted) error {
	e := s.e
	ctx, cancel := context.WithTimeout(s.ctx, args.Limit)
	defer cancel()
	out.VM = ticket.Clone{Name: e.plan.Name(0), IP: e.plan.IP(0), VCPUs: args.VCPUs, Host: e.local.Name()}
	e.mu.Lock()
	here, others := e.hosts[0], e.hosts[1:]
	e.mu.Unlock()
	for _, o := range others {
		if err := o.Place(ctx, map[int]int{0: 0}); err != nil {
			return err
		}
	}
	if err := here.Prepare(ctx, out.VM, e.booted.name, e.disk); err != nil {
		return err
	}
	m := e.newMachine(out.VM, here, e.booted)
	if _, err := e.start(ctx, m, agent.Fork{}); err != nil {
		e.end(m)
		return err
	}
	return nil
}

// Share serves a folder to the clones.
func (s *service) Share(args ShareArgs, out *Shared) error {
	e := s.e
	listener, address, err := e.local.Network().ListenFile(s.ctx, 0)
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

// Stage serves copies of files, read-only: a program outside of every shared
// folder must not open its folder to the clones.
func (s *service) Stage(args StageArgs, out *Staged) error {
	dir, err := os.MkdirTemp(jobDir, "staged-")
	if err != nil {
		return fmt.Errorf("stage programs: %w", err)
	}
	target := filepath.Join(stagedFolder, filepath.Base(dir))
	for i, file := range args.Files {
		if err := stage(file, filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return fmt.Errorf("stage %s: %w", file, err)
		}
		out.Paths = append(out.Paths, filepath.Join(target, strconv.Itoa(i)))
	}
	// The server reads it as the job's user.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("stage programs: %w", err)
	}
	var shared Shared
	err = s.Share(ShareArgs{Folder: dir, Target: target, ReadOnly: true}, &shared)
	out.Mounting = shared.Mounting
	return err
}

func stage(file, to string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	// Root's umask is not the job's user's.
	return errors.Join(err, out.Chmod(0o755), out.Close())
}

// Counters says what the job has moved and used.
func (s *service) Counters(_ int, out *Counters) error {
	s.e.mu.Lock()
	hosts := s.e.hosts
	s.e.mu.Unlock()
	out.Hosts = make([]HostCounters, len(hosts))
	ctx, cancel := context.WithTimeout(s.ctx, countersLimit)
	defer cancel()
	var group errgroup.Group
	for i, h := range hosts {
		group.Go(func() (err error) {
			out.Hosts[i].Name = h.Name()
			out.Hosts[i].Counters, err = h.Counters(ctx)
			return err
		})
	}
	return group.Wait()
}

// countersLimit is how long a host may take to say what it has moved.
const countersLimit = 10 * time.Second
