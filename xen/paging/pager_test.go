package paging

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/xen/evtchn"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// soon is how long anything may take here.
const soon = 10 * time.Second

// fakeXen has frames that are out, and the other end of a ring.
type fakeXen struct {
	channel *evtchn.Channel
	ring    ring // the same page; its indices are Xen's

	mu       sync.Mutex
	memory   map[uint64][]byte // what is in
	paused   int
	disabled bool
	fail     error // of PageIn
}

func (f *fakeXen) PageIn(_ privcmd.Domain, frames []uint64, content []byte) (in int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, g := range frames {
		if f.memory[g] == nil {
			in++
			f.memory[g] = bytes.Clone(content[i*pageSize:][:pageSize])
		}
	}
	return in, f.fail
}

func (f *fakeXen) Pause(privcmd.Domain) error         { f.paused++; return nil }
func (f *fakeXen) Unpause(privcmd.Domain) error       { f.paused--; return nil }
func (f *fakeXen) DisablePaging(privcmd.Domain) error { f.disabled = true; return nil }

func entry(frame uint64, vcpu, flags, pagingFlags uint32) (e [entrySize]byte) {
	for at, v := range map[int]uint32{0: privcmd.PagingVersion, 4: flags, 8: reasonPaging, 12: vcpu, 36: pagingFlags} {
		le.PutUint32(e[at:], v)
	}
	le.PutUint64(e[24:], frame)
	return e
}

// ask puts a request into the ring, as Xen does.
func (f *fakeXen) ask(t *testing.T, e [entrySize]byte) {
	t.Helper()
	prod := atomic.LoadUint32(f.ring.index(requestProd))
	copy(f.ring.place(prod), e[:])
	atomic.StoreUint32(f.ring.index(requestProd), prod+1)
	if err := f.channel.Notify(); err != nil {
		t.Error(err)
	}
}

// answered waits until so many requests were, and returns the last.
func (f *fakeXen) answered(t *testing.T, n uint32) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for atomic.LoadUint32(f.ring.index(answerProd)) < n {
		if err := f.channel.Wait(ctx); err != nil {
			t.Fatalf("wait for %d answers: %v", n, err)
		}
	}
	return f.ring.place(n - 1)
}

// The guest of these tests: two pieces, of 40 and 8 frames.
var testPieces = []Piece{{0, 40, 0}, {0x100, 8, 40 * pageSize}}

const testSize = 48 * pageSize

// content is a memory file whose pages tell their numbers.
func content() []byte {
	b := make([]byte, testSize)
	for i := range b {
		b[i] = byte(i/pageSize + 1)
	}
	return b
}

func newPager(t *testing.T, memory interface {
	ReadAt(p []byte, off int64) (int, error)
}) (*Pager, *fakeXen) {
	t.Helper()
	ours, theirs, err := evtchn.Pair()
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, pageSize)
	x := &fakeXen{channel: theirs, ring: ring{page: page}, memory: map[uint64][]byte{}}
	p := &Pager{xen: x, memory: memory, pieces: testPieces, channel: ours, release: func() error { return nil }, ring: ring{page: page}, in: bitset.New(0)}
	p.ring.clear()
	t.Cleanup(func() { theirs.Close(); p.channel.Close() })
	return p, x
}

func serve(p *Pager) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

