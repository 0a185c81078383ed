package xen

import (
	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// Guests are a kind of guests. A driver makes one kind.
type Guests uint8

const (
	PVH Guests = iota // in hardware virtualization
	PV                // without: the guest's kernel knows of Xen, and asks it to change page tables
)

// Name is the driver's, as a user says it.
func (g Guests) Name() string {
	if g == PV {
		return "xen-pv"
	}
	return "xen"
}

// String is what Xen calls a machine of that kind.
func (g Guests) String() string {
	if g == PV {
		return "pv"
	}
	return "pvh"
}

// saved is how a saved domain of that kind says so.
func (g Guests) saved() stream.Guest {
	if g == PV {
		return stream.PV
	}
	return stream.HVM
}

// lacks is nil where a hypervisor that makes such guests makes these. Its error matches [hypervisor.ErrNotSupported].
func (g Guests) lacks(m privcmd.Makes) error {
	switch {
	case !m.PV && !m.HVM:
		return hypervisor.Lacks("this Xen says that it makes no guests: boot it without pv=0, or turn the processor's virtualization (SVM, VT-x) on in the firmware")
	case g == PVH && !m.HVM:
		return hypervisor.Lacksf("Xen makes no PVH guests here: the processor has no virtualization (SVM, VT-x), or it is turned off in the firmware; PV guests it makes: choose %s", PV.Name())
	case g == PV && !m.PV:
		return hypervisor.Lacksf("this Xen was compiled, or booted, without PV guests; PVH guests it makes: choose %s", PVH.Name())
	}
	return nil
}

// best says which kind to take of those that a hypervisor makes: PVH, which gets its memory on demand where Xen can do that, and
// of whose system calls and page faults Xen knows nothing.
func best(m privcmd.Makes) (g Guests, ok bool) {
	if m.HVM {
		return PVH, true
	}
	return PV, m.PV
}

// lowMemory is where a PVH guest's RAM makes room for ACPI tables, the APIC and Xen's own pages, and
// goes on at 4 GiB (libxl's libxl__build_hvm, for guests without a device model).
const lowMemory, highMemory = 0xfc000000, 4 << 30

// memoryMap says where a guest has its memory file. A PV guest has all of it from 0 on.
func (g Guests) memoryMap(size int64) layout {
	if g == PV || size <= lowMemory {
		return layout{{Start: 0, Size: uint64(size), Offset: 0}}
	}
	return layout{
		{Start: 0, Size: lowMemory, Offset: 0},
		{Start: highMemory, Size: uint64(size - lowMemory), Offset: lowMemory},
	}
}

// describe is [Driver.Describe].
func (g Guests) describe(s hypervisor.Shape) hypervisor.Description {
	return hypervisor.Description{
		Accelerator: accelerator, Machine: g.String(),
		Devices:   []string{"console", "vbd", "vif"},
		MemoryMap: []descriptor.Range(g.memoryMap(s.Memory)),
	}
}
