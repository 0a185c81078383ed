package pmix

import (
	"fmt"
	"slices"
	"strings"
)

// meeting is a fence, a connect or a disconnect under way: what several nodes do together.
type meeting struct {
	kind     kind
	procs    []Proc
	expected []*Node // in the order of jobs' names and places
	came     map[*Node]arrival
	bytes    int
}

// arrival is what a node brought to a meeting.
type arrival struct {
	id   uint32
	data []byte
}

// meet lets a node take part in a meeting. The same processes may have several of one kind under way: each node takes part
// in them in order.
func (s *Server) meet(n *Node, d *decoder) error {
	a, procs := arrival{id: d.number()}, d.procs()
	if d.kind == kindFence {
		a.data = d.bytes()
	}
	if err := d.end(); err != nil {
		return err
	}
	slices.SortFunc(procs, compareProcs)
	signature := signature(d.kind, procs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.begin(); err != nil {
		return err
	}
	nodes, how := s.hosts(procs)
	if how != ok {
		n.answer(d.kind, a.id, how, nil)
		return nil
	}
	if !slices.Contains(nodes, n) {
		return fmt.Errorf("it takes part for ranks that are not its own")
	}
	if err := n.hold(len(a.data)); err != nil {
		return err
	}
	at := slices.IndexFunc(s.meetings[signature], func(m *meeting) bool { _, here := m.came[n]; return !here })
	if at < 0 {
		at = len(s.meetings[signature])
		s.meetings[signature] = append(s.meetings[signature], &meeting{kind: d.kind, procs: procs, expected: nodes, came: map[*Node]arrival{}})
	}
	m := s.meetings[signature][at]
	m.came[n] = a
	if m.bytes += len(a.data); m.bytes > maxTotal {
		s.conclude(signature, m, failed)
	} else if len(m.came) == len(m.expected) {
		s.conclude(signature, m, ok)
	}
	return nil
}

// conclude answers all that have come to a meeting. The caller holds s.mu.
func (s *Server) conclude(signature string, m *meeting, how outcome) {
	s.meetings[signature] = slices.DeleteFunc(s.meetings[signature], func(o *meeting) bool { return o == m })
	if len(s.meetings[signature]) == 0 {
		delete(s.meetings, signature)
	}
	var all []byte
	if how == ok && m.bytes > 0 {
		all = make([]byte, 0, m.bytes)
		for _, n := range m.expected {
			all = append(all, m.came[n].data...)
		}
	}
	for _, n := range m.expected {
		a, here := m.came[n]
		if !here {
			continue
		}
		n.held -= len(a.data)
		if m.kind == kindConnect && how == ok {
			for _, p := range m.procs {
				s.introduce(n, p.Namespace)
			}
		}
		n.answer(m.kind, a.id, how, all)
	}
}

// answer is the answer to one that takes part in a meeting. The caller holds server.mu.
func (n *Node) answer(k kind, id uint32, how outcome, data []byte) {
	if k == kindFence {
		n.data(id, how, data)
	} else {
		n.done(id, how)
	}
}

// hosts are the nodes that host any of procs. The caller holds s.mu.
func (s *Server) hosts(procs []Proc) ([]*Node, outcome) {
	var nodes []*Node
	for _, p := range procs {
		j := s.jobs[p.Namespace]
		if j == nil || p.Rank != Wildcard && (p.Rank < 0 || p.Rank >= len(j.at)) {
			return nil, notFound
		}
		for i, n := range j.nodes {
			if p.Rank != Wildcard && j.at[p.Rank] != i {
				continue
			}
			if n == nil || n.ended {
				return nil, lost
			}
			if !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes, ok
}

func compareProcs(a, b Proc) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return a.Rank - b.Rank
}

// signature tells meetings apart. procs are in order.
func signature(k kind, procs []Proc) string {
	var b strings.Builder
	fmt.Fprint(&b, k)
	for _, p := range procs {
		fmt.Fprintf(&b, " %s %d", p.Namespace, p.Rank)
	}
	return b.String()
}

// fetch is a direct modex under way.
type fetch struct {
	by   *Node
	id   uint32 // by's
	from *Node
}

// fetch asks the node of a rank for what the rank has put.
func (s *Server) fetch(n *Node, d *decoder) error {
	id, p := d.number(), d.proc()
	if err := d.end(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.begin(); err != nil {
		return err
	}
	nodes, how := s.hosts([]Proc{p})
	if how == ok && p.Rank == Wildcard {
		// What is of the whole job, its helpers know.
		how = notFound
	}
	if how != ok {
		n.data(id, how, nil)
		return nil
	}
	s.lastID++
	s.fetches[s.lastID] = &fetch{n, id, nodes[0]}
	nodes[0].enqueue(newFrame(kindFetch).number(s.lastID).number(uint32(p.Rank)).frame())
	return nil
}

// fetched passes the answer on.
func (s *Server) fetched(n *Node, d *decoder) error {
	id, how, data := d.number(), outcome(d.number()), d.bytes()
	if err := d.end(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fetches[id]
	if f == nil {
		return nil // who asked is gone
	}
	if f.from != n {
		return fmt.Errorf("it answers what another node was asked")
	}
	delete(s.fetches, id)
	f.by.data(f.id, how, data)
	return nil
}

// leave fails all that waits for a node whose stream has ended.
func (s *Server) leave(n *Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.ended, n.out = true, nil
	close(n.over)
	for sig, list := range s.meetings {
		for _, m := range slices.Clone(list) {
			if slices.Contains(m.expected, n) {
				s.conclude(sig, m, lost)
			}
		}
	}
	for id, f := range s.fetches {
		switch {
		case f.by == n:
			delete(s.fetches, id)
		case f.from == n:
			delete(s.fetches, id)
			f.by.data(f.id, lost, nil)
		}
	}
	s.names.leave(n)
}
