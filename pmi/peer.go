package pmi

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// peer is the proxy at the other end of one Serve.
type peer struct {
	conn     io.ReadWriteCloser
	ranks    []int
	greeted  bool   // its hello was right
	open     int    // ranks whose connection is not closed yet
	barriers int    // that it is in
	seen     uint64 // up to which moment it knows the KVS
	quota    *quota
	out      chan []byte // frames to write; nobody waits to put one in
	err      error       // the first thing that went wrong
}

// send queues frames for a peer.
func (s *Server) send(p *peer, frames []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue(p, frames)
}

// enqueue is send with s.mu held. It never waits: one slow clone must not hold up the others' barrier.
func (s *Server) enqueue(p *peer, frames []byte) {
	select {
	case p.out <- frames:
	default:
		s.failLocked(p, fmt.Errorf("the agent of ranks %s asks without reading the answers", formatRanks(p.ranks)))
	}
}

// retire ends the peer's queue: what is in it is still written.
func (s *Server) retire(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, p)
	close(p.out)
}

// fail notes why the peer's stream has to end, and ends it.
func (s *Server) fail(p *peer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(p, err)
}

func (s *Server) failLocked(p *peer, err error) {
	if p.err == nil {
		p.err = err
		go interrupt(p.conn) // not here: closing may wait, and s.mu is held
	}
}

// failure is what fail noted.
func (s *Server) failure(p *peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.err
}

// write sends what is queued for the peer, until the queue ends or the stream does.
func (s *Server) write(p *peer) {
	for frames := range p.out {
		if _, err := p.conn.Write(frames); err != nil {
			s.fail(p, fmt.Errorf("write to the agent while %s: %w", s.waitingFor(p), err))
			return
		}
	}
}

// waitingFor says what the peer's ranks were doing, for errors.
func (s *Server) waitingFor(p *peer) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var open []int
	for _, r := range p.ranks {
		if !s.ranks[r].gone {
			open = append(open, r)
		}
	}
	if !p.greeted {
		return "its hello was awaited"
	}
	for _, g := range s.gatherings {
		if slices.Contains(g.in, p) {
			return fmt.Sprintf("ranks %s waited in barrier %s for ranks %s", formatRanks(g.members.of(p.ranks)), hearsay.Clip(g.members.name),
				formatRanks(s.absent(g)))
		}
	}
	return fmt.Sprintf("ranks %s were connected", formatRanks(open))
}

// absent lists the ranks for which a barrier waits, with s.mu held.
func (s *Server) absent(g *gathering) []int {
	var absent []int
	for r := range s.ranks {
		if len(g.members.of([]int{r})) > 0 && !slices.Contains(g.in, s.ranks[r].peer) {
			absent = append(absent, r)
		}
	}
	return absent
}

// interrupt makes reads and writes on conn return. Closing alone does not do it for every stream (yamux goes on reading
// after its own Close), so the deadline goes first where there is one.
func interrupt(conn io.ReadWriteCloser) {
	if d, ok := conn.(interface{ SetDeadline(time.Time) error }); ok {
		_ = d.SetDeadline(time.Unix(1, 0))
	}
	_ = conn.Close()
}
