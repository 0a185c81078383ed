package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// memory is the guest's RAM in bytes, the default of mpirun-sf.
const memory = 512 << 20

// limit is how long any one step may take.
const limit = 3 * time.Minute

// host is a job of one's own: a daemon, and clones on it.
type host struct {
	daemon *sfld.Client
	ticket ticket.Ticket
	ucx    bool
	dir    string
	jobs   int
	places []launch.Place // of the clones that connect made ready
}

// begin starts a daemon with a ticket for n clones of the program's guest;
// expect hypervisor processes are started ahead.
func (b *bench) begin(ctx context.Context, n, expect int) (*host, error) {
	id := strings.ToLower(rand.Text()[:12])
	d, err := sfld.Start(ctx, b.binary, sfld.Options{Job: id, Cache: b.cache, Accel: b.accel}, func(sfld.Notice) {})
	if err != nil {
		return nil, err
	}
	h := &host{daemon: d, dir: b.examples}
	if h.ticket, err = h.request(ctx, n); err != nil {
		h.end()
		return nil, err
	}
	p, err := d.Prepare(ctx, sfld.PrepareArgs{Program: b.hello, VCPUs: 1, Memory: memory, Expect: expect})
	if err != nil {
		h.end()
		return nil, err
	}
	h.ucx = p.UCX
	return h, nil
}

func (h *host) end() error { return h.daemon.Close() }

// request asks for a ticket for n clones.
func (h *host) request(ctx context.Context, n int) (ticket.Ticket, error) {
	g, err := h.daemon.RequestTicket(ctx, sfld.RequestArgs{Clones: n, VCPUs: 1, Memory: memory})
	if err == nil && len(g.Ticket.Clones) < n {
		err = fmt.Errorf("%d clones do not fit into this machine's memory", n)
	}
	return g.Ticket, err
}

// clone makes clones and returns how the fork went.
func (h *host) clone(ctx context.Context, t ticket.Ticket) (sfld.Cloned, time.Duration, error) {
	begin := time.Now()
	c, err := h.daemon.Clone(ctx, t, limit)
	return c, time.Since(begin), err
}

// connect makes clones ready to run jobs, with one program in their memory.
func (h *host) connect(ctx context.Context, t ticket.Ticket, program string) error {
	m, err := h.daemon.Share(ctx, sfld.ShareArgs{Folder: h.dir, Target: h.dir, ReadOnly: true})
	if err != nil {
		return err
	}
	h.places, err = launch.Connect(ctx, h.daemon.Attach, t, len(t.Clones), []share.Mounting{m}, agent.Place{From: program, At: program})
	return err
}

// run runs a program with one rank in each clone that connect made ready.
func (h *host) run(ctx context.Context, argv ...string) (time.Duration, error) {
	h.jobs++
	job := launch.Job{
		Name: fmt.Sprintf("bench%d", h.jobs), UCX: h.ucx, Places: h.places,
		Apps:  []launch.App{{Argv: argv, Env: append(os.Environ(), "HWLOC_COMPONENTS=-gl,-opencl"), Dir: h.dir, Ranks: len(h.places)}},
		Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: os.Stderr,
		StartLimit: limit, Notice: func(string) {},
	}
	begin := time.Now()
	err := job.Run(ctx)
	return time.Since(begin), err
}

// fetched is what all clones together have fetched so far, in bytes.
func (h *host) fetched(ctx context.Context) (int64, error) {
	c, err := h.daemon.Counters(ctx)
	n := c.Total()
	return n.Memory.BytesFetched + n.Memory.BytesPushed + n.Disks.BytesFetched, err
}
