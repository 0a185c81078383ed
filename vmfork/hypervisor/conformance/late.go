package conformance

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// elsewhere serves the image as of another host, each block as gate lets it come.
type elsewhere struct {
	path string
	wait chan struct{} // a read that met a gate that is shut

	mu   sync.Mutex
	gate chan error // nil: open. An error that comes through is the read's.
}

func (p *Parent) far(t *testing.T, tap *memtap.Tap) *elsewhere {
	t.Helper()
	data, err := os.Open(p.memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	e := &elsewhere{wait: make(chan struct{}, 1)}
	var here *slice.Slice
	here, err = slice.Far(filepath.Join(t.TempDir(), "far"), p.image.Map(), func(ctx context.Context, first, n int64) error {
		if err := e.pass(ctx); err != nil {
			return err
		}
		blocks := make([]byte, n*slice.BlockSize)
		if _, err := data.ReadAt(blocks, first*slice.BlockSize); err != nil {
			return err
		}
		return here.Arrive(blocks, first)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	e.path = add(t, tap, here)
	return e
}

// pass waits at the gate.
func (e *elsewhere) pass(ctx context.Context) error {
	e.mu.Lock()
	gate := e.gate
	e.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case e.wait <- struct{}{}:
	default:
	}
	select {
	case err := <-gate: // nil when it was opened
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shut makes blocks wait for open, or for an error that is sent through the gate.
// At the test's end, before that of its machines, it is open again: nothing may
// wait for a machine for ever.
func (e *elsewhere) shut(t *testing.T) (gate chan<- error, open func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	both := make(chan error)
	e.gate = both
	open = sync.OnceFunc(func() { close(both) })
	t.Cleanup(open)
	return both, open
}

// waiting is a clone that waits for memory which another host has.
type waiting struct {
	*Machine
	gate     chan<- error
	open     func()
	restored <-chan error // what Restore returns
	letters  int          // that it was sent in its life
}

// awaited waits until a read has met the gate.
func (e *elsewhere) awaited(t *testing.T) {
	t.Helper()
	select {
	case <-e.wait:
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to want memory that does not come", soon)
	}
}

// fromTheStart makes one that has no memory when it is restored.
func (p *Parent) fromTheStart(t *testing.T, tap *memtap.Tap) *waiting {
	t.Helper()
	e := p.far(t, tap)
	m := p.over(t, "clone-1", e.path)
	w := &waiting{Machine: m, letters: p.last.obeyed}
	w.gate, w.open = e.shut(t)
	restored, ctx := make(chan error, 1), limit(t, soon)
	go func() { restored <- m.Restore(ctx, p.state) }()
	w.restored = restored
	e.awaited(t)
	return w
}

// later makes one that runs and then touches what does not come.
func (p *Parent) later(t *testing.T, tap *memtap.Tap) *waiting {
	t.Helper()
	e := p.far(t, tap)
	restored := make(chan error, 1)
	w := &waiting{Machine: p.Clone(t, "clone-1", e.path), restored: restored, letters: p.last.obeyed + 1}
	restored <- nil
	w.gate, w.open = e.shut(t)
	w.Order(t, "c")
	e.awaited(t)
	return w
}

// unreachable tests what becomes of clones that wait for memory. start makes one.
func (p *Parent) unreachable(t *testing.T, start func(t *testing.T, tap *memtap.Tap) *waiting) {
	for _, what := range []struct {
		name  string
		check func(t *testing.T, tap *memtap.Tap, w *waiting)
	}{{"late", late}, {"killed while it waits", killed}, {"lost", lost}, {"unmounted", unmounted}} {
		t.Run(what.name, func(t *testing.T) {
			tap := p.mount(t)
			what.check(t, tap, start(t, tap))
		})
	}
}

func late(t *testing.T, _ *memtap.Tap, w *waiting) {
	time.Sleep(time.Second)
	select {
	case <-w.Done():
		t.Fatalf("while its memory was on the way, it ended: %v", w.Err())
	default:
	}
	w.open()
	if err := <-w.restored; err != nil {
		t.Fatal(err)
	}
	w.next(t, soon)
	w.Order(t, "c")
	if c := w.obeyed(t, w.letters+1, soon); !c.whole {
		t.Errorf("after a page that came late: %v", c)
	}
}

func killed(t *testing.T, _ *memtap.Tap, w *waiting) {
	begin := time.Now()
	go w.Kill()
	isGone(t, w)
	t.Logf("gone in %v", time.Since(begin).Round(time.Millisecond))
	if err := w.Err(); err != nil {
		t.Errorf("a killed clone ended with %v", err)
	}
	if err := <-w.restored; err != nil {
		t.Log(err)
	}
}

func lost(t *testing.T, tap *memtap.Tap, w *waiting) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // every read that comes
		defer close(stopped)
		for {
			select {
			case w.gate <- errors.New("no such host"):
			case <-stop:
				return
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	w.ends(t)
	if err := tap.Err(file); err == nil {
		t.Error("memtap has no reason for the machine's end")
	}
}

func unmounted(t *testing.T, tap *memtap.Tap, w *waiting) {
	if err := tap.Unmount(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	w.ends(t)
}

// ends waits for a machine to end by itself, with a reason.
func (w *waiting) ends(t *testing.T) {
	t.Helper()
	begin := time.Now()
	isGone(t, w)
	if w.Err() == nil {
		t.Fatal("the machine is gone without a reason")
	}
	Says(t, w.Err(), "clone-1")
	t.Logf("gone in %v: %v", time.Since(begin).Round(time.Millisecond), w.Err())
	if err := <-w.restored; err != nil {
		t.Log(err)
	}
}
