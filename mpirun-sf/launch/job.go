package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// Place is a clone and the ranks that it runs.
type Place struct {
	Name    string // "clone-1"
	IP      string
	Session *agent.Session
	Ranks   []int // consecutive
}

// Job is what to run, and where.
type Job struct {
	Name   string // unique: the name of the ranks' key-value space
	Argv   []string
	Env    []string
	Dir    string
	User   agent.User
	UCX    bool // preload UCX's progress into PMI waits
	Places []Place

	Stdin          io.Reader // rank 0's; nil is an empty one
	Stdout, Stderr io.Writer
	Label          bool // prefix lines with "[rank] "

	// StartLimit is how long all ranks together may take to start.
	StartLimit time.Duration
	// Signals are forwarded to the ranks.
	Signals <-chan os.Signal
	// Notice is called for what a user should know meanwhile.
	Notice func(string)
	// Lost delivers the reasons of clones that are gone.
	Lost <-chan string
}

// ErrInterrupted says that the user ended the job by force.
var ErrInterrupted = errors.New("interrupted")

// drainLimit is how long the silent output of ranks that have ended may keep the
// job: a process that a rank left behind can hold its stream open.
const drainLimit = 2 * time.Second

// finalLimit is how long PMI's last word on a rank is waited for after its exit.
const finalLimit = 2 * time.Second

// lostLimit is how long the reason of a lost clone is waited for.
const lostLimit = 500 * time.Millisecond

// run is the state of a job under way. Only Run's goroutine touches what is
// not a channel.
type run struct {
	*Job
	server *pmi.Server
	procs  []*agent.Process // by rank
	clones []string         // by rank
	events chan event

	outputs   sync.WaitGroup
	writing   atomic.Int64          // streams whose output is being written
	written   atomic.Int64          // writes that have ended
	unwritten atomic.Pointer[error] // the first that failed

	running  int
	states   map[int]pmi.State // of ranks that ended
	anyInit  bool
	failure  *Failure
	intCount int
}

// event is one thing that happened. Exactly one field is set.
type event struct {
	ended *ended
	abort *Failure
	init  bool
}

type ended struct {
	rank  int
	exit  agent.Exit
	state pmi.State
}

// Run runs the job to its end. A nil error is a job whose ranks all exited
// with 0; a *[Failure] carries the job's exit status.
func (j *Job) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &run{Job: j, events: make(chan event, 64), states: map[int]pmi.State{}}
	if err := r.start(ctx); err != nil {
		r.kill()
		return err
	}
	err := r.wait(ctx)
	if err != nil {
		r.kill()
	}
	// What the ranks wrote before the end is shown before the end.
	r.drain(err == nil)
	if failed := r.unwritten.Load(); err == nil && failed != nil {
		err = fmt.Errorf("write the ranks' output: %w", *failed)
	}
	return err
}

// kill ends the ranks that run on after the job. Nobody waits for it: a clone
// may be what does not answer.
func (r *run) kill() {
	for rank, p := range r.procs {
		if _, ended := r.states[rank]; p != nil && !ended {
			go p.Signal(int(syscall.SIGKILL))
		}
	}
}

// drain waits for the rest of the ranks' output: for drainLimit or, when
// patient, until for so long nothing has come, nor waited for whoever reads it.
// A signal is an end to patience.
func (r *run) drain(patient bool) {
	drained := make(chan struct{})
	go func() { r.outputs.Wait(); close(drained) }()
	for {
		before := r.written.Load()
		select {
		case <-drained:
			return
		case <-r.Signals:
			return
		case <-time.After(drainLimit):
		}
		if !patient || r.written.Load() == before && r.writing.Load() == 0 {
			return
		}
	}
}

