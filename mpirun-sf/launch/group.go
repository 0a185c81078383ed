package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// group is a process group: ranks that are numbered together and began
// together. While it starts, what start fills is start's; only Run's goroutine
// touches the rest.
type group struct {
	run    *run
	name   string // of its key-value space
	apps   []App
	places []Place
	ids    int           // the process of rank n is ids + n
	begun  chan struct{} // closed when start has ended

	wire   wire             // filled by start, as the next two
	procs  []*agent.Process // by rank
	clones []string         // by rank

	up      bool // all ranks have started
	spawned *placed
	exits   []*agent.Exit // by rank, nil for those that run
	states  []pmi.State   // by rank, of those that have ended
	running int
	anyInit bool
}

// newGroup makes the group of apps, on places that have as many ranks.
func (r *run) newGroup(name string, apps []App, places []Place) *group {
	g := &group{run: r, name: name, apps: apps, places: places, ids: r.ids, begun: make(chan struct{})}
	for _, p := range places {
		g.running += len(p.Ranks)
	}
	r.ids += g.running + 1 // one for what the wire may have to run
	g.procs, g.clones = make([]*agent.Process, g.running), make([]string, g.running)
	g.exits, g.states = make([]*agent.Exit, g.running), make([]pmi.State, g.running)
	r.groups = append(r.groups, g)
	return g
}

// kvs names the group's key-value space.
func (g *group) kvs() string { return "kvs_" + g.name }

// app is the program of a rank.
func (g *group) app(rank int) App {
	for _, a := range g.apps {
		if rank -= a.Ranks; rank < 0 {
			return a
		}
	}
	return App{}
}

// check finds out whether apps and places fit together.
func (g *group) check() error {
	np := 0
	for _, a := range g.apps {
		if a.Ranks < 0 || len(a.Argv) == 0 {
			return fmt.Errorf("a program without a name or ranks: %q, %d", a.Argv, a.Ranks)
		}
		np += a.Ranks
	}
	if np != len(g.procs) {
		return fmt.Errorf("%d ranks, and places for %d", np, len(g.procs))
	}
	return nil
}

// begin starts the group beside Run's goroutine, which hears of it.
func (g *group) begin(ctx context.Context) {
	go func() {
		err := g.start(ctx)
		close(g.begun)
		g.send(ctx, event{started: &started{err}})
	}()
}

// send reports what happened to the group.
func (g *group) send(ctx context.Context, e event) {
	e.group = g
	select {
	case g.run.events <- e:
	case <-ctx.Done():
	}
}

// start brings all ranks to life, or none of the group.
func (g *group) start(ctx context.Context) error {
	if err := g.check(); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(g.run.starting, g.run.StartLimit)
	defer cancel()
	send := func(e event) { g.send(ctx, e) }
	var err error
	if g.wire, err = g.newWire(send); err != nil {
		return err
	}
	if g.run.Singleton != "" && g == g.run.groups[0] {
		return g.adopt(ctx, send)
	}
	// Two steps, so that no rank runs before every clone can run its own.
	if err := g.step(ctx, limit, func(limit context.Context, p Place) error { return g.prepare(ctx, limit, p) }); err != nil {
		return err
	}
	return g.step(ctx, limit, func(limit context.Context, p Place) error { return g.startRanks(limit, p, send) })
}

// adopt serves a process that runs already.
func (g *group) adopt(ctx context.Context, send func(event)) error {
	w, ok := g.wire.(*pmiWire)
	if !ok {
		return errors.New("only PMI serves a process that runs already")
	}
	g.clones[0] = g.places[0].Name
	go func() {
		err := pmi.Singleton(ctx, g.run.Singleton, w.server)
		if err != nil && !errors.Is(err, pmi.ErrNotFinalized) && ctx.Err() == nil {
			g.run.Notice(err.Error())
		}
		send(event{ended: &ended{rank: 0, state: w.server.RankState(0)}})
	}()
	return nil
}