func TestPager(t *testing.T) {
	p, x := newPager(t, bytes.NewReader(content()))
	if err := p.bringEager(t.Context(), []uint64{0, 1, 39, 0x100, 0xfeffc}); err != nil {
		t.Fatal(err)
	}
	stop := serve(p)
	asked := entry(20, 3, flagStopped, 0)
	x.ask(t, asked)
	if got := x.answered(t, 1); !bytes.Equal(got, asked[:]) {
		t.Errorf("the answer is %x", got[:40])
	}
	x.ask(t, entry(21, 3, flagStopped, 0)) // a neighbour: it is in
	x.answered(t, 2)
	x.ask(t, entry(33, 0, 0, pagingDropped))
	x.answered(t, 3)
	for i := range uint32(20) { // more than the ring has places
		x.ask(t, entry(0x107, 1, flagStopped, 0))
		x.answered(t, 4+i)
	}
	if got, want := p.Counters(), (Counters{Requests: 23, Again: 20, Dropped: 1, Eager: 4, Touched: 16 + 7}); got != want {
		t.Errorf("the counters are %+v, want %+v", got, want)
	}
	if len(x.memory) != 4+16+7 || x.memory[16][0] != 17 || x.memory[0x107][0] != 48 || x.memory[33] != nil {
		t.Errorf("%d pages are in", len(x.memory))
	}
	if err := p.Finish(t.Context(), stop); err != nil {
		t.Fatal(err)
	}
	if len(x.memory) != 48 || x.memory[15][0] != 16 || !x.disabled || x.paused != 0 {
		t.Errorf("finished, %d pages are in, paging is disabled: %v, it is paused %d times", len(x.memory), x.disabled, x.paused)
	}
	if got := p.Counters().Remaining; got != 48-27 {
		t.Errorf("%d pages were left", got)
	}
}

// gated is a memory file whose pages come when they may.
type gated struct {
	*bytes.Reader
	gate func(off int64) error
}

func (g gated) ReadAt(p []byte, off int64) (int, error) {
	if err := g.gate(off); err != nil {
		return 0, err
	}
	return g.Reader.ReadAt(p, off)
}

// A page that is late holds up no other; and the same page is waited for by as many as like.
func TestLate(t *testing.T) {
	open := make(chan struct{})
	p, x := newPager(t, gated{bytes.NewReader(content()), func(off int64) error {
		if off == 0 {
			<-open
		}
		return nil
	}})
	stop := serve(p)
	x.ask(t, entry(2, 0, flagStopped, 0))
	x.ask(t, entry(3, 1, flagStopped, 0))
	x.ask(t, entry(17, 2, flagStopped, 0))
	if got := le.Uint32(x.answered(t, 1)[12:]); got != 2 {
		t.Errorf("the first answer is for vCPU %d", got)
	}
	close(open)
	x.answered(t, 3)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if c := p.Counters(); c.Touched != 32 || c.Requests != 3 {
		t.Errorf("the counters are %+v", c)
	}
}

// What cannot be brought ends the service, with a reason.
func TestLost(t *testing.T) {
	lost := errors.New("no such host")
	for name, c := range map[string]struct {
		read, page error
		entry      [entrySize]byte
		want       string
	}{
		"its page":         {read: lost, entry: entry(1, 0, flagStopped, 0), want: "read its memory file: no such host"},
		"Xen's memory":     {page: lost, entry: entry(1, 0, flagStopped, 0), want: "no such host"},
		"no such frame":    {entry: entry(0x50, 0, flagStopped, 0), want: "frame 0x50 is wanted, which the guest did not have"},
		"not of paging":    {entry: [entrySize]byte{0: privcmd.PagingVersion}, want: "an event has reason 0"},
		"of a later Xen's": {entry: [entrySize]byte{0: 8, 8: reasonPaging}, want: "an event has version 8, and 7 is known here"},
	} {
		p, x := newPager(t, gated{bytes.NewReader(content()), func(int64) error { return c.read }})
		x.fail = c.page
		x.ask(t, c.entry)
		ctx, cancel := context.WithTimeout(t.Context(), soon)
		if err := p.Serve(ctx); err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}

// FuzzRing: whatever is in the page, what is read of it has an end, and no answer is for nothing.
func FuzzRing(f *testing.F) {
	page := make([]byte, pageSize)
	e := entry(5, 1, flagStopped, 0)
	copy(page[ringHead:], e[:])
	le.PutUint32(page, 1)
	f.Add(page)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := ring{page: make([]byte, pageSize)}
		copy(r.page, b)
		n := 0
		for {
			q, ok, err := r.next()
			if err != nil || !ok {
				break
			}
			if n++; n > ringSlots {
				t.Fatalf("%d requests are in a ring of %d", n, ringSlots)
			}
			if q.frame != le.Uint64(q.entry[24:]) {
				t.Errorf("frame %#x", q.frame)
			}
		}
		if uint32(n) != r.consumed && uint32(n)+1 != r.consumed {
			t.Errorf("of %d consumed, %d are requests", r.consumed, n)
		}
	})
}
