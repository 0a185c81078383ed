package mcdist

import (
	"fmt"
	"slices"
	"time"
)

const (
	maxOffers = 256              // that wait for their slice to be opened, for each origin
	offerTime = 30 * time.Second // after which such an offer is forgotten
)

// Push has blocks of a slice that this node serves sent to other hosts, in bulk. Nobody waits, and it returns at once. The
// hosts are told which blocks, and fetch those that they have not got: from here or, with a tree, from each other.
func (n *Node) Push(id ID, to []int, blocks []int64) error {
	n.mu.Lock()
	s := n.served[key{id: id}]
	n.mu.Unlock()
	if s == nil {
		return fmt.Errorf("push slice %v: it is not served here", id)
	}
	var spans []span
	for _, b := range blocks {
		if b < 0 || b >= maxBlocks {
			return fmt.Errorf("push slice %v: there is no block %d", id, b)
		}
		spans = extend(spans, b)
	}
	if sender := n.sender(); sender != nil && n.distributes(Multicast) {
		if err := sender.Push(id, blocks); err != nil {
			return fmt.Errorf("push slice %v: %w", id, err)
		}
	}
	for part := range slices.Chunk(spans, maxSpans) {
		n.offer(&offer{id: id, to: to, spans: part})
	}
	return nil
}

// offer tells the receivers.
func (n *Node) offer(o *offer) {
	o.to = n.receivers(o.to)
	for _, host := range o.to {
		n.lane(host, urgent).ask(&query{
			send: o.append, expect: kindDone, limit: n.config.Patience, done: make(chan struct{}),
		})
	}
}

// receivers returns the other hosts in a list, each once.
func (n *Node) receivers(to []int) (hosts []int) {
	seen := map[int]bool{n.config.Self: true}
	for _, host := range to {
		if host >= 0 && host < len(n.config.Hosts) && !seen[host] {
			seen[host] = true
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// offered is told what an origin wants this node to fetch.
func (in *inbound) offered(f *frame) error {
	o, err := f.offer()
	if err != nil {
		return err
	}
	n := in.node
	for _, host := range o.to {
		if host < 0 || host >= len(n.config.Hosts) {
			return fmt.Errorf("%w: an offer to host number %d", errFrame, host)
		}
	}
	if o.object {
		// If it cannot be, Receive will say so.
		_, _ = n.receive(in.from, o.id, o.about, o.to)
	} else {
		n.mu.Lock()
		open := n.fetches[key{id: o.id}]
		if open == nil {
			n.keepOffer(in.from, o)
		}
		n.mu.Unlock()
		// Who listens is sent it by multicast anyway, as soon as the switches have heard that it listens. It asks all the
		// same, for what it has missed: asking for what is on its way costs the origin nothing.
		if open != nil && open.origin == in.from {
			open.takeOffer(o)
		}
	}
	in.write(appendBare(nil, kindDone, f.number))
	return nil
}

func (f *Fetch) takeOffer(o *offer) {
	f.join(o.to)
	f.need(o.spans)
}

// kept is an offer of a slice that was not opened yet.
type kept struct {
	offer *offer
	from  int
	until time.Time
}

// keepOffer keeps an offer for Open. The node's lock is held.
func (n *Node) keepOffer(from int, o *offer) {
	now, same := time.Now(), 0
	n.offers = slices.DeleteFunc(n.offers, func(k kept) bool { return k.until.Before(now) })
	for _, k := range n.offers {
		if k.from == from {
			same++
		}
	}
	if same < maxOffers {
		n.offers = append(n.offers, kept{o, from, now.Add(offerTime)})
	}
}

// keptOffers returns the offers of a slice that is being opened.
func (n *Node) keptOffers(f *Fetch) (found []*offer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.offers = slices.DeleteFunc(n.offers, func(k kept) bool {
		if k.offer.id != f.id || k.from != f.origin {
			return false
		}
		found = append(found, k.offer)
		return true
	})
	return found
}
