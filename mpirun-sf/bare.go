package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/mpich-shim"
	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
)

// bare is a job without clones: ranks run on the hosts themselves. An agent runs
// them there, which is this program: a process of its own here, and on other
// hosts what a resource manager or SSH starts. Nobody has to be root.
type bare struct {
	*job
	command *mpichshim.Command // what mpiexec was asked for; nil for mpirun-sf

	nodes     []mpichshim.Host
	ranks     [][]int // by node
	here      []*ranksHere
	processes []allocator.Process
	manager   allocator.Allocation // of other hosts; nil without
	usesUCX   func() bool          // waits for the answer

	places []launch.Place // of nodes that have ranks
	used   []mpichshim.Host
}

var _ site = (*bare)(nil)

func newBare(j *job, c *mpichshim.Command) *bare { return &bare{job: j, command: c} }

// ofClones are options that say what clones are like.
var ofClones = []string{"memory", "image", "share", "window", "hypervisor", "accel", "strict", "oversubscribe", "distribution", "nat", "allow", "rate", "service"}

func (j *bare) check() error {
	if j.parentRanks {
		return errParentRanks
	}
	if j.command == nil {
		for _, name := range j.given {
			if slices.Contains(ofClones, name) {
				return fmt.Errorf("--%s is about clones, and --no-clone makes none: leave one of them out", name)
			}
		}
	}
	return nil
}

// open finds the hosts and starts an agent for each node that gets ranks.
func (j *bare) open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			j.close()
		}
	}()
	managed, err := j.find(ctx)
	if err != nil {
		return err
	}
	self, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find this machine's name: %w", err)
	}
	if m, ok := j.manager.(interface{ Self() string }); ok {
		self = m.Self()
	}
	isHere := func(name string) bool {
		return name == self || strings.HasPrefix(j.launcher(), "fork") || allocator.Here(ctx, name)
	}
	c := j.command
	if c == nil {
		c = &mpichshim.Command{}
		if j.ppn > 1 {
			c.PPN = j.ppn
		}
	}
	if j.nodes, err = c.Nodes(managed, self, isHere); err != nil {
		return err
	}
	if m, ok := j.rules.(*mpiexec); ok {
		m.all = j.nodes
		if j.np, err = c.Ranks(j.nodes); err != nil {
			return err
		}
		for i := range j.apps {
			j.apps[i].Ranks = c.Apps[i].Ranks
		}
	}
	np := j.np
	if c.Singleton != nil { // who may spawn ranks anywhere
		np = 0
		for _, n := range j.nodes {
			np += n.Slots
		}
	}
	j.ranks = mpichshim.Layout(j.nodes, np)
	j.usesUCX = sync.OnceValue(func() bool {
		return slices.ContainsFunc(j.files(), func(path string) bool { return guest.UsesUCX(path, os.Getenv("LD_LIBRARY_PATH")) })
	})
	return j.startAgents(ctx, isHere)
}

func (j *bare) launcher() string {
	if j.command == nil {
		return ""
	}
	return j.command.Launcher
}

// find finds the hosts, and how others than this one are reached.
func (j *bare) find(ctx context.Context) ([]mpichshim.Host, error) {
	var err error
	if j.manager, err = j.allocate(ctx); err != nil || j.manager == nil {
		return nil, err
	}
	var hosts []mpichshim.Host
	for _, h := range j.manager.Hosts() {
		hosts = append(hosts, mpichshim.Host{Name: h.Name, Slots: max(1, h.Slots)})
	}
	return hosts, nil
}

