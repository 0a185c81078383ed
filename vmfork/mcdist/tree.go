package mcdist

import (
	"errors"
	"slices"
)

// fanout is how many hosts a host relays to. The bulk comes at the rate of a link divided by it, and the last host has
// it after as many pieces as the tree is deep: with 2, 31 receivers are 5 deep.
const fanout = 2

var errRelay = errors.New("this relay does not fetch that any more")

// parent is whom a receiver asks: the one whose place in the list is its own divided by the fan-out, and the origin for
// the first ones. -1 stands for the origin.
func parent(to []int, self int) int {
	i := slices.Index(to, self)
	if i < fanout {
		return -1
	}
	return to[(i-fanout)/fanout]
}

// others are all hosts but one.
func (n *Node) others(origin int) (to []int) {
	for host := range n.config.Hosts {
		if host != origin {
			to = append(to, host)
		}
	}
	return to
}

// join takes a place in the tree over these receivers.
func (f *Fetch) join(to []int) {
	if !f.node.treeFrom(f.origin) {
		return
	}
	up := parent(to, f.node.config.Self)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up = f.origin; up >= 0 {
		f.up = up
	}
}

// relay lets a feed have what is here, and what is not as it comes. That is asked for, if it was not.
func (f *Fetch) relay(fd *feed, spans []span) {
	var here, need []span
	f.mu.Lock()
	for _, s := range spans {
		if f.closed || s.first+s.n > f.blocks {
			f.mu.Unlock()
			fd.leave()
			fd.giveUp(errRelay)
			return
		}
		for b := s.first; b < s.first+s.n; b++ {
			if f.have.Test(uint(b)) {
				here = extend(here, b)
				continue
			}
			need = extend(need, b)
			f.parked[b] = append(f.parked[b], fd)
		}
	}
	f.mu.Unlock()
	if len(here) > 0 {
		fd.in.mu.Lock()
		if fd.in.feeds[fd.number] == fd {
			fd.push(here...)
		}
		fd.in.mu.Unlock()
	}
	if len(need) > 0 {
		f.need(need)
	}
}

// unpark forgets a feed that waits.
func (f *Fetch) unpark(fd *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for b, all := range f.parked {
		all = slices.DeleteFunc(all, func(other *feed) bool { return other == fd })
		if f.parked[b] = all; len(all) == 0 {
			delete(f.parked, b)
		}
	}
}

// read makes a fetch a store for what it has.
func (f *Fetch) read(dst []byte, first int64) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return errRelay
	}
	f.arriving++
	f.mu.Unlock()
	err := f.store.ReadBlocks(dst, first)
	f.mu.Lock()
	if f.arriving--; f.arriving == 0 {
		f.idle.Broadcast()
	}
	f.mu.Unlock()
	return err
}
