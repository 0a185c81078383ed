package pmix

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// Events are a Server's reports to the launcher. Any may be nil. They are called by the Serve of the node that they come
// from, one after another, without locks held: they may call the Server, and must not wait.
type Events struct {
	// Init: the rank has called MPI_Init, and is connected.
	Init func(p Proc)
	// Abort: the rank called MPI_Abort. The launcher must end the job, this rank included, which waits for that.
	Abort func(p Proc, code int, text string)
	// Message: Open MPI wants the user to read this text, of several lines, each ended.
	Message func(p Proc, text string)
	// Spawn: the rank called MPI_Comm_spawn. The new ranks are a job of their own, added and with all its nodes attached
	// before answer is called, once, with its namespace. Without this event spawning is not supported.
	Spawn func(s Spawn, answer func(namespace string, err error))
}

// Spawn is what a rank wants to have started.
type Spawn struct {
	By   Proc
	Info map[string]string // PMIx's attributes for all
	Apps []SpawnApp
}

// SpawnApp is one program of a Spawn.
type SpawnApp struct {
	Program string
	Argv    []string // the program's name is the first
	Env     []string // what the new ranks must find in their environment beside what others do
	Dir     string   // "" for the parent's
	Ranks   int
	Info    map[string]string
}

// Server is the launcher's part of the PMIx server of one or several jobs that know each other. Make one with NewServer.
type Server struct {
	events Events

	mu       sync.Mutex
	jobs     map[string]*job
	meetings map[string][]*meeting // by signature, in the order of their beginning
	fetches  map[uint32]*fetch
	lastID   uint32 // of fetches and pings
	names    names
}

// job is what the Server knows of a namespace.
type job struct {
	Job
	nodes  []*Node // by place; nil before Attach
	at     []int   // the place of each rank
	states []pmi.State
	shown  map[string]bool // topics of messages
}

// NewServer makes a Server without jobs.
func NewServer(ev Events) *Server {
	return &Server{events: ev, jobs: map[string]*job{}, meetings: map[string][]*meeting{}, fetches: map[uint32]*fetch{}}
}

// Add makes a job known.
func (s *Server) Add(j Job) error {
	if err := j.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs[j.Namespace] != nil {
		return fmt.Errorf("namespace %s is there already", j.Namespace)
	}
	n := &job{Job: j, nodes: make([]*Node, len(j.Places)), at: make([]int, j.size()), states: make([]pmi.State, j.size()), shown: map[string]bool{}}
	for i, p := range j.Places {
		for _, r := range p.Ranks {
			n.at[r] = i
		}
	}
	s.jobs[j.Namespace] = n
	return nil
}

// RankState says how far a rank has come: connected is Initialized.
func (s *Server) RankState(p Proc) pmi.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[p.Namespace]; j != nil && p.Rank >= 0 && p.Rank < len(j.states) {
		return j.states[p.Rank]
	}
	return pmi.NotStarted
}

// Settle returns how far a rank has come whose process has ended: its node is asked, and answers behind all that
// the rank has said. It waits until ctx ends, and then returns what is known.
func (s *Server) Settle(ctx context.Context, p Proc) pmi.State {
	s.mu.Lock()
	var n *Node
	answered := make(chan struct{})
	if j := s.jobs[p.Namespace]; j != nil && p.Rank >= 0 && p.Rank < len(j.at) {
		n = j.nodes[j.at[p.Rank]]
	}
	if n != nil {
		s.lastID++
		n.pings[s.lastID] = answered
		n.enqueue(newFrame(kindPing).number(s.lastID).frame())
	}
	s.mu.Unlock()
	if n != nil {
		select {
		case <-answered:
		case <-n.over:
		case <-ctx.Done():
		}
	}
	return s.RankState(p)
}

// handle does what one frame of a node asks for.
func (s *Server) handle(n *Node, d *decoder) error {
	switch d.kind {
	case kindFence, kindConnect, kindDisconnect:
		return s.meet(n, d)
	case kindDmodex:
		return s.fetch(n, d)
	case kindModex:
		return s.fetched(n, d)
	case kindPublish:
		return s.publish(n, d)
	case kindLookup:
		return s.lookup(n, d)
	case kindUnpublish:
		return s.unpublish(n, d)
	case kindSpawn:
		return s.spawn(n, d)
	case kindPong:
		id := d.number()
		s.mu.Lock()
		defer s.mu.Unlock()
		if answered := n.pings[id]; answered != nil {
			close(answered)
			delete(n.pings, id)
		}
		return d.end()
	case kindFault:
		return fmt.Errorf("the PMIx helper says: %s", hearsay.Clip(hearsay.Printable(d.string())))
	case kindConnected, kindFinalized, kindAbort:
		return s.tell(n, d)
	case kindMessage:
		return s.message(n, d)
	}
	return fmt.Errorf("a frame of kind %d, which is not a helper's to send", d.kind)
}

// tell passes on what a rank says of itself.
func (s *Server) tell(n *Node, d *decoder) error {
	p, err := n.own(d.number())
	if err != nil {
		return err
	}
	switch ev := s.events; d.kind {
	case kindConnected, kindFinalized:
		state := pmi.Initialized
		if d.kind == kindFinalized {
			state = pmi.Finalized
		}
		s.mu.Lock()
		n.job.states[p.Rank] = state
		s.mu.Unlock()
		if state == pmi.Initialized && ev.Init != nil {
			ev.Init(p)
		}
	case kindAbort:
		code, text := int(int32(d.number())), d.string()
		if d.err == nil && ev.Abort != nil {
			ev.Abort(p, code, hearsay.Clip(hearsay.Printable(text)))
		}
	}
	return d.end()
}

// spawn asks the launcher for new ranks.
func (s *Server) spawn(n *Node, d *decoder) error {
	id := d.number()
	by, err := n.own(d.number())
	if err != nil {
		return err
	}
	req := Spawn{By: by, Info: d.infos()}
	for range d.count(24) {
		req.Apps = append(req.Apps, SpawnApp{d.string(), d.strings(), d.strings(), d.string(), int(int32(d.number())), d.infos()})
	}
	if err := d.end(); err != nil {
		return err
	}
	answer := func(how outcome, namespace string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		n.waiting--
		s.introduce(n, namespace)
		n.enqueue(newFrame(kindSpawned).number(id).number(uint32(how)).string(namespace).frame())
	}
	if err := s.begin(n); err != nil {
		return err
	}
	if s.events.Spawn == nil {
		answer(notSupported, "")
		return nil
	}
	s.events.Spawn(req, func(namespace string, err error) {
		if err != nil {
			answer(failed, "")
			return
		}
		answer(ok, namespace)
	})
	return nil
}

// begin counts an operation of a node that has an answer.
func (s *Server) begin(n *Node) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.begin()
}

// introduce makes a namespace known to a node that has nothing of it. The caller holds s.mu.
func (s *Server) introduce(n *Node, namespace string) {
	if j := s.jobs[namespace]; j != nil && !n.known[namespace] {
		n.known[namespace] = true
		n.enqueue(j.frame(foreign))
	}
}

// after calls f under s.mu when time is up.
func (s *Server) after(seconds uint32, f func()) *time.Timer {
	return time.AfterFunc(time.Duration(seconds)*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f()
	})
}
