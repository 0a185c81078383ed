package launch

import (
	"context"
	"fmt"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// Wire is how the ranks of a job find each other.
type Wire int

const (
	WirePMI  Wire = iota // as the MPICH family does: package pmi
	WirePMIx             // as the Open MPI family does, without its daemons: package pmix
	WireNone             // not at all: programs without an MPI
)

// wire is that of one group.
type wire interface {
	// prepare makes a clone ready for its ranks, before any of them starts. What
	// it begins ends with ctx; limit is for prepare alone.
	prepare(ctx, limit context.Context, p Place) error
	// command gives the command of a rank what its library looks for.
	command(p Place, rank int, c *agent.Command)
	// final is how far a rank has come that has ended. It waits a little, for the
	// exit may overtake the finalize that came before it.
	final(rank int) pmi.State
}

// newWire makes a group's wire. send takes what it reports.
func (g *group) newWire(send func(event)) (wire, error) {
	switch g.run.Wire {
	case WirePMI:
		return g.newPMIWire(send)
	case WirePMIx:
		return g.newPMIxWire(send)
	case WireNone:
		return noWire{}, nil
	}
	return nil, fmt.Errorf("there is no wire %d", g.run.Wire)
}

// noWire offers ranks nothing.
type noWire struct{}

func (noWire) prepare(context.Context, context.Context, Place) error { return nil }
func (noWire) command(Place, int, *agent.Command)                    {}
func (noWire) final(int) pmi.State                                   { return pmi.NotStarted }

// pmiWire serves PMI: the server here, and a proxy in each clone.
type pmiWire struct {
	group  pmi.Group
	server *pmi.Server
	ucx    bool
}

func (g *group) newPMIWire(send func(event)) (wire, error) {
	np := len(g.procs)
	universe := g.run.Universe
	if universe == 0 {
		universe = len(g.run.groups[0].procs)
	}
	var ranks []int
	for _, a := range g.apps {
		ranks = append(ranks, a.Ranks)
	}
	w := &pmiWire{ucx: g.run.UCX, group: pmi.Group{Size: np, KVSName: g.kvs(), Apps: ranks}}
	if g.spawned != nil {
		w.group = g.spawned.request.Group(g.kvs(), ranks)
	}
	w.group.UniverseSize, w.group.Mapping = universe, mapping(g.places, np)
	if err := w.group.Validate(); err != nil {
		return nil, err
	}
	w.server = pmi.NewServer(w.group, g.run.names, pmi.Events{
		Init: func(int) { send(event{init: true}) },
		Abort: func(rank, code int, message string) {
			send(event{abort: &Failure{Rank: rank, Clone: g.clones[rank], Status: abortStatus(code), Cause: aborted(code, message), Abort: &code}})
		},
		Spawn: func(q *pmi.SpawnRequest) { send(event{spawn: q}) },
		Protocol: func(rank int, err error) {
			g.run.Notice(fmt.Sprintf("rank %d on %s: PMI: %v", rank, g.clones[rank], err))
		},
	})
	return w, nil
}

func (w *pmiWire) prepare(ctx, limit context.Context, p Place) error {
	upstream, err := p.Session.PMI(limit, agent.PMI{Group: w.group, Ranks: p.Ranks})
	if err != nil {
		return err
	}
	go w.server.Serve(ctx, upstream, p.Ranks)
	return nil
}

func (w *pmiWire) command(p Place, rank int, c *agent.Command) {
	c.PMI = &agent.PMIRank{Group: w.group.KVSName, Rank: rank}
	c.Progress = w.ucx
	if p.IP != "" {
		c.Env = append(c.Env[:len(c.Env):len(c.Env)], "MPIR_CVAR_CH3_INTERFACE_HOSTNAME="+p.IP)
	}
}

func (w *pmiWire) final(rank int) pmi.State {
	limit, cancel := context.WithTimeout(context.Background(), finalLimit)
	defer cancel()
	if s, err := w.server.WaitClosed(limit, rank); err == nil {
		return s
	}
	return w.server.RankState(rank)
}

// finalLimit is how long PMI's last word on a rank is waited for after its exit.
const finalLimit = 2 * time.Second
