package sfld

import (
	"context"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
)

// succeed has the process started in which a machine goes on after its next
// fork, once.
func (e *Engine) succeed(m *machine) *successor {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.next != nil {
		return m.next
	}
	s := &successor{ready: make(chan struct{})}
	if m.ended {
		s.err = fmt.Errorf("fork %s: it is gone", m.Name)
		close(s.ready)
		return s
	}
	s.generation = e.newGenerationLocked(m.host)
	m.next = s
	e.background.Go(func() {
		s.err = m.host.Succeed(e.ctx, m.Member, s.generation.name)
		close(s.ready)
	})
	return s
}

// freeze forks a machine. What it was at that instant is the generation
// returned, for the caller to release. After an error it goes on as before.
func (e *Engine) freeze(ctx context.Context, m *machine) (*generation, carrier.Frozen, error) {
	m.forking.Lock()
	defer m.forking.Unlock()
	s := e.succeed(m)
	select {
	case <-s.ready:
	case <-ctx.Done():
		return nil, carrier.Frozen{}, fmt.Errorf("fork %s: wait for its successor to start: %w", m.Name, ctx.Err())
	}
	f, err := carrier.Frozen{}, s.err
	if err == nil {
		e.freezing(m, true)
		f, err = m.host.Freeze(ctx, m.Member)
		e.freezing(m, false)
	}
	if err != nil {
		e.dismiss(m, s)
		return nil, f, err
	}
	e.mu.Lock()
	g, base := s.generation, m.base
	e.frozenLocked(g, f.Layers)
	g.uses++ // the machine's, beside the caller's
	m.base, m.next = g, nil
	e.mu.Unlock()
	e.pauses.Observe(f.Pause)
	e.release(base)
	return g, f, nil
}

func (e *Engine) freezing(m *machine, is bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.frozen = is
}

// dismiss forgets a generation that will never come.
func (e *Engine) dismiss(m *machine, s *successor) {
	e.mu.Lock()
	waits := m.next == s
	if waits {
		m.next = nil
	}
	e.mu.Unlock()
	if waits {
		e.release(s.generation)
	}
}
