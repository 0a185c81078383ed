package conformance

import (
	"context"
	"io"
	"os"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Traits are what drivers differ in as to the memory of their machines.
type Traits struct {
	// OnDemand is nil if pages come to a clone as it touches them. Else it says why
	// all of them come before it runs.
	OnDemand error
	// Own measures what memory a machine has that is no file's, in bytes, if a machine
	// is a process that maps its memory file. Faults of such a one read windows of the
	// file, and what its guest frees it gives back. Else it is nil.
	Own func(t *testing.T, vm hypervisor.VM) int64
}

// Parent is a guest that was booted and suspended.
type Parent struct {
	suite
	traits Traits
	image  *slice.Slice // its RAM, once it is one
}

// State is its device state.
func (p *Parent) State() []byte { return p.state }

// Shape is its, and its clones'.
func (p *Parent) Shape() hypervisor.Shape { return p.g.Shape }

// Image is its RAM, when it was sealed.
func (p *Parent) Image() *slice.Slice { return p.image }

// Freeze makes one and seals it, for the time of the test. Where guests report what they free, it is
// suspended when it has.
func Freeze(t *testing.T, d hypervisor.Driver, g Guest, traits Traits) *Parent {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "conformance-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if traits.Own != nil {
		// Linux 6.1 reports blocks of 2 MB at the least, whatever its command line says, and
		// only of a zone that has 64 MB free besides what it keeps. One with 192 MB of RAM
		// never has; told by /sys to report single pages, it did.
		g.Shape.Memory = 512 << 20
	}
	p := &Parent{suite: suite{d: d, g: g, dir: dir}, traits: traits}
	p.freeze(t)
	return p
}

func (p *Parent) freeze(t *testing.T) {
	t.Helper()
	p.memory = p.emptyMemory(t, "parent")
	cfg, channel := p.config(t, "parent", p.memory)
	step := steps(t)
	vm, err := p.d.Boot(limit(t, p.g.BootLimit), cfg, p.g.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Kill()
	m := &Machine{VM: vm, cfg: cfg, channel: channel, ear: listen(channel)}
	p.last = m.next(t, p.g.BootLimit)
	step("booted")
	if p.traits.Own != nil {
		p.reports(t, m)
		step("reported")
	}
	if p.state, err = vm.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	step("suspended")
	p.last = m.drain(p.last)
	vm.Kill()
	p.Seal(t, p.traits)
}

// Seal makes an image of its RAM, for the time of the test: for clones whose memory is memtap's, and not for others any more.
func (p *Parent) Seal(t *testing.T, traits Traits) {
	t.Helper()
	p.traits = traits
	used := p.used(t)
	var err error
	var stats slice.SealStats
	p.image, stats, err = slice.Seal(limit(t, soon), p.memory, p.memory+".map", slice.Memory, slice.SealOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.image.Close() })
	t.Logf("%+v", stats)
	if stored := stats.Stored * slice.BlockSize; stored > used {
		t.Errorf("the image has %d KB, the guest's file had %d", stored>>10, used>>10)
	}
}

// RunMemory tests machines over files of memtap that are clones of a parent that was sealed. It needs what
// the driver and memtap need, and fails without.
func (p *Parent) RunMemory(t *testing.T) {
	t.Run("faults", p.Faults)
	if p.traits.Own != nil {
		t.Run("freed", p.freed)
	}
	t.Run("from the start", func(t *testing.T) { p.unreachable(t, p.fromTheStart) })
	t.Run("later", func(t *testing.T) {
		if p.traits.OnDemand != nil {
			t.Skip(p.traits.OnDemand)
		}
		p.unreachable(t, p.later)
	})
}

// mount mounts a memtap for the time of a test.
func (p *Parent) mount(t *testing.T) *memtap.Tap {
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

// file is the name of the file of a memtap's.
const file = "memory"

// Near mounts a memtap for the time of a test, whose file is the image. path is that of the
// file.
func (p *Parent) Near(t *testing.T) (tap *memtap.Tap, path string) {
	t.Helper()
	tap = p.mount(t)
	return tap, add(t, tap, p.image)
}

func add(t *testing.T, tap *memtap.Tap, s *slice.Slice) (path string) {
	t.Helper()
	im, err := slice.NewImage(s)
	if err != nil {
		t.Fatal(err)
	}
	if path, err = tap.AddMemory(file, im); err != nil {
		t.Fatal(err)
	}
	return path
}

// over prepares a machine over a file of memtap's. It ends with the test.
func (p *Parent) over(t *testing.T, name, path string) *Machine {
	t.Helper()
	cfg, channel := p.config(t, name, path)
	vm, err := p.d.Prepare(limit(t, soon), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	return &Machine{VM: vm, cfg: cfg, channel: channel, ear: listen(channel)}
}

// Clone starts a machine over a file of memtap's and hears it. It ends with the test.
func (p *Parent) Clone(t *testing.T, name, path string) *Machine {
	t.Helper()
	m := p.over(t, name, path)
	if err := m.Restore(limit(t, soon), p.state); err != nil {
		t.Fatal(err)
	}
	first := m.next(t, soon)
	if first.who != p.last.who || first.n != p.last.n+1 || !first.whole {
		t.Errorf("%s began with %v after the guest's %v", name, first, p.last)
	}
	m.begin = first
	return m
}

// Order sends a letter (package counter).
func (m *Machine) Order(t *testing.T, letter string) {
	t.Helper()
	if _, err := io.WriteString(m.channel, letter); err != nil {
		t.Fatal(err)
	}
}

// Faults tests that two clones over one file of memtap go on, and what they fetch.
func (p *Parent) Faults(t *testing.T) {
	tap, path := p.Near(t)
	step := steps(t)
	one := p.Clone(t, "clone-1", path)
	two := p.Clone(t, "clone-2", path)
	step("two restored")
	for _, m := range []*Machine{one, two} {
		for at, i := m.begin, 0; i < 10; i++ {
			next := m.next(t, soon)
			if next.who != at.who || next.n != at.n+1 || !next.whole {
				t.Fatalf("%s said %v after %v", m.cfg.Name, next, at)
			}
			at = next
		}
	}
	two.Order(t, "c")
	if c := two.obeyed(t, p.last.obeyed+1, soon); !c.whole {
		t.Errorf("memory that was not touched since its boot is %v", c)
	}
	step("counted and touched")
	c := tap.Counters(file)
	t.Logf("%d reads, %d KB served, %d KB fetched, %d blocks of zeros", c.Reads, c.BytesServed>>10, c.BytesFetched>>10, c.ZeroBlocks)
	if p.traits.Own != nil && c.BytesServed > c.Reads*memtap.DefaultWindow {
		t.Errorf("%d bytes came in %d reads, want at most %d in each", c.BytesServed, c.Reads, memtap.DefaultWindow)
	}
	// The kernel keeps for the second what it has read for the first.
	most, which := p.g.Shape.Memory, "of all its memory once"
	if p.traits.OnDemand == nil {
		most, which = p.g.Shape.Memory*3/4, "those that clones touch"
	}
	if c.BytesFetched < 16<<20 || c.BytesFetched > most {
		t.Errorf("%d bytes were fetched, want %s", c.BytesFetched, which)
	}
	if c.Errors != 0 || c.RefusedWrites != 0 {
		t.Errorf("%d errors (%v), %d writes", c.Errors, tap.Err(file), c.RefusedWrites)
	}
	// What is private to a clone is what it has written, whoever faulted it in.
	if _, err := two.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	step("suspended")
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
