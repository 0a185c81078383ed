package pmi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Events are a Server's reports to the launcher. Any may be nil. They are called by the Serve of the rank's proxy, one
// after another for each clone, without locks held: they may call the Server, and must not wait, since the clone's ranks
// wait meanwhile.
type Events struct {
	// Spawn: the rank wants a new group, and waits for r.Answer, which may come from any goroutine and at any time. Without
	// this Event, MPI_Comm_spawn fails.
	Spawn func(r *SpawnRequest)
	// Abort: the rank called MPI_Abort with this exit code. The launcher must end the job, this rank included: MPICH's
	// MPI_Abort waits for an answer that no process manager sends, until it is killed.
	Abort func(rank, exitcode int, message string)
	// Protocol: the rank sent something malformed, oversized or unsupported. Its connection is closed by the proxy where
	// going on makes no sense; that it is shows in Closed.
	Protocol func(rank int, err error)
	// Init: the rank sent init.
	Init func(rank int)
	// Finalize: the rank sent finalize.
	Finalize func(rank int)
	// Closed: the rank's connection is closed and its state will not change any more.
	Closed func(rank int, s State)
}

// Server holds the state of one process group in the launcher. Make one with NewServer, and call Serve for each clone. The
// groups of a job, such as those that MPI_Comm_spawn makes, have a Server each.
type Server struct {
	group  Group
	names  *Names
	events Events

	mu         sync.Mutex
	ranks      []rankRecord
	kvs        history
	dead       []int                 // MarkDead
	peers      map[*peer]struct{}    // whose queues may be written to
	gatherings map[string]*gathering // barriers that somebody is in
}

// rankRecord is what the server knows of a rank.
type rankRecord struct {
	peer     *peer // the proxy that serves it; nil before Serve
	state    State
	spawning bool // a SpawnRequest is not answered
	gone     bool
	closed   chan struct{} // closed with gone
}

// NewServer makes the server of a process group. names is the job's name service, the same one for all its groups; nil
// is one of the group's own. A group that Validate finds fault with is reported by Serve.
func NewServer(g Group, names *Names, ev Events) *Server {
	if names == nil {
		names = NewNames()
	}
	s := &Server{
		group:      g,
		names:      names,
		events:     ev,
		peers:      map[*peer]struct{}{},
		gatherings: map[string]*gathering{},
	}
	if g.Validate() != nil {
		return s
	}
	s.ranks = make([]rankRecord, g.Size)
	for i := range s.ranks {
		s.ranks[i].closed = make(chan struct{})
	}
	for _, pair := range g.initial() {
		s.kvs.put(pair)
	}
	return s
}

// Serve speaks with the proxy of one clone, which serves these ranks, until all their connections are closed (nil), ctx
// ends, or the stream breaks or carries nonsense. It closes conn. The ranks' states stay; a rank whose connection was still
// open counts as closed from then on, see WaitClosed.
func (s *Server) Serve(ctx context.Context, conn io.ReadWriteCloser, ranks []int) error {
	defer conn.Close()
	p, err := s.join(conn, ranks)
	if err != nil {
		return fmt.Errorf("serve PMI: %w", err)
	}
	defer s.leave(p)
	stop := context.AfterFunc(ctx, func() {
		s.fail(p, fmt.Errorf("%w while %s", context.Cause(ctx), s.waitingFor(p)))
	})
	defer stop()

	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(p)
	}()
	err = s.converse(bufio.NewReader(conn), p)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the agent closed the stream while %s", s.waitingFor(p))
	}
	if err != nil {
		s.fail(p, err)
	}
	s.retire(p)
	<-written

	if err := s.failure(p); err != nil {
		return fmt.Errorf("serve PMI for ranks %s: %w", formatRanks(p.ranks), err)
	}
	return nil
}

// RankState says how far a rank has come. A program that ended can be a moment ahead of this; WaitClosed is exact.
func (s *Server) RankState(rank int) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rank < 0 || rank >= len(s.ranks) {
		return NotStarted
	}
	return s.ranks[rank].state
}

