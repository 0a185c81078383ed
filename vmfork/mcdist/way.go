package mcdist

import (
	"context"
	"fmt"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist/multicast"
)

const (
	probePatience = 3 * time.Second // multicast takes at most 2 s to find out
	decideTime    = 50 * time.Millisecond
	fewHosts      = 4 // so many hosts make a tree worth while
)

// distribution is how this node distributes what it is the origin of.
type distribution struct {
	sender  *multicast.Sender // nil without multicast; guarded by the node's lock
	decided chan struct{}
	mode    Mode // once decided: not Auto
}

// Prepare finds out how to distribute, if that was not done: which hosts hear multicast. It returns at once. Serve and
// Publish call it; an origin that calls it as soon as the other hosts are there has the answer when it is needed.
func (n *Node) Prepare() { n.distribution() }

func (n *Node) distribution() *distribution {
	n.mu.Lock()
	d, line := n.dist, ""
	if d == nil {
		d, line = n.distribute()
		n.dist = d
	}
	n.mu.Unlock()
	if line != "" {
		n.notice(line)
	}
	return d
}

// distribute makes the distribution, and says what was found, if something was. The node's lock is held.
func (n *Node) distribute() (d *distribution, line string) {
	d = &distribution{decided: make(chan struct{}), mode: n.config.Mode}
	others := len(n.config.Hosts) - 1
	switch {
	case n.closed || others == 0:
		d.mode = Unicast
	case d.mode == Auto && others == 1:
		d.mode, line = Unicast, "one other host: using unicast"
	case d.mode == Auto || d.mode == Multicast:
		sender, err := multicast.NewSender(multicast.SenderConfig{
			Self: n.config.Self, Address: n.config.Hosts[n.config.Self].Address, Key: n.config.Key, Moved: n.moved,
		})
		if err != nil {
			d.mode = n.without()
			line = fmt.Sprintf("no multicast (%v): using %v", err, d.mode)
			break
		}
		d.sender = sender
		if d.mode == Multicast {
			close(d.decided)
		}
		n.running.Go(func() { n.probe(d) })
		return d, ""
	}
	close(d.decided)
	return d, line
}

// without is what there is instead of multicast.
func (n *Node) without() Mode {
	if len(n.config.Hosts) >= fewHosts {
		return Tree
	}
	return Unicast
}

// moved hears that a receiver is served by multicast no longer. It goes on by unicast without being told.
func (n *Node) moved(id ID, host int, err error) {
	if host >= 0 && host < len(n.config.Hosts) {
		n.notice(fmt.Sprintf("host %s gets slice %v by unicast: %v", n.name(host), id, err))
	}
}

// probe asks all hosts whether they hear this node's multicast, and decides.
func (n *Node) probe(d *distribution) {
	var id ID
	copy(id[:], "multicast probe")
	others := n.others(n.config.Self)
	// An object, so that those who hear it are in the group of all objects when the first descriptor comes.
	if err := d.sender.Publish(id, make([]byte, 1), others); err != nil {
		return // the sender was closed, and so was the node
	}
	defer d.sender.Withdraw(id)
	from, err := d.sender.Origin().MarshalBinary()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, probePatience)
	defer cancel()
	answers := make(chan bool, len(others))
	for _, host := range others {
		go func() {
			_, err := n.query(ctx, host, &query{
				send: func(buf []byte, number uint32) []byte {
					return appendBare(buf, kindProbe, number, append(id[:], from...)...)
				},
				expect: kindDone, limit: probePatience,
			})
			answers <- err == nil
		}()
	}
	heard := 0
	for range others {
		if <-answers {
			heard++
		}
	}
	mode := n.config.Mode
	if mode == Auto {
		// One receiver gains nothing by it. If most are deaf, the origin would serve them one by one.
		if mode = Multicast; heard < 2 || 2*heard < len(others) {
			mode = n.without()
		}
		d.mode = mode
		close(d.decided)
	}
	if n.ctx.Err() != nil {
		return
	}
	line := fmt.Sprintf("multicast reaches %d of %d hosts: using %v", heard, len(others), mode)
	if mode == Multicast && heard < len(others) {
		line += ", and unicast for the others"
	}
	n.notice(line)
	if mode != Multicast {
		n.mu.Lock()
		sender := d.sender
		d.sender = nil
		n.mu.Unlock()
		if sender != nil {
			sender.Close()
		}
	}
}

