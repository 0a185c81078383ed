// Package clones makes clones for benchmarks, which have mpirun-sf's steps in their own hands: to time one of them, or to run
// again on clones that are there already ("zero-cost", paper section 4.5.2).
//
// # Flow
//
//  1. [Begin] starts a daemon, and prepares a guest's checkpoint.
//  2. [Clones.Clone] forks it. This may be done with several tickets.
//  3. [Clones.Connect] mounts the program's folder in the clones.
//  4. [Clones.Run] runs a job on them, as often as is wanted.
//  5. [Clones.End] ends it all.
//
// [Fresh] is the first three in one, [Warm] the first four.
package clones

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// Memory is a guest's RAM in bytes, the default of mpirun-sf.
const Memory = 512 << 20

// limit is how long any one step may take.
const limit = 3 * time.Minute

// Options say which clones.
type Options struct {
	Binary  string // mpirun-sf
	Cache   string // of guest images
	Accel   string // kvm or tcg instead of what the probe says
	Program string // whose guest they are copies of
	Clones  int
	Expect  int // hypervisor processes that are started ahead
}

// Clones are a job of one's own: a daemon, and clones on it.
type Clones struct {
	Ticket ticket.Ticket

	daemon *sfld.Client
	ucx    bool
	dir    string
	jobs   int
	places []launch.Place // of the clones that Connect made ready
}

// Begin starts a daemon with a ticket for clones of a program's guest.
func Begin(ctx context.Context, o Options) (*Clones, error) {
	id := strings.ToLower(rand.Text()[:12])
	d, err := sfld.Start(ctx, o.Binary, sfld.Options{Job: id, Cache: o.Cache, Accel: o.Accel}, func(sfld.Notice) {})
	if err != nil {
		return nil, err
	}
	c := &Clones{daemon: d, dir: filepath.Dir(o.Program)}
	if c.Ticket, err = c.Request(ctx, o.Clones); err != nil {
		c.End()
		return nil, err
	}
	p, err := d.Prepare(ctx, sfld.PrepareArgs{Program: o.Program, VCPUs: 1, Memory: Memory, Expect: o.Expect})
	if err != nil {
		c.End()
		return nil, err
	}
	c.ucx = p.UCX
	return c, nil
}

// Fresh are clones that have run nothing yet.
func Fresh(ctx context.Context, o Options) (*Clones, error) {
	c, err := Begin(ctx, o)
	if err != nil {
		return nil, err
	}
	if _, _, err = c.Clone(ctx, c.Ticket); err == nil {
		err = c.Connect(ctx, c.Ticket, o.Program)
	}
	if err != nil {
		c.End()
		return nil, err
	}
	return c, nil
}

// Warm are clones that are there already: idle, and warm, since the program has run on them.
func Warm(ctx context.Context, o Options, args ...string) (*Clones, error) {
	c, err := Fresh(ctx, o)
	if err != nil {
		return nil, err
	}
	if _, err = c.Run(ctx, io.Discard, append([]string{o.Program}, args...)...); err != nil {
		c.End()
		return nil, err
	}
	return c, nil
}

// End ends the clones, and all that belongs to them.
func (c *Clones) End() error { return c.daemon.Close() }

// Request asks for a ticket for n clones.
func (c *Clones) Request(ctx context.Context, n int) (ticket.Ticket, error) {
	g, err := c.daemon.RequestTicket(ctx, sfld.RequestArgs{Clones: n, VCPUs: 1, Memory: Memory})
	if err == nil && len(g.Ticket.Clones) < n {
		err = fmt.Errorf("%d clones do not fit into this machine's memory", n)
	}
	return g.Ticket, err
}

// Clone makes clones and returns how the fork went.
func (c *Clones) Clone(ctx context.Context, t ticket.Ticket) (sfld.Cloned, time.Duration, error) {
	begin := time.Now()
	how, err := c.daemon.Clone(ctx, t, limit)
	return how, time.Since(begin), err
}

// Connect makes clones ready to run jobs, with one program in their memory.
func (c *Clones) Connect(ctx context.Context, t ticket.Ticket, program string) error {
	m, err := c.daemon.Share(ctx, sfld.ShareArgs{Folder: c.dir, Target: c.dir, ReadOnly: true})
	if err != nil {
		return err
	}
	c.places, err = launch.Connect(ctx, c.daemon.Attach, t, len(t.Clones), []share.Mounting{m}, agent.Place{From: program, At: program})
	return err
}

// Run runs a program with one rank in each clone that Connect made ready, and returns how long that took. out gets what the
// ranks write.
func (c *Clones) Run(ctx context.Context, out io.Writer, argv ...string) (time.Duration, error) {
	c.jobs++
	job := launch.Job{
		Name: fmt.Sprintf("bench%d", c.jobs), UCX: c.ucx, Places: c.places,
		Apps:  []launch.App{{Argv: argv, Env: append(os.Environ(), "HWLOC_COMPONENTS=-gl,-opencl"), Dir: c.dir, Ranks: len(c.places)}},
		Stdin: strings.NewReader(""), Stdout: out, Stderr: out,
		StartLimit: limit, Notice: func(string) {},
	}
	begin := time.Now()
	err := job.Run(ctx)
	return time.Since(begin), err
}

// Fetched is what all clones together have fetched so far, in bytes.
func (c *Clones) Fetched(ctx context.Context) (int64, error) {
	counters, err := c.daemon.Counters(ctx)
	n := counters.Total()
	return n.Memory.BytesFetched + n.Memory.BytesPushed + n.Disks.BytesFetched, err
}