// WaitClosed waits until the rank's connection is closed, or its clone's stream is lost, and returns its final state. Ask
// it when the rank's exit status has come by another way: the exit may overtake the finalize that came before it. A
// process that the rank left behind holds the connection open, so give ctx a deadline.
func (s *Server) WaitClosed(ctx context.Context, rank int) (State, error) {
	if rank < 0 || rank >= len(s.ranks) {
		return NotStarted, fmt.Errorf("wait for PMI of rank %d: the group has %d ranks", rank, len(s.ranks))
	}
	select {
	case <-s.ranks[rank].closed:
		return s.RankState(rank), nil
	case <-ctx.Done():
		state := s.RankState(rank)
		return state, fmt.Errorf("wait for rank %d (%s) to close its PMI connection: %w", rank, state, context.Cause(ctx))
	}
}

// join claims the ranks for a new peer.
func (s *Server) join(conn io.ReadWriteCloser, ranks []int) (*peer, error) {
	if err := s.group.Validate(); err != nil {
		return nil, err
	}
	if err := checkRanks(ranks, s.group.Size); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range ranks {
		if s.ranks[r].peer != nil {
			return nil, fmt.Errorf("rank %d is already served", r)
		}
	}
	p := &peer{
		conn:  conn,
		ranks: slices.Clone(ranks),
		open:  len(ranks),
		quota: newQuota(rankQuota * len(ranks)),
		seen:  s.initially(),
		// A rank asks one thing at a time, is in so many barriers, and there can be the welcome and the goodbye. Whoever fills
		// this queue asks without reading the answers.
		out: make(chan []byte, len(ranks)*(1+maxBarriers)+2),
	}
	for _, r := range ranks {
		s.ranks[r].peer = p
	}
	s.peers[p] = struct{}{}
	return p, nil
}

// initially is the moment before which all proxies know the KVS.
func (s *Server) initially() uint64 { return uint64(len(s.group.initial())) }

// leave marks what is left of the peer's ranks as closed.
func (s *Server) leave(p *peer) {
	s.mu.Lock()
	var late []int
	for _, r := range p.ranks {
		if !s.ranks[r].gone {
			s.ranks[r].gone = true
			late = append(late, r)
		}
	}
	s.mu.Unlock()
	for _, r := range late {
		s.reportClosed(r)
	}
}

func (s *Server) reportClosed(rank int) {
	if s.events.Closed != nil {
		s.events.Closed(rank, s.RankState(rank))
	}
	close(s.ranks[rank].closed)
}

// converse reads the proxy's messages until the goodbye.
func (s *Server) converse(r *bufio.Reader, p *peer) error {
	m, err := readMessage(r)
	if err != nil {
		return err
	}
	if err := s.checkHello(m, p); err != nil {
		s.send(p, appendFrame(nil, message{kind: kindRefuse, text: err.Error()}))
		// Serve's error path would cut the refusal off; the proxy hangs up when it has read it.
		select {
		case <-hungUp(r):
		case <-time.After(refusalTime):
		}
		return err
	}
	s.welcome(p)
	for {
		m, err := readMessage(r)
		if err != nil {
			return err
		}
		done, err := s.handle(m, p)
		if err == nil {
			err = s.failure(p)
		}
		if done || err != nil {
			return err
		}
	}
}

func (s *Server) welcome(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.greeted = true
	s.enqueue(p, appendFrame(nil, message{kind: kindWelcome, version: protocolVersion}))
}

// refusalTime is how long a refused proxy is given to read why.
const refusalTime = 5 * time.Second

// hungUp is closed when nothing more comes from r; what still comes is thrown away.
func hungUp(r *bufio.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, r)
	}()
	return done
}

func (s *Server) checkHello(m message, p *peer) error {
	switch {
	case m.kind != kindHello:
		return fmt.Errorf("the agent began with a %s message instead of hello", m.kind)
	case m.version != protocolVersion:
		return fmt.Errorf("the agent speaks version %d of the PMI proxy protocol, this launcher version %d; rebuild the guest image",
			m.version, protocolVersion)
	case m.name != s.group.KVSName || m.size != s.group.Size:
		return fmt.Errorf("the agent serves group %s of %d ranks, expected %s of %d", m.name, m.size, s.group.KVSName, s.group.Size)
	case !slices.Equal(m.ranks, p.ranks):
		return fmt.Errorf("the agent serves ranks %s, expected %s", formatRanks(m.ranks), formatRanks(p.ranks))
	}
	return nil
}