// probed answers a probe.
func (in *inbound) probed(f *frame) error {
	number := f.number
	if len(f.body) < len(ID{}) {
		return fmt.Errorf("%w: a probe of %d bytes", errFrame, len(f.body))
	}
	id, from, err := ID(f.body), multicast.Origin{}, error(nil)
	if err = from.UnmarshalBinary(f.body[len(id):]); err != nil {
		return fmt.Errorf("%w: a probe: %w", errFrame, err)
	}
	if !in.slowly(func() {
		r, err := in.node.receiver()
		if err == nil {
			ctx, cancel := context.WithTimeout(in.node.ctx, probePatience)
			defer cancel()
			_, err = r.Receive(ctx, from, id) // by multicast or not at all
		}
		in.node.listens(in.from, err == nil)
		in.node.wayOf(in.from) // is known when the first descriptor comes, and the lane is there
		if err != nil {
			in.write(appendRefuse(nil, number, refuseDeaf, err.Error()))
			return
		}
		in.write(appendBare(nil, kindDone, number))
	}) {
		return fmt.Errorf("%w: too many questions", errFrame)
	}
	return nil
}

// listens remembers whether an origin's multicast is heard here.
func (n *Node) listens(origin int, hears bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deafTo[origin] = !hears
}

func (n *Node) isDeafTo(origin int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.deafTo[origin]
}

// slowly runs what takes its time to answer. It reports whether there was room.
func (in *inbound) slowly(run func()) bool {
	select {
	case in.slow <- struct{}{}:
	default:
		return false
	}
	if !in.node.start(func() {
		run()
		<-in.slow
	}) {
		<-in.slow
	}
	return true
}

// tellWay answers how this node distributes, as soon as it knows.
func (in *inbound) tellWay(f *frame) error {
	number := f.number
	if !in.slowly(func() {
		n := in.node
		d := n.distribution()
		select {
		case <-d.decided:
		case <-n.ctx.Done():
			return
		}
		body := []byte{byte(d.mode)}
		n.mu.Lock()
		sender := d.sender
		n.mu.Unlock()
		if sender != nil {
			from, err := sender.Origin().MarshalBinary()
			if err != nil {
				return
			}
			body = append(body, from...)
		}
		in.write(appendBare(nil, kindWay, number, body...))
	}) {
		return fmt.Errorf("%w: too many questions", errFrame)
	}
	return nil
}

// distributes reports whether it is decided that this node distributes so.
func (n *Node) distributes(mode Mode) bool {
	d := n.distribution()
	select {
	case <-d.decided:
		return d.mode == mode
	default:
		return false
	}
}

// way is how another host distributes.
type way struct {
	known chan struct{}
	mode  Mode // once known: not Auto
	from  multicast.Origin
}

// wayOf returns how an origin distributes, or what will tell.
func (n *Node) wayOf(origin int) *way {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.ways[origin]; w != nil {
		return w
	}
	w := &way{known: make(chan struct{}), mode: n.config.Mode}
	n.ways[origin] = w
	if n.closed || w.mode == Unicast || w.mode == Tree {
		close(w.known)
		return w
	}
	n.running.Go(func() {
		defer close(w.known)
		reply, err := n.query(n.ctx, origin, &query{
			send:   func(buf []byte, number uint32) []byte { return appendBare(buf, kindWay, number) },
			expect: kindWay, limit: n.config.Patience,
		})
		if err == nil {
			err = w.parse(reply)
		}
		if err != nil { // the next who asks tries again
			w.mode = Unicast
			n.mu.Lock()
			delete(n.ways, origin)
			n.mu.Unlock()
		}
		if w.mode == Multicast {
			if r, err := n.receiver(); err == nil {
				_ = r.Attend(w.from) // ahead of the first object, which comes without it too
			}
		}
	})
	return w
}

func (w *way) parse(reply []byte) error {
	if len(reply) < 1 || Mode(reply[0]) == Auto || int(reply[0]) >= len(modes) {
		return fmt.Errorf("%w: an unknown way in %d bytes", errFrame, len(reply))
	}
	mode := Mode(reply[0])
	if mode == Multicast {
		if err := w.from.UnmarshalBinary(reply[1:]); err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
	}
	w.mode = mode
	return nil
}

// soon waits a moment until it is known, and says whether it is.
func (w *way) soon() bool {
	select {
	case <-w.known:
		return true
	default:
	}
	timer := time.NewTimer(decideTime)
	defer timer.Stop()
	select {
	case <-w.known:
		return true
	case <-timer.C:
		return false
	}
}

// treeFrom reports whether what comes from an origin in bulk goes along a tree, as far as is known.
func (n *Node) treeFrom(origin int) bool {
	w := n.wayOf(origin)
	select {
	case <-w.known:
		return w.mode == Tree
	default:
		return false
	}
}

// receiver returns this node's receiver of multicast.
func (n *Node) receiver() (*multicast.Receiver, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	if n.hears == nil {
		r, err := multicast.NewReceiver(multicast.ReceiverConfig{
			Self: n.config.Self, Address: n.config.Hosts[n.config.Self].Address, Key: n.config.Key,
		})
		if err != nil {
			return nil, err
		}
		n.hears = r
	}
	return n.hears, nil
}
