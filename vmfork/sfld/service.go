package sfld

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// memoryName is memtap's name of the checkpoint's memory.
const memoryName = "memory"

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
	if e.frozen, out.BootTime, err = e.checkpoint(s.ctx); err != nil {
		if args.Disk != "" {
			err = fmt.Errorf("disk image %s: %w", args.Disk, err)
		}
		return err
	}
	out.Booted = out.BootTime > 0
	out.StateBytes = len(e.frozen.desc.DeviceState)
	if e.frozen.memPath, err = e.tap.AddMemory(memoryName, e.frozen.memory); err != nil {
		return err
	}
	e.startAhead(args.Expect)
	return nil
}

func (e *Engine) guestImage(ctx context.Context, args PrepareArgs) (*guest.Image, error) {
	cache := &guest.Cache{Dir: e.opts.Cache, Limit: e.opts.Limit}
	spec := guest.Spec{
		Program: args.Program, LibraryPath: args.LibraryPath, Agent: e.self,
		User: guest.User{Name: args.User, UID: e.opts.UID, GID: e.opts.GID, Home: args.Home},
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
	e := s.e
	g, err := allocator.Local{Dir: filepath.Join(runDir, "jobs")}.Reserve(e.opts.Job, allocator.Demand(args))
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.grants = append(e.grants, g)
	e.mu.Unlock()
	host, _ := os.Hostname()
	out.Ticket = ticket.New(e.opts.Job, e.plan, args.Clones, g.Clones, args.VCPUs, host)
	out.Cores, out.Free, out.Each = g.Cores, g.Free, g.Each
	return nil
}

// Clone makes the clones of a ticket.
func (s *service) Clone(args CloneArgs, out *Cloned) error {
	if err := args.Ticket.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, args.Limit)
	defer cancel()
	c, err := s.e.fork(ctx, args.Ticket)
	if err != nil {
		return err
	}
	*out = *c
	return nil
}

// Kill ends the clones of a ticket.
func (s *service) Kill(t ticket.Ticket, _ *int) error {
	s.e.kill(t.IDs())
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
	out.Mounting = share.Mounting{Server: address, Token: config.Token, Target: args.Target, ReadOnly: args.ReadOnly}
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
	out.Memory = e.tap.Counters(memoryName)
	out.CPU = map[int]time.Duration{}
	e.mu.Lock()
	clones := make([]*clone, 0, len(e.clones))
	for _, c := range e.clones {
		clones = append(clones, c)
	}
	e.mu.Unlock()
	for _, c := range clones {
		add(&out.Disks, e.tap.Counters(fmt.Sprintf("disk-%d", c.id)))
		if t, err := c.vm.CPUTime(); err == nil {
			out.CPU[c.id] = t
		}
	}
	return nil
}

func add(sum *memtap.Counters, c memtap.Counters) {
	sum.Reads += c.Reads
	sum.BytesServed += c.BytesServed
	sum.BytesFetched += c.BytesFetched
	sum.ZeroBlocks += c.ZeroBlocks
	sum.LocalBlocks += c.LocalBlocks
	sum.Writes += c.Writes
	sum.BytesWritten += c.BytesWritten
	sum.Punches += c.Punches
	sum.Errors += c.Errors
}