// start brings all ranks to life, or none of the job.
func (r *run) start(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, r.StartLimit)
	defer cancel()
	np := 0
	var perNode []int
	for _, p := range r.Places {
		np += len(p.Ranks)
		if len(p.Ranks) > 0 {
			perNode = append(perNode, len(p.Ranks))
		}
	}
	r.procs, r.clones, r.running = make([]*agent.Process, np), make([]string, np), np
	group := pmi.Group{Size: np, KVSName: "kvs_" + r.Name, UniverseSize: np, Mapping: pmi.Mapping(perNode)}
	if err := group.Validate(); err != nil {
		return err
	}
	send := func(e event) {
		select {
		case r.events <- e:
		case <-ctx.Done():
		}
	}
	r.server = pmi.NewServer(group, pmi.Events{
		Init: func(int) { send(event{init: true}) },
		Abort: func(rank, code int, message string) {
			send(event{abort: &Failure{Rank: rank, Clone: r.clones[rank], Status: abortStatus(code), Cause: aborted(code, message)}})
		},
		Protocol: func(rank int, err error) {
			r.Notice(fmt.Sprintf("rank %d on %s: PMI: %v", rank, r.clones[rank], err))
		},
	})
	// Two steps, so that no rank runs before every clone can run its own.
	answered := make([]bool, len(r.Places))
	var mu sync.Mutex // guards answered
	step := func(do func(ctx context.Context, p Place) error) error {
		clear(answered)
		g, each := errgroup.WithContext(limit)
		for i, p := range r.Places {
			if len(p.Ranks) == 0 {
				answered[i] = true
				continue
			}
			g.Go(func() error {
				err := do(each, p)
				if err == nil {
					mu.Lock()
					answered[i] = true
					mu.Unlock()
				}
				return err
			})
		}
		err := g.Wait()
		if err != nil && errors.Is(limit.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
			var missing []string
			for i, p := range r.Places {
				if !answered[i] {
					missing = append(missing, p.Name)
				}
			}
			return fmt.Errorf("%s did not start all ranks in %v; is this machine overloaded? --start-timeout gives more time", strings.Join(missing, ", "), r.StartLimit)
		}
		return err
	}
	if err := step(func(limit context.Context, p Place) error { return r.prepare(ctx, limit, group, p) }); err != nil {
		return err
	}
	return step(func(limit context.Context, p Place) error { return r.startRanks(limit, p, send) })
}

// prepare opens what a clone's ranks need before they start.
func (r *run) prepare(ctx, limit context.Context, group pmi.Group, p Place) error {
	upstream, err := p.Session.PMI(limit, agent.PMI{Group: group, Ranks: p.Ranks})
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	go r.server.Serve(ctx, upstream, p.Ranks)
	for _, rank := range p.Ranks {
		r.clones[rank] = p.Name
		if rank == 0 {
			st, err := p.Session.Stdio(limit, rank, 0)
			if err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			go func() {
				if r.Stdin != nil {
					io.Copy(st, r.Stdin)
				}
				st.Close()
			}()
		}
		for fd, out := range map[int]io.Writer{1: r.Stdout, 2: r.Stderr} {
			st, err := p.Session.Stdio(limit, rank, fd)
			if err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			w := &screen{run: r, lines: &lineWriter{out: out, mu: &terminal}}
			if r.Label {
				w.lines.prefix = fmt.Appendf(nil, "[%d] ", rank)
			}
			r.outputs.Go(func() {
				io.Copy(w, st)
				w.Close()
				st.Close()
			})
		}
	}
	return nil
}

// screen is where one stream of a rank goes. When it cannot be written the rank
// is not held up by that: the job goes on, and has failed in the end.
type screen struct {
	run   *run
	lines *lineWriter
	err   error
}

func (s *screen) Write(p []byte) (int, error) {
	s.do(func() error { _, err := s.lines.Write(p); return err })
	return len(p), nil
}

func (s *screen) Close() { s.do(s.lines.Close) }

