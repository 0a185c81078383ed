package xen

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// soon is how long anything but a boot may take on an emulated machine.
const soon = 2 * time.Minute

// frozen is a guest that was booted and suspended.
type frozen struct {
	d     *Driver
	shape hypervisor.Shape
	dir   string
	state []byte
	image *slice.Slice // its RAM
}

func freeze(t *testing.T, d *Driver, memory int64) *frozen {
	t.Helper()
	g := makeGuest(t)
	g.Shape.Memory = memory
	dir, err := os.MkdirTemp("/dev/shm", "xen-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &frozen{d: d, shape: g.Shape, dir: dir}
	cfg, channel := f.config(t, "parent", filepath.Join(dir, "parent"))
	if err := os.WriteFile(cfg.MemoryPath, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(cfg.MemoryPath, memory); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), g.BootLimit+soon)
	defer cancel()
	machine, err := d.Boot(ctx, cfg, g.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Kill()
	channel.SetReadDeadline(time.Now().Add(g.BootLimit))
	if _, err := channel.Read(make([]byte, 1)); err != nil {
		t.Fatalf("hear the guest: %v", err)
	}
	begin := time.Now()
	if f.state, err = machine.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("suspended in %v", time.Since(begin).Round(time.Millisecond))
	machine.Kill()
	if f.image, _, err = slice.Seal(ctx, cfg.MemoryPath, filepath.Join(dir, "map"), slice.Memory, slice.SealOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.image.Close() })
	return f
}

// config has a port, and the host's end of it.
func (f *frozen) config(t *testing.T, name, memory string) (hypervisor.Config, net.Conn) {
	t.Helper()
	channel, port, err := hypervisor.NewPort(counter.PortName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { channel.Close(); port.File.Close() })
	return hypervisor.Config{Name: name, Dir: f.dir, Shape: f.shape, MemoryPath: memory, Ports: []hypervisor.Port{port}}, channel
}

// TestMemory is about what a clone is made of: how large its descriptor is, and what becomes of it when its
// memory does not come.
func TestMemory(t *testing.T) {
	f := freeze(t, find(t), 128<<20)
	t.Run("descriptor", f.describe)
	t.Run("comes", f.comes)
	t.Run("lost", f.lost)
	t.Run("unmounted", f.unmounted)
	t.Run("killed while it waits", f.killed)
	t.Run("on demand", f.onDemand)
}

// sizeLimit is that of a descriptor without its eager set: pages that have to be there before the clone runs.
const sizeLimit = 200_000

