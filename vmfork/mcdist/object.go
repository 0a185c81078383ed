package mcdist

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// MaxObject is the size of the largest object, in bytes.
const MaxObject = 1 << 30

// keepTime is how long a received object is kept for those that it is relayed to.
const keepTime = 30 * time.Second

// object is data that was published.
type object struct {
	about about
	data  []byte
}

func (o *object) Size() int64 { return int64(len(o.data)) }

// ReadBlocks fills the last block up with zeros.
func (o *object) ReadBlocks(dst []byte, first int64) error {
	clear(dst[copy(dst, o.data[first*slice.BlockSize:]):])
	return nil
}

// Arrive makes an object a Sink while it is received.
func (o *object) Arrive(p []byte, first int64) error {
	copy(o.data[first*slice.BlockSize:], p)
	return nil
}

// Publish makes data, at most MaxObject bytes, available to Receive under an id, until Withdraw. The hosts in to are told
// at once, and fetch it before they are asked to: all at once by multicast, or along a tree. Others may receive it too. The
// data must not be changed any more.
func (n *Node) Publish(id ID, data []byte, to []int) error {
	if len(data) > MaxObject {
		return fmt.Errorf("publish object %v: %d bytes are more than %d", id, len(data), MaxObject)
	}
	o := &object{about{int64(len(data)), sha256.Sum256(data)}, data}
	if err := n.serve(key{id, true}, o); err != nil {
		return fmt.Errorf("publish object %v: %w", id, err)
	}
	d := n.distribution()
	select { // the hosts are told at once whatever becomes of it, and a moment later if that makes one transmission do
	case <-d.decided:
	case <-time.After(decideTime):
	}
	if sender := n.sender(); sender != nil && len(data) > 0 {
		_ = sender.Publish(id, data, to) // a larger one than it takes goes by unicast
	}
	n.mu.Lock()
	askers := n.askers[id]
	delete(n.askers, id)
	n.mu.Unlock()
	for a := range askers {
		n.start(func() { a.tell(o.about) })
	}
	n.offer(&offer{id: id, object: true, about: o.about, to: to})
	return nil
}

// Receive returns an object as soon as its origin has published it and it is here whole. It waits until then for as long
// as ctx allows. The object must not be changed.
func (n *Node) Receive(ctx context.Context, origin int, id ID) ([]byte, error) {
	data, err := n.take(ctx, origin, id)
	if err != nil {
		return nil, fmt.Errorf("receive object %v: %w", id, err)
	}
	return data, nil
}

func (n *Node) take(ctx context.Context, origin int, id ID) ([]byte, error) {
	if origin == n.config.Self || origin < 0 || origin >= len(n.config.Hosts) {
		return nil, fmt.Errorf("it cannot come from host number %d", origin)
	}
	n.mu.Lock()
	r := n.objects[id]
	n.mu.Unlock()
	if r == nil {
		reply, err := n.query(ctx, origin, &query{
			send:   func(buf []byte, number uint32) []byte { return appendBare(buf, kindAsk, number, id[:]...) },
			expect: kindObject,
		})
		if err != nil {
			return nil, fmt.Errorf("host %s has not published it: %w", n.name(origin), err)
		}
		about, err := parseAbout(reply)
		if err != nil {
			return nil, err
		}
		if r, err = n.receive(origin, id, about, nil); err != nil {
			return nil, err
		}
	}
	select {
	case <-r.done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("it is on its way from host %s: %w", n.name(origin), context.Cause(ctx))
	}
}

// receipt is an object that is received, or was.
type receipt struct {
	*object
	fetch *Fetch
	done  chan struct{}
	err   error // once done is closed
}

// receive begins to fetch an object, unless that was done before. to is the list of receivers for a tree; nil is nobody else.
func (n *Node) receive(origin int, id ID, about about, to []int) (*receipt, error) {
	r := &receipt{object: &object{about: about}, done: make(chan struct{})}
	r.fetch = newFetch(n, origin, id, about.size, r)
	r.fetch.object = true
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.objects[id]; old != nil {
		r.fetch.cancel()
		return old, nil
	}
	held := about.size
	for _, other := range n.objects {
		held += other.about.size
	}
	switch {
	case n.closed:
		r.fetch.cancel()
		return nil, ErrClosed
	case held > 2*MaxObject:
		r.fetch.cancel()
		return nil, fmt.Errorf("%d bytes of objects are here already", held-about.size)
	}
	n.objects[id] = r
	n.running.Go(func() { n.finish(id, r, to) })
	return r, nil
}

// finish fetches an object and wakes those who wait for it. It is kept for a while, for relaying.
func (n *Node) finish(id ID, r *receipt, to []int) {
	check := func() error {
		if sum := sha256.Sum256(r.data); sum != r.about.sum {
			return fmt.Errorf("what came from host %s has the SHA-256 %x instead of %x", n.name(r.fetch.origin), sum[:4], r.about.sum[:4])
		}
		return nil
	}
	data, err := n.castObject(r.fetch.ctx, r.fetch.origin, id, r.about.size)
	if err == nil {
		r.data = data
		err = check()
	}
	if err != nil { // it comes without multicast, too
		r.data = make([]byte, r.about.size)
		if err = r.fetch.whole(to); err == nil {
			err = check()
		}
	}
	forget := func() {
		n.mu.Lock()
		if n.objects[id] == r {
			delete(n.objects, id)
		}
		n.mu.Unlock()
		r.fetch.Close()
	}
	if err != nil {
		forget() // first, for it may be read until then
		r.err, r.data = err, nil
	} else {
		time.AfterFunc(keepTime, forget)
	}
	close(r.done)
}

// whole fetches all blocks.
func (f *Fetch) whole(to []int) error {
	if err := f.node.addFetch(f); err != nil {
		return err
	}
	f.join(to)
	return f.Prefetch(f.ctx, blocksOf(span{0, f.blocks}))
}

// asker is a request for an object that was not published yet.
type asker struct {
	in     *inbound
	number uint32
}

// ask answers a question about an object, or keeps it until there is an answer.
func (in *inbound) ask(f *frame) error {
	id, err := f.id()
	if err != nil {
		return err
	}
	a := asker{in, f.number}
	n := in.node
	n.mu.Lock()
	if s := n.served[key{id, true}]; s != nil {
		about := s.source.(*object).about
		n.mu.Unlock()
		a.tell(about)
		return nil
	}
	defer n.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.asks) >= maxAsks {
		return fmt.Errorf("%w: more than %d objects are waited for", errFrame, maxAsks)
	}
	in.asks[f.number] = id
	if n.askers[id] == nil {
		n.askers[id] = make(map[asker]struct{})
	}
	n.askers[id][a] = struct{}{}
	return nil
}

// tell answers the question.
func (a asker) tell(about about) {
	a.in.mu.Lock()
	delete(a.in.asks, a.number)
	a.in.mu.Unlock()
	a.in.write(end(about.append(begin(nil, kindObject, 0, a.number)), 0))
}

// forgetAsker removes a question. The node's lock is held.
func (n *Node) forgetAsker(id ID, a asker) {
	delete(n.askers[id], a)
	if len(n.askers[id]) == 0 {
		delete(n.askers, id)
	}
}
