package sfld

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// report is what one host says of itself.
type report struct {
	counters carrier.Counters
	usage    map[int]carrier.Usage
	cpus     int
	err      error
}

// State implements [metrics.Source]. A host that does not answer is told as one.
func (e *Engine) State(ctx context.Context) (metrics.State, error) {
	mesh := e.connected()
	e.mu.Lock()
	hosts := e.hosts
	state := metrics.State{
		Job: e.opts.Job, Version: e.opts.Version, User: e.opts.User, Command: e.opts.Command, Ranks: e.opts.Ranks,
		Began: e.began, Taken: time.Now(), Pauses: e.pauses.Distribution(),
	}
	for member, m := range e.machines {
		state.Machines = append(state.Machines, metrics.Machine{
			Member: member, Name: m.Name, Host: m.Host, IP: m.IP, VCPUs: m.VCPUs, Memory: e.shape.Memory, State: e.phaseLocked(m),
		})
	}
	reserved := map[*site]int64{}
	for _, g := range e.grants {
		for _, s := range g.at {
			reserved[s] += g.room.Each
		}
	}
	e.mu.Unlock()
	slices.SortFunc(state.Machines, func(a, b metrics.Machine) int { return a.Member - b.Member })

	reports := make([]report, len(hosts))
	var group errgroup.Group
	for i, s := range hosts {
		group.Go(func() error { reports[i] = inquire(ctx, s); return nil })
	}
	group.Wait()
	for i, s := range hosts {
		r := reports[i]
		h := metrics.Host{
			Name: s.Name(), Up: r.err == nil, CPUs: r.cpus, Reserved: reserved[s],
			Memory: metrics.PagingOf(r.counters.Memory), Disks: metrics.PagingOf(r.counters.Disks),
			Copied: r.counters.Copied, Moved: metrics.MovedOf(r.counters.Moved),
		}
		if r.err != nil {
			h.Reason = r.err.Error()
		}
		if remote, ok := s.Host.(*carrier.Remote); ok {
			h.Trip = metrics.Seconds(remote.Trip())
		}
		if mesh != nil && i < len(mesh.Hosts()) {
			h.Address = mesh.Hosts()[i].Address
		}
		state.Hosts = append(state.Hosts, h)
		for n := range state.Machines {
			m := &state.Machines[n]
			if m.Host != s.Name() {
				continue
			}
			u := r.usage[m.Member]
			m.Began, m.Touched, m.Own = u.Began, u.Touched, u.Own
			m.CPU, m.Faults = metrics.Seconds(r.counters.CPU[m.Member]), r.counters.Reads[m.Member]
		}
	}
	return state, nil
}

// phaseLocked says what a machine is at.
func (e *Engine) phaseLocked(m *machine) string {
	switch {
	case m.ended:
		return metrics.Ending
	case !m.ready:
		return metrics.Starting
	case m.frozen:
		return metrics.Forking
	}
	return metrics.Running
}

// inquire asks a host what it does.
func inquire(ctx context.Context, s *site) (r report) {
	if r.counters, r.err = s.Counters(ctx); r.err != nil {
		return r
	}
	if r.usage, r.err = s.Usage(ctx); r.err != nil {
		return r
	}
	room, err := s.Room(ctx)
	r.cpus, r.err = room.CPUs, err
	return r
}

// Traced are the events of all hosts, and how far the hosts' clocks are ahead
// of this one's.
type Traced struct {
	Events []trace.Event
	Ahead  map[string]time.Duration
}

// Trace takes the events that all hosts have recorded since the last call. A
// host that is gone has none to tell.
func (s *service) Trace(_ int, out *Traced) error {
	e := s.e
	e.mu.Lock()
	hosts := e.hosts
	e.mu.Unlock()
	out.Ahead = map[string]time.Duration{}
	ctx, cancel := context.WithTimeout(s.ctx, countersLimit)
	defer cancel()
	var mu sync.Mutex
	var group errgroup.Group
	for _, h := range hosts {
		group.Go(func() error {
			events, ahead, err := h.Events(ctx)
			if err != nil {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			out.Events = append(out.Events, events...)
			out.Ahead[h.Name()] = ahead
			return nil
		})
	}
	group.Wait()
	slices.SortFunc(out.Events, func(a, b trace.Event) int {
		if c := a.Begin.Compare(b.Begin); c != 0 {
			return c
		}
		return strings.Compare(a.Host, b.Host)
	})
	return nil
}
