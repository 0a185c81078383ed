package conformance

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// RunMemory tests a driver's machines over files of memtap. It needs what the
// driver and memtap need, and fails without.
func RunMemory(t *testing.T, d hypervisor.Driver, g Guest) {
	dir, err := os.MkdirTemp("/dev/shm", "conformance-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// One with 192 MB of RAM was seen to report what was free of its first 16 MB once,
	// and never again.
	g.Shape.Memory = 512 << 20
	s := &memorySuite{suite: suite{d: d, g: g, dir: dir}}
	if !t.Run("boot and suspend", s.freeze) {
		return
	}
	defer s.image.Close()
	t.Run("faults", s.faults)
	t.Run("freed", s.freed)
	t.Run("late", s.late)
	t.Run("killed while it waits", s.killed)
	t.Run("lost", s.lost)
	t.Run("unmounted", s.unmounted)
}

type memorySuite struct {
	suite
	image *slice.Slice // the suspended guest's RAM
}

// freeze boots the guest, waits until it has reported what is free, and suspends it.
func (s *memorySuite) freeze(t *testing.T) {
	s.memory = s.emptyMemory(t, "parent")
	cfg, channel := s.config(t, "parent", s.memory)
	vm, err := s.d.Boot(limit(t, s.g.BootLimit), cfg, s.g.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	ear := listen(channel)
	ear.next(t, s.g.BootLimit)
	s.reports(t, &machine{vm, cfg, channel}, ear)
	if s.state, err = vm.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	s.last = ear.drain(s.last)
	vm.Kill()
	used := s.used(t)
	var stats slice.SealStats
	s.image, stats, err = slice.Seal(limit(t, soon), s.memory, s.memory+".map", slice.Memory, slice.SealOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", stats)
	if stored := stats.Stored * slice.BlockSize; stored > used {
		t.Errorf("the image has %d KB, the guest's file had %d", stored>>10, used>>10)
	}
}

// mount mounts a memtap for the time of a test.
func (s *memorySuite) mount(t *testing.T) *memtap.Tap {
	t.Helper()
	tap, err := memtap.Mount(t.Context(), t.TempDir(), memtap.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := tap.Unmount(ctx); err != nil {
			t.Error(err)
		}
	})
	return tap
}

// clone starts a machine over a file of memtap. It ends with the test.
func (s *memorySuite) clone(t *testing.T, name, path string) (*machine, *ear) {
	t.Helper()
	cfg, channel := s.config(t, name, path)
	vm, err := s.d.Prepare(limit(t, soon), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	if err := vm.Restore(limit(t, soon), s.state); err != nil {
		t.Fatal(err)
	}
	return &machine{vm, cfg, channel}, listen(channel)
}

// order sends a letter.
func (m *machine) order(t *testing.T, letter string) {
	t.Helper()
	if _, err := io.WriteString(m.channel, letter); err != nil {
		t.Fatal(err)
	}
}

func (s *memorySuite) faults(t *testing.T) {
	tap := s.mount(t)
	im, err := slice.NewImage(s.image)
	if err != nil {
		t.Fatal(err)
	}
	path, err := tap.AddMemory("memory", im)
	if err != nil {
		t.Fatal(err)
	}
	_, first := s.clone(t, "clone-1", path)
	two, second := s.clone(t, "clone-2", path)
	goesOn := func(e *ear) {
		t.Helper()
		at := e.next(t, soon)
		for range 10 {
			next := e.next(t, soon)
			if next.who != s.last.who || next.n != at.n+1 || !next.whole {
				t.Fatalf("a clone said %v after %v", next, at)
			}
			at = next
		}
	}
	goesOn(first)
	goesOn(second)
	two.order(t, "c")
	if c := second.obeyed(t, s.last.obeyed+1, soon); !c.whole {
		t.Errorf("memory that was not touched since its boot is %v", c)
	}
	c := tap.Counters("memory")
	t.Logf("%d reads, %d KB served, %d KB fetched, %d blocks of zeros", c.Reads, c.BytesServed>>10, c.BytesFetched>>10, c.ZeroBlocks)
	if c.Reads == 0 || c.BytesServed > c.Reads*memtap.DefaultWindow {
		t.Errorf("%d bytes came in %d reads, want at most %d in each", c.BytesServed, c.Reads, memtap.DefaultWindow)
	}
	if c.BytesFetched < 16<<20 || c.BytesFetched > s.g.Shape.Memory*3/4 {
		t.Errorf("%d bytes were fetched, want those that clones touch", c.BytesFetched)
	}
	if c = tap.Counters("memory"); c.Errors != 0 || c.RefusedWrites != 0 {
		t.Errorf("%d errors (%v), %d writes", c.Errors, tap.Err("memory"), c.RefusedWrites)
	}
	// What is private to a clone is what it has written, whoever faulted it in.
	if _, err := two.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	pages, _, err := two.Dirtied(limit(t, soon))
	if err != nil {
		t.Fatal(err)
	}
	if n := pages.Count(); n == 0 || n > 8<<8 {
		t.Errorf("a clone that has read 16 MB has %d pages of its own", n)
	} else {
		t.Logf("%d pages are its own", n)
	}
}

// elsewhere serves the image as of another host, each block as gate lets it come.
type elsewhere struct {
	path string
	wait chan struct{} // a read that met a gate that is shut

	mu   sync.Mutex
	gate chan error // nil: open. An error that comes through is the read's.
}

func (s *memorySuite) far(t *testing.T, tap *memtap.Tap) *elsewhere {
	t.Helper()
	data, err := os.Open(s.memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	e := &elsewhere{wait: make(chan struct{}, 1)}
	var here *slice.Slice
	here, err = slice.Far(filepath.Join(t.TempDir(), "far"), s.image.Map(), func(ctx context.Context, first, n int64) error {
		e.mu.Lock()
		gate := e.gate
		e.mu.Unlock()
		if gate != nil {
			select {
			case e.wait <- struct{}{}:
			default:
			}
			select {
			case err, late := <-gate:
				if late {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
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
	im, err := slice.NewImage(here)
	if err != nil {
		t.Fatal(err)
	}
	if e.path, err = tap.AddMemory("far", im); err != nil {
		t.Fatal(err)
	}
	return e
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

// waits makes a clone touch what is shut out.
func (e *elsewhere) waits(t *testing.T, vm *machine) {
	t.Helper()
	vm.order(t, "c")
	select {
	case <-e.wait:
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to touch what it had not touched", soon)
	}
}

func (s *memorySuite) late(t *testing.T) {
	e := s.far(t, s.mount(t))
	vm, heard := s.clone(t, "clone-1", e.path)
	heard.next(t, soon)
	_, open := e.shut(t)
	e.waits(t, vm)
	time.Sleep(time.Second)
	open()
	if c := heard.obeyed(t, s.last.obeyed+1, soon); !c.whole {
		t.Errorf("after a page that came late: %v", c)
	}
}

func (s *memorySuite) killed(t *testing.T) {
	e := s.far(t, s.mount(t))
	vm, heard := s.clone(t, "clone-1", e.path)
	heard.next(t, soon)
	e.shut(t)
	e.waits(t, vm)
	begin := time.Now()
	go vm.Kill()
	isGone(t, vm)
	t.Logf("gone in %v", time.Since(begin).Round(time.Millisecond))
}

func (s *memorySuite) lost(t *testing.T) {
	tap := s.mount(t)
	e := s.far(t, tap)
	vm, heard := s.clone(t, "clone-1", e.path)
	heard.next(t, soon)
	gate, _ := e.shut(t)
	e.waits(t, vm)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // every read that comes
		defer close(stopped)
		for {
			select {
			case gate <- errors.New("no such host"):
			case <-stop:
				return
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	s.ends(t, vm)
	if err := tap.Err("far"); err == nil {
		t.Error("memtap has no reason for the machine's end")
	}
}

func (s *memorySuite) unmounted(t *testing.T) {
	tap := s.mount(t)
	e := s.far(t, tap)
	vm, heard := s.clone(t, "clone-1", e.path)
	heard.next(t, soon)
	e.shut(t)
	e.waits(t, vm)
	if err := tap.Unmount(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	s.ends(t, vm)
}

// ends waits for a machine to end by itself, with a reason.
func (s *memorySuite) ends(t *testing.T, vm *machine) {
	t.Helper()
	begin := time.Now()
	isGone(t, vm)
	if vm.Err() == nil {
		t.Fatal("the machine is gone without a reason")
	}
	Says(t, vm.Err(), "clone-1")
	t.Logf("gone in %v: %v", time.Since(begin).Round(time.Millisecond), vm.Err())
}
