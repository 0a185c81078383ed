package pmix

import (
	"slices"
	"time"
)

// PMIx's numbers of who may read what is published, and how long it stays.
const (
	rangeLocal     = 2
	rangeNamespace = 3
	rangeProcLocal = 7

	persistFirstRead = 1
)

// names is the name service of the jobs: what ranks publish and look up. Beside MPI_Publish_name, Open MPI finds the other
// side of MPI_Comm_connect and MPI_Comm_spawn by it. The Server's mu guards it.
type names struct {
	published []*publication
	lookups   []*lookup
}

// publication is one published value.
type publication struct {
	key         string
	value       []byte // as libpmix packs it
	by          Proc
	node        *Node
	rng         uint32
	persistence uint32
}

// visible tells whether a rank on a node may see it.
func (p *publication) visible(by Proc, n *Node) bool {
	switch p.rng {
	case rangeLocal:
		return p.node.job.Places[p.node.place].Name == n.job.Places[n.place].Name
	case rangeNamespace:
		return p.by.Namespace == by.Namespace
	case rangeProcLocal:
		return p.by == by
	}
	return true
}

// lookup waits for keys to be published.
type lookup struct {
	node  *Node
	id    uint32
	by    Proc
	keys  []string
	timer *time.Timer // or nil
}

// publish keeps values. A key that a reader could not tell from another is refused.
func (s *Server) publish(n *Node, d *decoder) error {
	id := d.number()
	by, err := n.own(d.number())
	if err != nil {
		return err
	}
	rng, persistence := d.number(), d.number()
	var fresh []*publication
	for range d.count(8) {
		fresh = append(fresh, &publication{key: d.string(), value: d.bytes(), by: by, node: n, rng: rng, persistence: persistence})
	}
	if err := d.end(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.begin(); err != nil {
		return err
	}
	for _, p := range fresh {
		taken := func(o *publication) bool { return o.key == p.key && o.rng == p.rng && o.visible(by, n) }
		if slices.ContainsFunc(s.names.published, taken) {
			n.done(id, duplicate)
			return nil
		}
	}
	for _, p := range fresh {
		if err := n.hold(len(p.key) + len(p.value)); err != nil {
			return err
		}
	}
	s.names.published = append(s.names.published, fresh...)
	n.done(id, ok)
	for _, l := range slices.Clone(s.names.lookups) {
		if found := s.names.find(l); len(found) == len(l.keys) {
			s.names.settle(l, ok, found)
		}
	}
	return nil
}

// lookup finds values, or waits for them.
func (s *Server) lookup(n *Node, d *decoder) error {
	id := d.number()
	by, err := n.own(d.number())
	if err != nil {
		return err
	}
	_ = d.number() // the range to search: each publication says itself who may see it
	wait, seconds, keys := d.number() != 0, d.number(), d.strings()
	if err := d.end(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.begin(); err != nil {
		return err
	}
	l := &lookup{node: n, id: id, by: by, keys: keys}
	found := s.names.find(l)
	s.names.lookups = append(s.names.lookups, l)
	switch {
	case len(found) == len(keys):
		s.names.settle(l, ok, found)
	case wait:
		if seconds > 0 {
			l.timer = s.after(seconds, func() {
				if slices.Contains(s.names.lookups, l) {
					s.names.settle(l, timedOut, nil)
				}
			})
		}
	case len(found) > 0:
		s.names.settle(l, partial, found)
	default:
		s.names.settle(l, notFound, nil)
	}
	return nil
}

// find returns the first publication of each key that there is.
func (ns *names) find(l *lookup) (found []*publication) {
	for _, key := range l.keys {
		at := slices.IndexFunc(ns.published, func(p *publication) bool { return p.key == key && p.visible(l.by, l.node) })
		if at >= 0 {
			found = append(found, ns.published[at])
		}
	}
	return found
}

// settle answers a lookup.
func (ns *names) settle(l *lookup, how outcome, found []*publication) {
	ns.lookups = slices.DeleteFunc(ns.lookups, func(o *lookup) bool { return o == l })
	if l.timer != nil {
		l.timer.Stop()
	}
	l.node.waiting--
	e := newFrame(kindFound).number(l.id).number(uint32(how)).number(uint32(len(found)))
	for _, p := range found {
		e.proc(p.by).string(p.key).bytes(p.value)
	}
	l.node.enqueue(e.frame())
	ns.remove(func(p *publication) bool { return p.persistence == persistFirstRead && slices.Contains(found, p) })
}

func (ns *names) remove(which func(*publication) bool) (removed bool) {
	ns.published = slices.DeleteFunc(ns.published, func(p *publication) bool {
		if !which(p) {
			return false
		}
		p.node.held -= len(p.key) + len(p.value)
		removed = true
		return true
	})
	return removed
}

// unpublish takes back what the rank has published: these keys, or all without any.
func (s *Server) unpublish(n *Node, d *decoder) error {
	id := d.number()
	by, err := n.own(d.number())
	if err != nil {
		return err
	}
	rng, keys := d.number(), d.strings()
	if err := d.end(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := n.begin(); err != nil {
		return err
	}
	removed := s.names.remove(func(p *publication) bool {
		return p.by == by && p.rng == rng && (len(keys) == 0 || slices.Contains(keys, p.key))
	})
	if removed || len(keys) == 0 {
		n.done(id, ok)
	} else {
		n.done(id, notFound)
	}
	return nil
}

// leave forgets the lookups of a node that is gone. What it published stays: the rank may have ended well.
func (ns *names) leave(n *Node) {
	ns.lookups = slices.DeleteFunc(ns.lookups, func(l *lookup) bool {
		if l.node == n && l.timer != nil {
			l.timer.Stop()
		}
		return l.node == n
	})
}
