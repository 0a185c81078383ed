package xen

import (
	"bytes"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// frozen is a guest that was booted and suspended.
type frozen struct {
	*conformance.Parent
	d *Driver
}

// sizeLimit is that of a descriptor without its eager set: pages that have to be there before the clone runs.
const sizeLimit = 200_000

func (f *frozen) describe(t *testing.T) {
	s, err := decodeState(f.State(), f.d.guests)
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
	im, err := slice.NewImage(f.Image())
	if err != nil {
		t.Fatal(err)
	}
	shape := f.Shape()
	machine := f.d.Describe(shape)
	var whole bytes.Buffer
	if err := descriptor.Write(&whole, &descriptor.Descriptor{
		ID: "measured", Created: time.Now(),
		Hypervisor: descriptor.Hypervisor{Name: f.d.Name(), Version: f.d.Version(), Accelerator: machine.Accelerator, Machine: machine.Machine},
		VCPUs:      shape.VCPUs, Memory: shape.Memory, Devices: machine.Devices, MemoryMap: machine.MemoryMap,
		MemoryImage: descriptor.Image{Name: "ram", Size: shape.Memory, Slices: im.IDs()},
		ZeroPages:   im.Zeros(), DeviceState: f.State(),
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the descriptor of a guest with %d MB has %d bytes, its device state %d, of which pages %d and the list of frames %d",
		shape.Memory>>20, whole.Len(), len(f.State()), eager, len(f.State())-len(s.saved)-len(stateMagic))
	if whole.Len()-eager >= sizeLimit {
		t.Errorf("without its eager set the descriptor has %d bytes, want less than %d", whole.Len()-eager, sizeLimit)
	}
}
