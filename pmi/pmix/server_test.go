package pmix

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/pmi"
)

// say hands the Server a frame of a node.
func say(t *testing.T, n *Node, e *encoder) {
	t.Helper()
	if err := hand(n, e); err != nil {
		t.Fatal(err)
	}
}

func hand(n *Node, e *encoder) error {
	d, err := readFrame(bytes.NewReader(e.frame()))
	if err != nil {
		return err
	}
	return n.server.handle(n, d)
}

// heard takes the next frame that the Server has for a node; nil for none.
func heard(n *Node) *decoder {
	n.server.mu.Lock()
	defer n.server.mu.Unlock()
	r := bytes.NewReader(bytes.Join(n.out, nil))
	d, err := readFrame(r)
	if err != nil {
		return nil
	}
	rest, _ := io.ReadAll(r)
	n.out = nil
	if len(rest) > 0 {
		n.out = [][]byte{rest}
	}
	return d
}

// expect asserts what the next frame for a node is.
func expect(t *testing.T, n *Node, want *encoder) {
	t.Helper()
	d := heard(n)
	w := want.frame()
	if d == nil || d.kind != kind(w[4]) || !bytes.Equal(d.b, w[5:]) {
		t.Errorf("node %d of %s heard %+v, expected %q", n.place, n.job.Namespace, d, w)
	}
}

func two(t *testing.T, s *Server, namespace string) (a, b *Node) {
	n := nodesOf(t, s, Job{Namespace: namespace, Places: []Place{{"h1", []int{0, 1}}, {"h2", []int{2}}}, Apps: []App{{Ranks: 3}}})
	return n[0], n[1]
}

func fence(id uint32, data string, procs ...Proc) *encoder {
	e := newFrame(kindFence).number(id).number(uint32(len(procs)))
	for _, p := range procs {
		e.proc(p)
	}
	return e.string(data)
}

func answered(id uint32, how outcome, data string) *encoder {
	return newFrame(kindData).number(id).number(uint32(how)).string(data)
}

func TestFence(t *testing.T) {
	s := NewServer(Events{})
	a, b := two(t, s, "j")
	all := Proc{"j", Wildcard}
	// b is ahead: its second fence is not a's first.
	say(t, b, fence(7, "b1", all))
	say(t, b, fence(8, "b2", all))
	if d := heard(b); d != nil {
		t.Errorf("an answer before all were there: %+v", d)
	}
	say(t, a, fence(1, "a1", all))
	expect(t, a, answered(1, ok, "a1b1"))
	expect(t, b, answered(7, ok, "a1b1"))
	say(t, a, fence(2, "a2", all))
	expect(t, a, answered(2, ok, "a2b2"))
	expect(t, b, answered(8, ok, "a2b2"))
	// Ranks of one node only, in another order.
	say(t, a, fence(3, "x", Proc{"j", 1}, Proc{"j", 0}))
	expect(t, a, answered(3, ok, "x"))
	if a.held != 0 || a.waiting != 0 {
		t.Errorf("%d bytes and %d operations are kept", a.held, a.waiting)
	}
	say(t, a, fence(4, "", Proc{"k", 0}))
	expect(t, a, answered(4, notFound, ""))
	if err := hand(b, fence(9, "", Proc{"j", 0})); err == nil {
		t.Error("a node took part for another's rank")
	}
}

func TestNodeIsLost(t *testing.T) {
	s := NewServer(Events{})
	a, b := two(t, s, "j")
	say(t, a, fence(1, "a", Proc{"j", Wildcard}))
	say(t, a, newFrame(kindDmodex).number(2).proc(Proc{"j", 2}))
	s.leave(b)
	expect(t, a, answered(1, lost, ""))
	expect(t, a, answered(2, lost, ""))
	say(t, a, fence(3, "a", Proc{"j", Wildcard}))
	expect(t, a, answered(3, lost, ""))
}

func TestDirectModex(t *testing.T) {
	s := NewServer(Events{})
	a, b := two(t, s, "j")
	say(t, a, newFrame(kindDmodex).number(5).proc(Proc{"j", 2}))
	d := heard(b)
	if d == nil || d.kind != kindFetch {
		t.Fatalf("b heard %+v", d)
	}
	id, rank := d.number(), d.number()
	if rank != 2 {
		t.Errorf("rank %d was asked for", rank)
	}
	if err := hand(a, newFrame(kindModex).number(id).number(0).string("mine")); err == nil {
		t.Error("another node's answer was taken")
	}
	say(t, b, newFrame(kindModex).number(id).number(0).string("card"))
	expect(t, a, answered(5, ok, "card"))
}

func published(id, rank, persistence uint32, key, value string) *encoder {
	return newFrame(kindPublish).number(id).number(rank).number(4).number(persistence).number(1).string(key).string(value)
}

func wanted(id, rank, wait, seconds uint32, keys ...string) *encoder {
	e := newFrame(kindLookup).number(id).number(rank).number(4).number(wait).number(seconds).number(uint32(len(keys)))
	for _, k := range keys {
		e.string(k)
	}
	return e
}