// step does something in all clones at once. Those that have not answered within
// the limit are named.
func (g *group) step(ctx, limit context.Context, do func(ctx context.Context, p Place) error) error {
	answered := make([]bool, len(g.places))
	var mu sync.Mutex // guards answered
	eg, each := errgroup.WithContext(limit)
	for i, p := range g.places {
		if len(p.Ranks) == 0 {
			answered[i] = true
			continue
		}
		eg.Go(func() error {
			err := do(each, p)
			if err == nil {
				mu.Lock()
				answered[i] = true
				mu.Unlock()
			}
			return err
		})
	}
	err := eg.Wait()
	if err != nil && errors.Is(limit.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		var missing []string
		for i, p := range g.places {
			if !answered[i] {
				missing = append(missing, p.Name)
			}
		}
		return fmt.Errorf("%s did not start all ranks in %v; is this machine overloaded? --start-timeout gives more time", strings.Join(missing, ", "), g.run.StartLimit)
	}
	return err
}

// prepare opens what a clone's ranks need before they start. All is asked for at
// once: each answer takes a way there and back, on a machine that may be busy.
func (g *group) prepare(ctx, limit context.Context, p Place) error {
	if err := g.wire.prepare(ctx, limit, p); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	asked, limit := errgroup.WithContext(limit)
	for _, rank := range p.Ranks {
		g.clones[rank] = p.Name
		for fd := range 3 {
			if fd == 0 && (rank != 0 || g != g.run.groups[0]) {
				continue
			}
			asked.Go(func() error {
				st, err := p.Session.Stdio(limit, g.ids+rank, fd)
				if err != nil {
					return fmt.Errorf("%s: %w", p.Name, err)
				}
				g.serveStream(rank, fd, st)
				return nil
			})
		}
	}
	return asked.Wait()
}

// serveStream carries what goes through a standard stream of a rank.
func (g *group) serveStream(rank, fd int, st io.ReadWriteCloser) {
	if fd == 0 {
		go func() {
			if g.run.Stdin != nil {
				io.Copy(st, g.run.Stdin)
			}
			st.Close()
		}()
		return
	}
	w := &screen{run: g.run, out: g.run.output(rank, fd)}
	g.run.outputs.Go(func() {
		io.Copy(w, st)
		w.Close()
		st.Close()
	})
}

// startRanks starts the ranks of a clone, all at once.
func (g *group) startRanks(ctx context.Context, p Place, send func(event)) error {
	var asked errgroup.Group
	for _, rank := range p.Ranks {
		app := g.app(rank)
		c := agent.Command{ID: g.ids + rank, Argv: app.Argv, Path: app.File, Dir: app.Dir, Env: app.Env, User: g.run.User}
		g.wire.command(p, rank, &c)
		if p.Vary != nil {
			p.Vary(rank, &c)
		}
		asked.Go(func() error {
			proc, err := p.Session.Start(ctx, c)
			if err != nil {
				return fmt.Errorf("rank %d on %s: %w", rank, p.Name, err)
			}
			g.procs[rank] = proc
			go func() {
				e := &ended{rank: rank, exit: <-proc.Exit()}
				e.state = g.wire.final(rank)
				send(event{ended: e})
			}()
			return nil
		})
	}
	return asked.Wait()
}

// end notes the end of a rank.
func (g *group) end(e *ended) {
	g.exits[e.rank], g.states[e.rank] = &e.exit, e.state
	if g.running--; g.running == 0 && g.spawned != nil {
		go g.spawned.release()
	}
}

// mourn tells the other ranks of one that failed in the midst of a job that goes
// on: MPICH's programs that handle failures look for it when they get SIGUSR1. Of
// ranks that have not begun or have come to their end none would know the signal.
func (g *group) mourn(rank int) {
	w, ok := g.wire.(*pmiWire)
	if !ok {
		return
	}
	w.server.MarkDead(rank)
	for other, p := range g.procs {
		if p != nil && g.exits[other] == nil && w.server.RankState(other) == pmi.Initialized {
			p.Signal(int(syscall.SIGUSR1))
		}
	}
}

// neverInit finds a rank that ended without MPI_Init while others are in
// theirs, or past it, and wait for it.
func (g *group) neverInit() (rank int, waited bool) {
	if !g.anyInit || g.running == 0 {
		return 0, false
	}
	for rank, exit := range g.exits {
		if exit != nil && g.states[rank] == pmi.NotStarted {
			return rank, true
		}
	}
	return 0, false
}