// startAgents starts those of all nodes at once.
func (j *bare) startAgents(ctx context.Context, isHere func(string) bool) error {
	program, err := ranksProgram()
	if err != nil {
		return err
	}
	defer program.Close()
	j.here, j.processes = make([]*ranksHere, len(j.nodes)), make([]allocator.Process, len(j.nodes))
	var others []int
	for i, n := range j.nodes {
		switch {
		case len(j.ranks[i]) == 0:
		case isHere(n.Name):
			if j.here[i], err = startRanksHere(program); err != nil {
				return err
			}
		default:
			others = append(others, i)
		}
	}
	if len(others) == 0 {
		return nil
	}
	if j.manager == nil {
		return fmt.Errorf("%s is not this machine, and nothing says how to reach it", j.nodes[others[0]].Name)
	}
	go j.usesUCX() // found out while hosts are reached
	hosts := make([]allocator.Host, len(others))
	for k, i := range others {
		for _, h := range j.manager.Hosts() {
			if h.Name == j.nodes[i].Name {
				hosts[k] = h
			}
		}
	}
	started, err := allocator.StartAll(ctx, j.manager, hosts, program.Name(), func(allocator.Host) []string { return []string{"ranks", "--stdio"} }, nil)
	if err != nil {
		return err
	}
	for k, i := range others {
		j.processes[i] = started[k]
	}
	j.phase("%s reached", plural(len(others), "host"))
	return nil
}

// clone makes no clones, but the places for the ranks.
func (j *bare) clone(context.Context) ([]launch.Place, error) {
	for i, n := range j.nodes {
		p := launch.Place{Name: n.Name, Ranks: j.ranks[i]}
		if j.command == nil || j.command.Propagate {
			p.IP = n.Name
		}
		switch {
		case j.here[i] != nil:
			p.Session = j.here[i].session
		case j.processes[i] != nil:
			var err error
			if p.Session, err = agent.Dial(j.processes[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", n.Name, err)
			}
			go j.watch(n.Name, j.processes[i])
		default:
			continue
		}
		var err error
		if p.Vary, err = j.vary(n, j.ranks[i]); err != nil {
			return nil, err
		}
		j.places, j.used = append(j.places, p), append(j.used, n)
	}
	// Within one node MPICH does not hang in MPI_Finalize.
	j.ucx = len(j.places) > 1 && j.usesUCX()
	return j.places, nil
}

// spawn places ranks that others want to have beside them, on the same hosts.
func (j *bare) spawn(_ context.Context, apps []launch.App) (places []launch.Place, release func(), err error) {
	np, _, err := findSpawned(apps)
	if err != nil {
		return nil, nil, err
	}
	for i, ranks := range mpichshim.Layout(j.used, np) {
		p := j.places[i]
		if p.Ranks = ranks; len(ranks) == 0 {
			continue
		}
		if p.Vary, err = j.vary(j.used[i], ranks); err != nil {
			return nil, nil, err
		}
		places = append(places, p)
	}
	return places, func() {}, nil
}

// vary is what differs between the ranks of a node. All run as whoever the agent
// is: as who is here, or who is logged in there.
func (j *bare) vary(n mpichshim.Host, ranks []int) (func(int, *agent.Command), error) {
	if j.command == nil {
		return func(_ int, c *agent.Command) { c.Own = true }, nil
	}
	binding, err := j.command.Of(n)
	if err != nil {
		return nil, err
	}
	local := map[int]int{}
	for i, rank := range ranks {
		local[rank] = i
	}
	return func(rank int, c *agent.Command) {
		c.Own = true
		if v := j.command.GPUVariable(local[rank]); v != "" {
			c.Env = append(slices.Clip(c.Env), v)
		}
		switch b := binding; {
		case b == nil:
		case b.Lists != nil:
			if cpus := b.Lists[local[rank]%len(b.Lists)]; len(cpus) > 0 {
				c.Bind = &agent.Bind{CPUs: cpus}
			}
		default:
			c.Bind = &agent.Bind{Cores: b.Unit == "core", Each: b.Each, Index: local[rank]}
		}
	}, nil
}

// watch tells of an agent on another host that ends before the job.
func (j *bare) watch(host string, p allocator.Process) {
	err := p.Wait()
	if err == nil {
		err = errors.New("the agent there ended")
	}
	select {
	case j.lost <- fmt.Sprintf("%s: %v", host, err): // at the job's end nobody hears it
	default:
	}
}

func (j *bare) end(context.Context) error { return nil }

// close ends the agents, and with them what still runs.
func (j *bare) close() error {
	var wait sync.WaitGroup
	for i := range j.here {
		if r := j.here[i]; r != nil {
			wait.Go(r.close)
		}
	}
	if j.manager != nil {
		wait.Go(func() { j.manager.Close() })
	}
	wait.Wait()
	return nil
}