func (s *screen) do(write func() error) {
	if s.err != nil {
		return
	}
	s.run.writing.Add(1)
	if s.err = write(); s.err != nil {
		s.run.unwritten.CompareAndSwap(nil, &s.err)
	}
	s.run.written.Add(1)
	s.run.writing.Add(-1)
}

// terminal is held while a line is written: stdout and stderr are often the
// same terminal.
var terminal sync.Mutex

func (r *run) startRanks(ctx context.Context, p Place, send func(event)) error {
	for _, rank := range p.Ranks {
		proc, err := p.Session.Start(ctx, agent.Command{
			ID: rank, Argv: r.Argv, Dir: r.Dir, User: r.User, PMI: true, UCX: r.UCX,
			Env: append(r.Env[:len(r.Env):len(r.Env)], "MPIR_CVAR_CH3_INTERFACE_HOSTNAME="+p.IP),
		})
		if err != nil {
			return fmt.Errorf("rank %d on %s: %w", rank, p.Name, err)
		}
		r.procs[rank] = proc
		go func() {
			e := &ended{rank: rank, exit: <-proc.Exit()}
			limit, cancel := context.WithTimeout(context.Background(), finalLimit)
			defer cancel()
			// The exit may overtake the finalize that came before it.
			if s, err := r.server.WaitClosed(limit, rank); err == nil {
				e.state = s
			} else {
				e.state = r.server.RankState(rank)
			}
			send(event{ended: e})
		}()
	}
	return nil
}

// wait receives what happens until the job is over.
func (r *run) wait(ctx context.Context) error {
	for r.running > 0 {
		select {
		case e := <-r.events:
			if over := r.handle(e); over {
				return r.failure
			}
		case sig := <-r.Signals:
			if over := r.forward(sig); over {
				return ErrInterrupted
			}
		case reason := <-r.Lost:
			return &Failure{Status: 1, Cause: reason}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.failure != nil {
		return r.failure
	}
	return nil
}

// handle returns whether the job is over.
func (r *run) handle(e event) bool {
	switch {
	case e.abort != nil:
		if r.failure == nil {
			r.failure = e.abort
		}
		return true
	case e.init:
		r.anyInit = true
	case e.ended != nil:
		r.running--
		if e.ended.exit.Error != "" {
			// The daemon knows better why the clone is gone, a moment later.
			select {
			case reason := <-r.Lost:
				e.ended.exit.Error = reason
			case <-time.After(lostLimit):
			}
		}
		r.states[e.ended.rank] = e.ended.state
		f, ends := judge(e.ended.rank, r.clones[e.ended.rank], e.ended.exit, e.ended.state)
		if f != nil {
			if r.failure == nil {
				r.failure = f
			}
			if ends {
				return true
			}
		}
	}
	// A rank that ended without MPI_Init is waited for in others' MPI_Init.
	if r.anyInit && r.running > 0 {
		for rank := range r.procs {
			if s, ended := r.states[rank]; ended && s == pmi.NotStarted {
				if r.failure == nil {
					r.failure = &Failure{Rank: rank, Clone: r.clones[rank], Status: 1, Cause: "ended without calling MPI_Init, for which the other ranks wait"}
				}
				return true
			}
		}
	}
	return false
}

// forward sends a signal to every rank and returns whether the user has asked
// for a forced end.
func (r *run) forward(sig os.Signal) bool {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return false
	}
	if n == syscall.SIGINT {
		if r.intCount++; r.intCount > 1 {
			return true
		}
		r.Notice("interrupt sent to the ranks; press Ctrl-C again to end them by force")
	}
	for _, p := range r.procs {
		p.Signal(int(n))
	}
	return false
}

// abortStatus is what a shell sees of MPI_Abort's code, but never success.
func abortStatus(code int) int {
	return max(1, code&0xff)
}

func aborted(code int, message string) string {
	s := fmt.Sprintf("called MPI_Abort(comm, %d)", code)
	if message != "" {
		s += ": " + message
	}
	return s
}
