package pmi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Proxy serves the ranks of one clone and speaks for them with the Server. Make one with NewProxy, keep Run going, and
// call ServeRank for each rank.
type Proxy struct {
	group    Group
	upstream io.ReadWriteCloser
	ranks    []int

	ready chan struct{} // closed when hello is sent: from then on anybody may write upstream
	done  chan struct{} // closed when Run has ended

	writing sync.Mutex // held while writing upstream; never taken with mu held

	mu         sync.Mutex
	slots      map[int]*slot
	cache      map[string]string // what the local ranks and, up to the last barrier, everybody has put
	cached     *quota            // bounds cache
	pending    batch             // local puts that the server has not seen
	generation uint64            // barriers completed
	entered    int               // local ranks in the barrier
	out        chan struct{}     // closed when the barrier that is being entered is over
	err        error             // why done is closed
}

// slot is what the proxy knows of a local rank.
type slot struct {
	rank    int
	served  bool
	state   State
	entered bool         // in the barrier
	quota   *quota       // of its puts
	closed  bool         // its connection is closed, and the server was told
	answer  chan message // the answer to its one get that is under way
	faults  int          // reported so far
}

// NewProxy makes the proxy of the clone that runs the local ranks of g. A mistake in g or local is reported by Run.
func NewProxy(g Group, upstream io.ReadWriteCloser, local []int) *Proxy {
	p := &Proxy{
		group:    g,
		upstream: upstream,
		ranks:    slices.Clone(local),
		ready:    make(chan struct{}),
		done:     make(chan struct{}),
		slots:    map[int]*slot{},
		cache:    map[string]string{},
		cached:   newQuota(rankQuota * max(1, min(g.Size, MaxSize))),
		out:      make(chan struct{}),
	}
	for _, r := range local {
		p.slots[r] = &slot{rank: r, quota: newQuota(rankQuota), answer: make(chan message, 1)}
	}
	if g.Mapping != "" {
		p.cache[mappingKey] = g.Mapping
	}
	return p
}

// Run is the upstream side. It returns nil when every local rank was served and closed and the server knows it; ctx is
// its only deadline, since a job takes as long as it takes. It closes the stream. When it ends early, every ServeRank ends.
func (p *Proxy) Run(ctx context.Context) error {
	err := p.run(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w while %s", context.Cause(ctx), p.waitingFor())
		}
		err = fmt.Errorf("run PMI proxy of ranks %s: %w", formatRanks(p.ranks), err)
	}
	p.mu.Lock()
	p.err = err
	p.mu.Unlock()
	close(p.done)
	interrupt(p.upstream) // frees whoever writes
	return err
}

func (p *Proxy) run(ctx context.Context) error {
	if err := p.group.Validate(); err != nil {
		return err
	}
	if err := checkRanks(p.ranks, p.group.Size); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { interrupt(p.upstream) })
	defer stop()
	if err := p.send(message{
		kind: kindHello, version: protocolVersion, name: p.group.KVSName, size: p.group.Size, ranks: p.ranks,
	}); err != nil {
		return err
	}
	close(p.ready)

	r := bufio.NewReader(p.upstream)
	for first := true; ; first = false {
		m, err := readMessage(r)
		if errors.Is(err, io.EOF) {
			return errors.New("the launcher closed the stream")
		}
		if err != nil {
			return fmt.Errorf("read from the launcher: %w", err)
		}
		switch {
		case m.kind == kindRefuse:
			return fmt.Errorf("refused by the launcher: %s", m.text)
		case first && m.kind != kindWelcome:
			return fmt.Errorf("the launcher began with a %s message instead of welcome", m.kind)
		case first && m.version != protocolVersion:
			return fmt.Errorf("the launcher speaks version %d of the PMI proxy protocol, this agent version %d", m.version, protocolVersion)
		case m.kind == kindBye:
			return nil
		}
		if !first {
			if err := p.handle(m); err != nil {
				return err
			}
		}
	}
}

// handle does what one message of the server asks for.
func (p *Proxy) handle(m message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m.kind {
	case kindValue:
		s := p.slots[m.rank]
		if s == nil {
			return fmt.Errorf("the launcher answered rank %d, which is not on this clone", m.rank)
		}
		select {
		case s.answer <- m:
		default:
			return fmt.Errorf("the launcher answered rank %d twice", m.rank)
		}
	case kindPut:
		return p.learn(m.entries)
	case kindBarrierOut:
		if m.generation != p.generation || p.entered != len(p.slots) {
			return fmt.Errorf("the launcher ended barrier %d out of turn", m.generation)
		}
		if err := p.learn(m.entries); err != nil {
			return err
		}
		for _, s := range p.slots {
			s.entered = false
		}
		p.entered = 0
		p.generation++
		close(p.out)
		p.out = make(chan struct{})
	default:
		return fmt.Errorf("the launcher sent a %s message, which is not its to send", m.kind)
	}
	return nil
}

// learn takes entries of the server into the cache.
func (p *Proxy) learn(entries []entry) error {
	for _, e := range entries {
		if err := p.cached.take(e); err != nil {
			return fmt.Errorf("the launcher: %w", err)
		}
		p.cache[e.key] = e.value
	}
	return nil
}

// send writes one message upstream.
func (p *Proxy) send(m message) error { return p.write(appendFrame(nil, m)) }

func (p *Proxy) write(frames []byte) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if _, err := p.upstream.Write(frames); err != nil {
		return fmt.Errorf("write to the launcher: %w", err)
	}
	return nil
}

// RankState says how far a local rank has come. Once ServeRank has returned it does not change any more.
func (p *Proxy) RankState(rank int) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.slots[rank]; s != nil {
		return s.state
	}
	return NotStarted
}

// lookup asks the cache.
func (p *Proxy) lookup(key string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	value, ok := p.cache[key]
	return value, ok
}

// put takes a local rank's entry: its neighbours see it now, the other clones after the next barrier.
func (p *Proxy) put(s *slot, e entry) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := s.quota.take(e); err != nil {
		return err
	}
	p.cache[e.key] = e.value
	p.pending.put(e)
	return nil
}

// enter puts a local rank into the barrier. The last one takes everybody's puts upstream. The channel is closed when all
// ranks of the group are in.
func (p *Proxy) enter(s *slot) (<-chan struct{}, error) {
	p.mu.Lock()
	s.entered = true
	p.entered++
	out := p.out
	if p.entered < len(p.slots) {
		p.mu.Unlock()
		return out, nil
	}
	frames := appendEntries(nil, message{kind: kindBarrierIn, generation: p.generation}, p.pending.take())
	p.mu.Unlock()
	return out, p.write(frames)
}

// waitingFor says what Run waits for, for errors.
func (p *Proxy) waitingFor() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var open []int
	for _, r := range p.ranks {
		if !p.slots[r].closed {
			open = append(open, r)
		}
	}
	if len(open) == 0 {
		return "the launcher's goodbye was awaited"
	}
	return fmt.Sprintf("ranks %s were connected or still to come", formatRanks(open))
}

// missing says whom a rank in the barrier waits for.
func (p *Proxy) missing() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var local []int
	for _, r := range p.ranks {
		if !p.slots[r].entered {
			local = append(local, r)
		}
	}
	if len(local) > 0 {
		return "local ranks " + formatRanks(local)
	}
	return "ranks of other clones"
}

// lost is the error of a rank whose proxy has ended.
func (p *Proxy) lost() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return errors.New("the PMI proxy has ended")
}
