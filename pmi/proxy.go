package pmi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// Proxy serves the ranks of one group on one clone and speaks for them with the Server. Make one with NewProxy, keep Run
// going, and call ServeRank for each rank.
type Proxy struct {
	group    Group
	upstream io.ReadWriteCloser
	ranks    []int

	ready chan struct{} // closed when hello is sent: from then on anybody may write upstream
	done  chan struct{} // closed when Run has ended

	writing sync.Mutex // held while writing upstream; never taken with mu held

	mu       sync.Mutex
	slots    map[int]*slot
	cache    map[string]string   // what the local ranks and, up to the last barrier, everybody has put
	cached   *quota              // bounds cache
	pending  batch               // local puts that the server has not seen
	barriers map[string]*barrier // that local ranks are in
	attrs    map[string]string   // PMI-2's node attributes
	attrPut  chan struct{}       // closed, and made anew, when one is put
	err      error               // why done is closed
}

// slot is what the proxy knows of a local rank.
type slot struct {
	rank   int
	served bool
	state  State
	quota  *quota       // of its puts
	closed bool         // its connection is closed, and the server was told
	answer chan message // the answer to its one question that is under way
	faults int          // reported so far
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
		cached:   newQuota(rankQuota * (1 + max(1, min(g.Size, MaxSize)))), // of all ranks, and of what was preput
		barriers: map[string]*barrier{},
		attrs:    map[string]string{},
		attrPut:  make(chan struct{}),
	}
	for _, r := range local {
		p.slots[r] = &slot{rank: r, quota: newQuota(rankQuota), answer: make(chan message, 1)}
	}
	for _, pair := range g.initial() {
		p.cache[pair.Key] = pair.Value
	}
	return p
}

// Environ is what a local rank must find in its environment to talk to ServeRank: descriptor fd is the other end of the
// connection given to it. MPIR_CVAR_CH3_INTERFACE_HOSTNAME, which names the clone's address for MPICH's ch3 builds, is the
// caller's to add.
func (p *Proxy) Environ(rank, fd int) ([]string, error) {
	env, err := p.environ(rank)
	return append([]string{fmt.Sprintf("PMI_FD=%d", fd)}, env...), err
}

// environ is what a rank finds in its environment, however it connects.
func (p *Proxy) environ(rank int) ([]string, error) {
	at := slices.Index(p.ranks, rank)
	if at < 0 {
		return nil, fmt.Errorf("rank %d of group %s is not on this clone", rank, p.group.KVSName)
	}
	env := []string{
		fmt.Sprintf("PMI_RANK=%d", rank),
		fmt.Sprintf("PMI_SIZE=%d", p.group.Size),
		fmt.Sprintf("MPI_LOCALRANKID=%d", at),
		fmt.Sprintf("MPI_LOCALNRANKS=%d", len(p.ranks)),
	}
	if p.group.Spawner != "" {
		env = append(env, "PMI_SPAWNED=1")
	}
	return env, nil
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
	case kindAnswer, kindSpawned:
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
		return p.learn(m.pairs)
	case kindBarrierOut:
		return p.barrierOut(m)
	default:
		return fmt.Errorf("the launcher sent a %s message, which is not its to send", m.kind)
	}
	return nil
}

// learn takes pairs of the server into the cache. A local rank that has put one of the keys since is right for now: the
// next barrier settles it for all.
func (p *Proxy) learn(pairs []Pair) error {
	for _, pair := range pairs {
		if p.pending.holds(pair.Key) {
			continue
		}
		if err := p.cached.take(pair); err != nil {
			return fmt.Errorf("the launcher: %w", err)
		}
		p.remember(pair)
	}
	return nil
}

// remember takes a pair into the cache.
func (p *Proxy) remember(pair Pair) {
	if space, ok := destroyedSpace(pair.Key); ok {
		for key := range p.cache {
			if strings.HasPrefix(key, space+" ") {
				delete(p.cache, key)
			}
		}
	}
	p.cache[pair.Key] = pair.Value
}

// send writes one message upstream.
func (p *Proxy) send(m message) error { return p.write(appendFrame(nil, m)) }

func (p *Proxy) write(frames []byte) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return p.writeLocked(frames)
}

// writeLocked is write with p.writing held.
func (p *Proxy) writeLocked(frames []byte) error {
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

// put takes a local rank's pair: its neighbours see it now, the other clones after the next barrier.
func (p *Proxy) put(s *slot, pair Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := s.quota.take(pair); err != nil {
		return err
	}
	p.remember(pair)
	p.pending.put(pair)
	return nil
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

// lost is the error of a rank whose proxy has ended.
func (p *Proxy) lost() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return errors.New("the PMI proxy has ended")
}