func TestNames(t *testing.T) {
	s := NewServer(Events{})
	a, b := two(t, s, "j")
	done := func(id uint32, how outcome) *encoder { return newFrame(kindDone).number(id).number(uint32(how)) }
	found := func(id uint32, key, value string) *encoder {
		return newFrame(kindFound).number(id).number(uint32(ok)).number(1).proc(Proc{"j", 1}).string(key).string(value)
	}
	none := func(id uint32, how outcome) *encoder {
		return newFrame(kindFound).number(id).number(uint32(how)).number(0)
	}
	say(t, b, wanted(1, 2, 0, 0, "k"))
	expect(t, b, none(1, notFound))
	say(t, b, wanted(2, 2, 1, 0, "k")) // waits
	say(t, a, published(1, 1, 0, "k", "v"))
	expect(t, a, done(1, ok))
	expect(t, b, found(2, "k", "v"))
	say(t, a, published(2, 0, 0, "k", "w"))
	expect(t, a, done(2, duplicate))
	say(t, a, newFrame(kindUnpublish).number(3).number(0).number(4).number(1).string("k"))
	expect(t, a, done(3, notFound)) // it is rank 1's
	say(t, a, newFrame(kindUnpublish).number(4).number(1).number(4).number(1).string("k"))
	expect(t, a, done(4, ok))
	say(t, a, published(5, 1, persistFirstRead, "once", "v"))
	expect(t, a, done(5, ok))
	say(t, b, wanted(6, 2, 0, 0, "once"))
	expect(t, b, found(6, "once", "v"))
	say(t, b, wanted(7, 2, 0, 0, "once"))
	expect(t, b, none(7, notFound))
	say(t, b, wanted(8, 2, 1, 1, "never"))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if d := heard(b); d != nil {
			if d.number(); outcome(d.number()) != timedOut {
				t.Error("a lookup that waited too long was answered otherwise")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a lookup waits for ever")
		}
	}
	if a.held != 0 {
		t.Errorf("%d bytes are kept", a.held)
	}
}

func TestConnectIntroduces(t *testing.T) {
	s := NewServer(Events{})
	a, b := two(t, s, "j")
	c, d := two(t, s, "k")
	for i, n := range []*Node{a, b, c, d} {
		say(t, n, newFrame(kindConnect).number(uint32(i)).number(2).proc(Proc{"k", Wildcard}).proc(Proc{"j", Wildcard}))
	}
	for i, n := range []*Node{a, b, c, d} {
		if f := heard(n); f == nil || f.kind != kindJob {
			t.Errorf("node %d does not know the other job: %+v", i, f)
		}
		expect(t, n, newFrame(kindDone).number(uint32(i)).number(uint32(ok)))
	}
}

func TestStates(t *testing.T) {
	var began []Proc
	s := NewServer(Events{Init: func(p Proc) { began = append(began, p) }})
	a, b := two(t, s, "j")
	say(t, a, newFrame(kindConnected).number(1))
	if got := s.RankState(Proc{"j", 1}); got != pmi.Initialized || len(began) != 1 {
		t.Errorf("connected: %v, %v", got, began)
	}
	say(t, a, newFrame(kindFinalized).number(1))
	if got := s.RankState(Proc{"j", 1}); got != pmi.Finalized {
		t.Errorf("finalized: %v", got)
	}
	if got := s.RankState(Proc{"j", 2}); got != pmi.NotStarted {
		t.Errorf("not started: %v", got)
	}
	if err := hand(b, newFrame(kindFinalized).number(1)); err == nil {
		t.Error("a node spoke for another's rank")
	}
}

func TestBounds(t *testing.T) {
	s := NewServer(Events{})
	a, _ := two(t, s, "j")
	value := strings.Repeat("x", 15<<20)
	var err error
	for i := uint32(0); i < 6 && err == nil; i++ {
		err = hand(a, published(i, 0, 0, strings.Repeat("k", int(i)+1), value))
	}
	if err == nil {
		t.Error("a node may publish without bounds")
	}
	b := nodesOf(t, s, Job{Namespace: "b", Places: []Place{{"h1", []int{0}}}, Apps: []App{{Ranks: 1}}})[0]
	err = nil
	for i := uint32(0); i < maxWaiting+2 && err == nil; i++ {
		err = hand(b, wanted(i, 0, 1, 0, "never"))
	}
	if err == nil {
		t.Error("a node may wait without bounds")
	}
}

func TestValidate(t *testing.T) {
	good := Job{Namespace: "n", Places: []Place{{"h", []int{0}}}, Apps: []App{{Ranks: 1}}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Job){
		"no name":     func(j *Job) { j.Namespace = "" },
		"a space":     func(j *Job) { j.Namespace = "a b" },
		"host":        func(j *Job) { j.Places = []Place{{"a,b", []int{0}}} },
		"no rank":     func(j *Job) { j.Places = append(j.Places, Place{"i", nil}) },
		"twice":       func(j *Job) { j.Places = []Place{{"h", []int{0}}, {"i", []int{0}}} },
		"apps differ": func(j *Job) { j.Apps = []App{{Ranks: 2}} },
	} {
		j := good
		change(&j)
		if j.Validate() == nil {
			t.Errorf("%s: taken", what)
		}
	}
}
