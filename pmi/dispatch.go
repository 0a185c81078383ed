package pmi

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// handle does what one message asks for; done is true after the goodbye.
func (s *Server) handle(m message, p *peer) (done bool, err error) {
	switch m.kind {
	case kindPut:
		return false, s.put(p, m.pairs)
	case kindBarrierIn:
		return false, s.barrierIn(p, m.barrier, m.pairs)
	case kindInit, kindFinalize, kindClosed, kindAbort, kindFault, kindGet, kindPublish, kindUnpublish, kindLookup, kindSpawn:
	default:
		return false, fmt.Errorf("the agent sent a %s message, which is not its to send", m.kind)
	}
	if done, err = s.update(m, p); err != nil {
		return false, err
	}
	switch ev := s.events; {
	case m.kind == kindInit && ev.Init != nil:
		ev.Init(m.rank)
	case m.kind == kindFinalize && ev.Finalize != nil:
		ev.Finalize(m.rank)
	case m.kind == kindAbort && ev.Abort != nil:
		ev.Abort(m.rank, m.code, hearsay.Printable(m.text))
	case m.kind == kindFault && ev.Protocol != nil:
		ev.Protocol(m.rank, errors.New(hearsay.Printable(m.text)))
	case m.kind == kindSpawn:
		s.spawn(m, p)
	case m.kind == kindClosed:
		s.reportClosed(m.rank)
	}
	if done {
		s.send(p, appendFrame(nil, message{kind: kindBye}))
	}
	return done, nil
}

// update does what a message of one rank means for the state, and answers questions.
func (s *Server) update(m message, p *peer) (done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.rank >= len(s.ranks) || s.ranks[m.rank].peer != p || s.ranks[m.rank].gone {
		return false, fmt.Errorf("the agent sent %s for rank %d, which is not its own or is closed", m.kind, m.rank)
	}
	rank := &s.ranks[m.rank]
	switch m.kind {
	case kindInit:
		rank.state = Initialized
	case kindFinalize:
		rank.state = Finalized
	case kindClosed:
		rank.gone = true
		p.open--
		done = p.open == 0
	case kindGet:
		value, found := s.value(m.key)
		s.answer(p, message{rank: m.rank, found: found, value: value})
	case kindPublish, kindUnpublish, kindLookup:
		value, err := s.service(m)
		a := message{rank: m.rank, found: err == nil, value: value}
		if err != nil {
			a.text = err.Error()
		}
		s.answer(p, a)
	case kindSpawn:
		if err := checkSpawn(m.apps, m.pairs); err != nil {
			return false, fmt.Errorf("the agent of ranks %s: %w", formatRanks(p.ranks), err)
		}
		if rank.spawning {
			return false, fmt.Errorf("the agent sent a spawn of rank %d before the last was answered", m.rank)
		}
		rank.spawning = true
	}
	return done, nil
}

// answer queues an answer, with s.mu held.
func (s *Server) answer(p *peer, a message) {
	a.kind = kindAnswer
	s.enqueue(p, appendFrame(nil, a))
}

// value looks a key up, with s.mu held.
func (s *Server) value(key string) (string, bool) {
	if key == deadKey {
		return s.deadList(), true
	}
	return s.kvs.get(key)
}

// deadList is what MPICH reads under deadKey: ranks with commas between them, nothing if all live.
func (s *Server) deadList() string {
	var b strings.Builder
	for _, r := range s.dead {
		word := strconv.Itoa(r)
		if b.Len()+1+len(word) > MaxValue {
			break
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(word)
	}
	return b.String()
}

// MarkDead says that a rank has failed and that the others are to go on, as MPICH's programs that handle failures want it:
// they find it under PMI_dead_processes, where they look when they get SIGUSR1. It concerns nothing else.
func (s *Server) MarkDead(rank int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rank >= 0 && rank < len(s.ranks) && !slices.Contains(s.dead, rank) {
		s.dead = append(s.dead, rank)
	}
}

// service does what the name service is asked for.
func (s *Server) service(m message) (port string, err error) {
	switch m.kind {
	case kindPublish:
		if err := checkPort(m.value); err != nil {
			return "", err
		}
		return "", s.names.publish(m.service, m.value)
	case kindUnpublish:
		return "", s.names.unpublish(m.service)
	}
	return s.names.lookup(m.service)
}

// spawn hands a rank's wish to the launcher.
func (s *Server) spawn(m message, p *peer) {
	r := &SpawnRequest{Rank: m.rank, Apps: m.apps, Preput: m.pairs, spawner: s.group.KVSName}
	r.answer = func(kvsName string, errcodes []int, err error) {
		a := message{kind: kindSpawned, rank: m.rank, found: err == nil}
		switch {
		case err != nil:
			a.text = err.Error()
		case joinCodes(errcodes) == "":
			a.name = kvsName
		case len(errcodes) > maxSpawnCodes:
			a.found, a.text = false, fmt.Sprintf("error codes for %d ranks: at most %d are sent", len(errcodes), maxSpawnCodes)
		default:
			a.name, a.codes = kvsName, errcodes
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ranks[m.rank].spawning = false
		if _, served := s.peers[p]; served && !s.ranks[m.rank].gone { // nobody waits otherwise
			s.enqueue(p, appendFrame(nil, a))
		}
	}
	if s.events.Spawn == nil {
		r.Answer("", nil, errors.New("this launcher does not spawn"))
		return
	}
	s.events.Spawn(r)
}

// put takes pairs into the KVS.
func (s *Server) put(p *peer, pairs []Pair) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pair := range pairs {
		if err := p.quota.take(pair); err != nil {
			return fmt.Errorf("the agent of ranks %s: %w", formatRanks(p.ranks), err)
		}
		s.kvs.put(pair)
	}
	return nil
}

// gathering is a barrier that some proxies are in with all their members.
type gathering struct {
	members members
	in      []*peer
	entered int // ranks
}

// barrierIn notes that all members of a proxy are in a barrier, and lets everybody out when they are the last.
func (s *Server) barrierIn(p *peer, name string, pairs []Pair) error {
	if err := s.put(p, pairs); err != nil {
		return err
	}
	m, err := parseMembers(name, s.group.Size)
	if err != nil {
		return fmt.Errorf("the agent of ranks %s: %w", formatRanks(p.ranks), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gatherings[m.name]
	local := m.of(p.ranks)
	if m.node || len(local) == 0 || g != nil && slices.Contains(g.in, p) || p.barriers >= maxBarriers*len(p.ranks) {
		return fmt.Errorf("the agent of ranks %s entered barrier %s out of turn", formatRanks(p.ranks), hearsay.Clip(m.name))
	}
	if g == nil {
		g = &gathering{members: m}
		s.gatherings[m.name] = g
	}
	p.barriers++
	g.in = append(g.in, p)
	if g.entered += len(local); g.entered < m.size(s.group.Size) {
		return nil
	}
	delete(s.gatherings, m.name)
	// Everybody gets what is new to it, its own puts among that: this settles which value stays where two proxies put one
	// key. In a group whose barriers are of everybody that is the same for all, and is encoded once.
	encoded := map[uint64][]byte{}
	for _, q := range g.in {
		q.barriers--
		frames := encoded[q.seen]
		if frames == nil {
			frames = appendPairs(nil, message{kind: kindBarrierOut, barrier: m.name}, s.kvs.since(q.seen))
			encoded[q.seen] = frames
		}
		q.seen = s.kvs.count
		if _, served := s.peers[q]; served {
			s.enqueue(q, frames)
		}
	}
	return nil
}
