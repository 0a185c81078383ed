package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// Place is a clone and the ranks that it runs.
type Place struct {
	Name    string // "clone-1"
	IP      string // or a host's name; "" to let ranks find out
	Session *agent.Session
	Ranks   []int // in order
	// Vary, if set, are variables of a rank alone, and where it may run.
	Vary func(rank int, c *agent.Command)
}

// App is a program of a job. One with several (MPMD: those that ":" parts on
// mpiexec's command line) numbers their ranks through, in order.
type App struct {
	Argv  []string // the program is an absolute path, if File is not given
	File  string   // the program's file, if it is called by another name
	Env   []string
	Dir   string
	Path  []string // of a program to be spawned: folders to look for it first
	Fewer bool     // of a program to be spawned: fewer ranks may do (MPI's info key soft)
	Ranks int
}

// Job is what to run, and where.
type Job struct {
	Name   string // unique: the name of the ranks' key-value space
	Apps   []App
	User   agent.User
	Wire   Wire
	UCX    bool // preload UCX's progress into PMI waits
	Places []Place
	// Singleton, if set, is the port of a process that runs already, without a
	// launcher, and is the job's only rank (pmi.Singleton): Apps and Places have
	// one rank, which is not started.
	Singleton string
	// Universe is MPI_UNIVERSE_SIZE: 0 is the number of ranks, less is not known.
	Universe int

	Stdin          io.Reader // rank 0's; nil is an empty one
	Stdout, Stderr io.Writer
	Label          bool // prefix lines with "[rank] "
	// Output, if set, is where a rank's standard output (fd 1) or error (2) goes
	// instead, as it comes. It is closed at the stream's end.
	Output func(rank, fd int) io.WriteCloser

	// Judge, if set, decides instead of mpirun-sf's own rules what the end of a
	// rank means: a failure, nil for none, and whether it ends the job.
	Judge func(rank int, clone string, e agent.Exit, s pmi.State) (f *Failure, endsJob bool)
	// Exits, after Run, is how each rank ended; nil for one that did not. Ranks
	// that others have spawned are not among them.
	Exits []*agent.Exit

	// Spawn, if set, finds places for a group that ranks of the job want to have
	// (MPI_Comm_spawn): for all of its ranks or, where there is no more room, for
	// the first of them. It makes programs absolute paths, in apps. release is
	// called when the group has ended.
	Spawn func(ctx context.Context, apps []App) (places []Place, release func(), err error)

	// StartLimit is how long all ranks together may take to start.
	StartLimit time.Duration
	// Signals are forwarded to the ranks.
	Signals <-chan os.Signal
	// Interrupted, if set, is called for the first SIGINT instead of a notice.
	Interrupted func()
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

// lostLimit is how long the reason of a lost clone is waited for.
const lostLimit = 500 * time.Millisecond

// run is the state of a job under way. Only Run's goroutine touches what is
// not a channel.
type run struct {
	*Job
	groups []*group // the first is the job's own; the others were spawned
	ids    int      // of processes, so far: a clone may serve several groups
	events chan event
	names  *pmi.Names
	// starting ends when no group is to start any more.
	starting context.Context

	pmix    func() *pmix.Server // made when it is asked for first: all groups have the same
	wiresMu sync.Mutex
	wires   map[string]*pmixWire // by namespace

	outputs   sync.WaitGroup
	writing   atomic.Int64          // streams whose output is being written
	written   atomic.Int64          // writes that have ended
	unwritten atomic.Pointer[error] // the first that failed

	failure  *Failure
	intCount int
}

// event is one thing that happened to a group. Exactly one of the other fields is set.
type event struct {
	group   *group
	started *started
	ended   *ended
	abort   *Failure
	init    bool
	lost    string // what a clone's ranks cannot do without is gone: why
	spawn   *pmi.SpawnRequest
	placed  *placed
}

// started says that a group's ranks run, or why not.
type started struct{ err error }

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
	if j.Judge == nil {
		j.Judge = judge
	}
	starting, stop := context.WithCancel(ctx)
	defer stop()
	r := &run{Job: j, starting: starting, events: make(chan event, 64), names: pmi.NewNames()}
	r.pmix = sync.OnceValue(r.newPMIx)
	g := r.newGroup(j.Name, j.Apps, j.Places)
	j.Exits = g.exits
	g.begin(ctx)
	err := r.wait(ctx)
	if err != nil {
		// Ranks are killed before their wires are cut: they would tell of that.
		stop()
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
	for _, g := range r.groups {
		go func() {
			<-g.begun
			for rank, p := range g.procs {
				if p != nil && g.exits[rank] == nil {
					go p.Signal(int(syscall.SIGKILL))
				}
			}
		}()
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

// wait receives what happens until the job is over.
func (r *run) wait(ctx context.Context) error {
	// Until there are ranks there is nobody to forward signals to, and a start
	// that fails knows better why than that a clone is gone.
	var signals <-chan os.Signal
	var lost <-chan string
	for slices.ContainsFunc(r.groups, func(g *group) bool { return g.running > 0 }) {
		select {
		case e := <-r.events:
			switch {
			case e.started != nil && e.group == r.groups[0]:
				if e.started.err != nil {
					return e.started.err
				}
				signals, lost = r.Signals, r.Lost
				e.group.up = true
			default:
				if over := r.handle(ctx, e); over {
					return r.failure
				}
			}
		case sig := <-signals:
			if over := r.forward(sig); over {
				return ErrInterrupted
			}
		case reason := <-lost:
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
func (r *run) handle(ctx context.Context, e event) bool {
	g := e.group
	switch {
	case e.spawn != nil:
		go g.place(ctx, e.spawn)
		return false
	case e.placed != nil:
		r.startSpawned(ctx, g, e.placed)
		return false
	case e.started != nil:
		g.answerSpawn(e.started.err)
		return false
	case e.abort != nil:
		r.fail(e.abort)
		return true
	case e.lost != "":
		if g.running == 0 {
			return false // its clones are gone already
		}
		// If the clone is, the daemon knows why, a moment later.
		select {
		case e.lost = <-r.Lost:
		case <-time.After(lostLimit):
		}
		r.fail(&Failure{Status: 1, Cause: e.lost})
		return true
	case e.init:
		g.anyInit = true
	case e.ended != nil:
		if e.ended.exit.Error != "" {
			// The daemon knows better why the clone is gone, a moment later.
			select {
			case reason := <-r.Lost:
				e.ended.exit.Error = reason
			case <-time.After(lostLimit):
			}
		}
		g.end(e.ended)
		f, ends := r.Judge(e.ended.rank, g.clones[e.ended.rank], e.ended.exit, e.ended.state)
		r.fail(f)
		if f != nil && ends {
			return true
		}
		if e.ended.state == pmi.Initialized {
			g.mourn(e.ended.rank)
		}
	}
	if rank, waited := g.neverInit(); waited {
		r.fail(&Failure{Rank: rank, Clone: g.clones[rank], Status: 1, Cause: "ended without calling MPI_Init, for which the other ranks wait"})
		return true
	}
	return false
}

// fail notes why the job has failed, if this is the first reason.
func (r *run) fail(f *Failure) {
	if r.failure == nil {
		r.failure = f
	}
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
		if r.Interrupted != nil {
			r.Interrupted()
		} else {
			r.Notice("interrupt sent to the ranks; press Ctrl-C again to end them by force")
		}
	}
	for _, g := range r.groups {
		for _, p := range g.procs {
			if g.up && p != nil {
				p.Signal(int(n))
			}
		}
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