func (f *frozen) describe(t *testing.T) {
	s, err := decodeState(f.state)
	if err != nil {
		t.Fatal(err)
	}
	eager := 0
	var kept stream.Frames
	if _, err := stream.Read(bytes.NewReader(s.saved), func(p stream.Page) error {
		eager += len(p.Content)
		return kept.Add(p.Frame, p.Type)
	}); err != nil {
		t.Fatal(err)
	}
	for run := range kept.Runs() {
		t.Logf("outside of its RAM are %d pages at frame %#x", run.Count, run.First)
	}
	for run := range s.frames.Runs() {
		t.Logf("it has %d frames of type %v at %#x", run.Count, run.Type, run.First)
	}
	im, err := slice.NewImage(f.image)
	if err != nil {
		t.Fatal(err)
	}
	machine := f.d.Describe(f.shape)
	var whole bytes.Buffer
	if err := descriptor.Write(&whole, &descriptor.Descriptor{
		ID: "measured", Created: time.Now(),
		Hypervisor: descriptor.Hypervisor{Name: f.d.Name(), Version: f.d.Version(), Accelerator: machine.Accelerator, Machine: machine.Machine},
		VCPUs:      f.shape.VCPUs, Memory: f.shape.Memory, Devices: machine.Devices, MemoryMap: machine.MemoryMap,
		MemoryImage: descriptor.Image{Name: "ram", Size: f.shape.Memory, Slices: im.IDs()},
		ZeroPages:   im.Zeros(), DeviceState: f.state,
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the descriptor of a guest with %d MB has %d bytes, its device state %d, of which pages %d and the list of frames %d",
		f.shape.Memory>>20, whole.Len(), len(f.state), eager, len(f.state)-len(s.saved)-len(stateMagic))
	if whole.Len()-eager >= sizeLimit {
		t.Errorf("without its eager set the descriptor has %d bytes, want less than %d", whole.Len()-eager, sizeLimit)
	}
}

// mount mounts a memtap for the time of a test.
func mount(t *testing.T) *memtap.Tap {
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

func (f *frozen) prepare(t *testing.T, memory string) (hypervisor.VM, net.Conn) {
	t.Helper()
	cfg, channel := f.config(t, "clone", memory)
	machine, err := f.d.Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(machine.Kill)
	return machine, channel
}

// comes: a clone over memtap's file goes on, and ends when its guest does.
func (f *frozen) comes(t *testing.T) {
	machine, channel := f.prepare(t, f.near(t))
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := machine.Restore(ctx, f.state); err != nil {
		t.Fatal(err)
	}
	t.Logf("restored in %v", time.Since(begin).Round(time.Millisecond))
	if f.d.OnDemand() != nil {
		t.Logf("all of its memory is there before it runs: %v", f.d.OnDemand())
	}
	channel.SetReadDeadline(time.Now().Add(soon))
	if _, err := channel.Read(make([]byte, 1)); err != nil {
		t.Fatalf("hear the clone: %v", err)
	}
	if _, err := channel.Write([]byte("o")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-machine.Done():
		if machine.Err() == nil {
			t.Error("it is gone without a reason")
		}
		t.Log(machine.Err())
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to be gone that was told to turn off", soon)
	}
}

// far is a file of memtap's whose memory another host has: bring is called for each piece, which comes if that has no error.
func (f *frozen) far(t *testing.T, tap *memtap.Tap, bring func(ctx context.Context) error) (path string) {
	t.Helper()
	data, err := os.Open(filepath.Join(f.dir, "parent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.Close() })
	var s *slice.Slice
	s, err = slice.Far(filepath.Join(t.TempDir(), "far"), f.image.Map(), func(ctx context.Context, first, n int64) error {
		if err := bring(ctx); err != nil {
			return err
		}
		blocks := make([]byte, n*slice.BlockSize)
		if _, err := data.ReadAt(blocks, first*slice.BlockSize); err != nil {
			return err
		}
		return s.Arrive(blocks, first)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return add(t, tap, s)
}

// near is a file of memtap's whose memory is here.
func (f *frozen) near(t *testing.T) (path string) { return add(t, mount(t), f.image) }

func add(t *testing.T, tap *memtap.Tap, s *slice.Slice) (path string) {
	t.Helper()
	im, err := slice.NewImage(s)
	if err != nil {
		t.Fatal(err)
	}
	if path, err = tap.AddMemory("memory", im); err != nil {
		t.Fatal(err)
	}
	return path
}

// ends checks that a clone could not be restored, and is gone.
func (f *frozen) ends(t *testing.T, machine hypervisor.VM, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("a clone without memory was restored")
	}
	t.Log(err)
	select {
	case <-machine.Done():
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to be gone", soon)
	}
	if _, err := f.d.xen.Info(machine.(*vm).id); !errors.Is(err, unix.ESRCH) {
		t.Errorf("its domain is there (%v)", err)
	}
}

func (f *frozen) lost(t *testing.T) {
	machine, _ := f.prepare(t, f.far(t, mount(t), func(context.Context) error { return errors.New("no such host") }))
	err := machine.Restore(t.Context(), f.state)
	f.ends(t, machine, err)
	if machine.Err() == nil {
		t.Error("it is gone without a reason")
	}
}

// waiting starts to restore a clone whose memory does not come, and returns when it waits for it.
func (f *frozen) waiting(t *testing.T, tap *memtap.Tap) (machine hypervisor.VM, restored <-chan error) {
	t.Helper()
	asked, over := make(chan struct{}, 1), make(chan struct{})
	t.Cleanup(func() { close(over) })
	machine, _ = f.prepare(t, f.far(t, tap, func(ctx context.Context) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
		case <-over:
		}
		return errors.New("it never came")
	}))
	done := make(chan error, 1)
	go func() { done <- machine.Restore(t.Context(), f.state) }()
	select {
	case <-asked:
	case err := <-done:
		t.Fatalf("it waits for nothing: %v", err)
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to want its memory", soon)
	}
	return machine, done
}

func (f *frozen) unmounted(t *testing.T) {
	tap := mount(t)
	machine, restored := f.waiting(t, tap)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := tap.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	f.ends(t, machine, <-restored)
	if machine.Err() == nil {
		t.Error("it is gone without a reason")
	}
}

func (f *frozen) killed(t *testing.T) {
	machine, restored := f.waiting(t, mount(t))
	begin := time.Now()
	machine.Kill()
	t.Logf("gone in %v", time.Since(begin).Round(time.Millisecond))
	f.ends(t, machine, <-restored)
	if machine.Err() != nil {
		t.Errorf("a killed clone ended with %v", machine.Err())
	}
}
