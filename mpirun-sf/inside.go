package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// inside is a job in a virtual machine, which it forks. Nothing is mounted or
// placed in the clones: they are copies of what is there.
type inside struct {
	*job
	api   launch.API
	self  launch.Self
	slots int // ranks in this machine itself

	fork  *launch.Fork
	spare slots
	ranks *ranksHere
	elastic
}

// answerLimit is how long the agent may take to answer what it knows.
const answerLimit = 10 * time.Second

// findVM tells whether this is a machine that can be forked: there is an agent
// to ask, and what it answers is of this machine. On a host, SF_SOCKET may lead to
// the agent of a machine that runs there.
func findVM(ctx context.Context, j *job) (*inside, bool) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	self, err := forkAPI{}.Whoami(ctx)
	if err != nil {
		if !errors.Is(err, vmfork.ErrOutside) {
			tui.Detail("not inside a virtual machine: %v", err)
		}
		return nil, false
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil || !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == self.IP
	}) {
		return nil, false
	}
	return &inside{job: j, api: forkAPI{}, self: self}, true
}

// errParentRanks is for those who ask it of a job on the host.
var errParentRanks = errors.New("--parent-ranks is for mpirun-sf inside a virtual machine (mpirun-sf vm run): on the host the clones' parent is a checkpoint, which runs nothing")

// ofTheVM are options that were decided when the machine was started.
var ofTheVM = map[string]string{
	"memory": "its clones have the memory that it has", "window": "its clones are fetched as it was started to be",
	"hypervisor": "its clones run as it does", "accel": "its clones run as it does", "strict": "it does not know its host's cores",
}

func (j *inside) check() error {
	for _, name := range j.given {
		switch why := ofTheVM[name]; {
		case name == "image":
			return errors.New("--image: inside a virtual machine, clones are copies of it: give --image to mpirun-sf vm run")
		case name == "with":
			return errors.New("--with: inside a virtual machine, clones have the files that it has: give --with to mpirun-sf vm run")
		case name == "share":
			return errors.New("--share: inside a virtual machine, clones have the folders that it has: give --share to mpirun-sf vm run")
		case why != "":
			tui.Notice("--%s has no meaning inside a virtual machine: %s", name, why)
		}
	}
	if st, err := os.Stat(j.dir); err != nil || !st.IsDir() {
		return fmt.Errorf("the working directory %s does not exist", j.dir)
	}
	if j.parentRanks {
		j.slots = min(j.np, j.ppn, max(1, j.self.VCPUs))
	}
	if j.instead != nil {
		return nil // Open MPI's closure is large, and nothing of it is to be known here
	}
	// What is missing is said here, not by the linker of each rank.
	if _, err := guest.Closure(j.program, os.Getenv("LD_LIBRARY_PATH")); err != nil {
		return err
	}
	j.ucx = j.found.ucx
	return nil
}

// open has nothing to open: the daemon is there, outside.
func (j *inside) open(context.Context) error { return nil }

func (j *inside) clone(ctx context.Context) ([]launch.Place, error) {
	j.fork = &launch.Fork{API: j.api, Self: j.self, Limit: j.startLimit, InClone: j.ready}
	var own *batch
	if rest := j.np - j.slots; rest > 0 {
		var err error
		if own, err = j.requestOwn(ctx, rest); err != nil {
			return nil, err
		}
	}
	begin := time.Now()
	// Where there are clones anyway it costs nothing that they are made of a checkpoint.
	if own != nil || j.instead == nil && j.wire != launch.WireNone && slices.ContainsFunc(j.files(), maySpawn) {
		// From here on this program is in every clone as well, also in those that are
		// made of this moment later; there Checkpoint does not return.
		if err := j.fork.Checkpoint(ctx); err != nil {
			return nil, err
		}
		j.phase("checkpoint made")
	}
	var clones []*agent.Session
	var tk ticket.Ticket
	if own != nil {
		var err error
		if clones, err = j.make(ctx, own); err != nil {
			return nil, err
		}
		tk = own.ticket
		tui.Notice("%s ready in %.2f s", plural(len(clones), "clone"), time.Since(begin).Seconds())
		j.phase("clones ready")
	}
	var here *agent.Session
	if j.slots > 0 {
		program, err := ranksProgram()
		if err == nil {
			j.ranks, err = startRanksHere(program)
			program.Close()
		}
		if err != nil {
			return nil, err
		}
		here = j.ranks.session
	}
	places := j.fork.Places(tk, j.np, j.slots, here, clones)
	if j.slots > 0 {
		j.spare.keep(places[1:], j.ppn)
	} else {
		j.spare.keep(places, j.ppn)
	}
	return places, nil
}

// requestOwn gets a ticket for the clones of the job's own ranks, all but those
// that run here.
func (j *inside) requestOwn(ctx context.Context, ranks int) (*batch, error) {
	wanted := (ranks + j.ppn - 1) / j.ppn
	b, err := j.request(ctx, wanted)
	if err != nil {
		return nil, err
	}
	m, slots := len(b.ticket.Clones), b.ticket.Slots()
	if m < wanted {
		what := fmt.Sprintf("%s of this machine can be made, for -np %d %d are needed", plural(m, "clone"), j.np, wanted)
		if !j.oversubscribe {
			j.dismiss(ctx, b)
			return nil, fmt.Errorf("%s: ask for fewer ranks, or let them share clones with --oversubscribe", what)
		}
		tui.Notice("%s; %d ranks share %s", what, ranks, plural(m, "clone"))
	} else if slots < ranks {
		tui.Notice("%d ranks on %d virtual CPUs, expect them to take turns", ranks, slots)
	}
	j.phase("ticket for %d clones", m)
	return b, nil
}

// end ends the clones, and gives up what they are made of.
func (j *inside) end(ctx context.Context) error {
	err := j.endSpawning(ctx)
	if j.fork != nil {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
		defer cancel()
		j.fork.Close(limit)
	}
	return err
}

func (j *inside) close() error {
	err := j.end(context.Background())
	if j.ranks != nil {
		j.ranks.close()
	}
	return err
}
