package launch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi"
)

// placed is a group that is to be spawned and has places, or why it has none.
type placed struct {
	request *pmi.SpawnRequest
	by      *group
	apps    []App // with as many ranks as will be started
	places  []Place
	release func()
	err     error
}

// place finds places for what a rank of g wants to have started. That takes as
// long as forking does, and the job goes on meanwhile.
func (g *group) place(ctx context.Context, q *pmi.SpawnRequest) {
	p := &placed{request: q, by: g, release: func() {}}
	p.err = p.find(ctx, g)
	g.send(ctx, event{placed: p})
}

func (p *placed) find(ctx context.Context, g *group) error {
	if g.run.Spawn == nil {
		return errors.New("ranks cannot be spawned here")
	}
	parent := g.app(p.request.Rank)
	total := 0
	for _, a := range p.request.Apps {
		if hosts := a.Hosts(); len(hosts) > 0 {
			return fmt.Errorf("info key host: %s: which clones run a spawned group is not the program's to say", strings.Join(hosts, ","))
		}
		app := App{Argv: a.Argv, Env: slices.Concat(parent.Env, a.Env), Dir: parent.Dir, Ranks: a.Ranks}
		if dir, given := a.Get("wdir"); given {
			app.Dir = dir
		}
		if path, given := a.Get("path"); given {
			app.Path = strings.FieldsFunc(path, func(r rune) bool { return r == ':' || r == ';' })
		}
		_, app.Fewer = a.Get("soft")
		p.apps = append(p.apps, app)
		total += a.Ranks
	}
	places, release, err := g.run.Spawn(ctx, p.apps)
	if err != nil {
		return err
	}
	p.places, p.release = places, release
	room := 0
	for _, pl := range places {
		room += len(pl.Ranks)
	}
	if room == total {
		return nil
	}
	if err := p.fit(room); err != nil {
		release()
		return err
	}
	return nil
}

// fit starts as many ranks as there is room for, where the programs allow it.
func (p *placed) fit(room int) error {
	wanted := 0
	for i, a := range p.request.Apps {
		n, err := a.Fit(room)
		if err != nil {
			return err
		}
		p.apps[i].Ranks = n
		room -= n
		wanted += n
	}
	p.places = firstRanks(p.places, wanted)
	return nil
}

// firstRanks are the places of ranks below n.
func firstRanks(places []Place, n int) []Place {
	var out []Place
	for _, p := range places {
		if len(p.Ranks) > n {
			p.Ranks = p.Ranks[:n]
		}
		n -= len(p.Ranks)
		if len(p.Ranks) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// startSpawned makes a group of what has been placed for a rank of g.
func (r *run) startSpawned(ctx context.Context, g *group, p *placed) {
	if p.err != nil {
		r.Notice(fmt.Sprintf("rank %d on %s: MPI_Comm_spawn: %v", p.request.Rank, g.clones[p.request.Rank], p.err))
		p.request.Answer("", nil, p.err)
		return
	}
	child := r.newGroup(fmt.Sprintf("%s_%d", r.Name, len(r.groups)), p.apps, p.places)
	child.spawned = p
	child.begin(ctx)
}

// answerSpawn tells the rank that wanted the group what has become of it.
func (g *group) answerSpawn(err error) {
	p := g.spawned
	if err != nil {
		g.run.Notice(fmt.Sprintf("MPI_Comm_spawn: %v", err))
		g.running = 0
		go p.release()
		p.request.Answer("", nil, err)
		return
	}
	g.up = true
	p.request.Answer(g.kvs(), p.codes(), nil)
}

// notStarted is MPI_ERR_SPAWN of the MPICH family, for ranks that found no room.
const notStarted = 42

// codes are an error code for each rank that was asked for.
func (p *placed) codes() (codes []int) {
	for i, a := range p.request.Apps {
		for n := range a.Ranks {
			code := 0
			if n >= p.apps[i].Ranks {
				code = notStarted
			}
			codes = append(codes, code)
		}
	}
	return codes
}
