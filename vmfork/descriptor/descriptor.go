package descriptor

import (
	"fmt"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// PageSize is the unit of the zero-page bitmap, in bytes.
const PageSize = slice.BlockSize

// MaxMemory bounds the memory that a descriptor may claim, in bytes.
const MaxMemory = 1 << 40

// Descriptor is what a host needs to start a clone, but for the slices that it names. The fields with JSON names are
// the metadata section.
type Descriptor struct {
	Format     int       `json:"format"` // version of the metadata; set by Write
	ID         string    `json:"id"`     // names this frozen state, on every host
	Generation uint32    `json:"generation"`
	Created    time.Time `json:"created"`

	Hypervisor Hypervisor `json:"hypervisor"`
	VCPUs      int        `json:"vcpus"`
	Memory     int64      `json:"memory"`     // bytes
	Devices    []string   `json:"devices"`    // as the driver names them, in the order of creation
	MemoryMap  []Range    `json:"memory_map"` // ascending, without overlap

	MemoryImage Image   `json:"memory_image"`
	Disks       []Image `json:"disks"`

	Properties map[string]string `json:"properties,omitempty"` // the driver's own, and nobody else's

	ZeroPages   *bitset.BitSet `json:"-"` // by page of the memory image; never fetched (section 3.4)
	DeviceState []byte         `json:"-"` // the hypervisor's, opaque

	// What a descriptor has that goes to other hosts, and one that stays where its
	// slices are has not.
	Maps       []slice.Map `json:"-"`                 // of the memory image's slices, then of the disks', in their order
	Origins    []int       `json:"origins,omitempty"` // for each of them, the number of the host that has it
	WorkingSet []byte      `json:"-"`                 // the blocks that are likely to be read first: a memtap.Trace
}

// Hypervisor says who wrote the device state. It can be restored by the same one, with the same machine type and
// accelerator, of the same or a later version.
type Hypervisor struct {
	Name        string `json:"name"` // "qemu", "xen"
	Version     string `json:"version"`
	Accelerator string `json:"accelerator"` // "tcg", "kvm"
	Machine     string `json:"machine"`     // with its version: "pc-q35-7.2"
}

// Range is a piece of guest-physical memory and where it is in the memory image, in bytes.
type Range struct {
	Start  uint64 `json:"start"`
	Size   uint64 `json:"size"`
	Offset uint64 `json:"offset"`
}

// Image names a stack of slices.
type Image struct {
	Name   string     `json:"name"`   // the device that it belongs to
	Size   int64      `json:"size"`   // bytes
	Slices []slice.ID `json:"slices"` // top first
}

// metadataFormat is the version of the metadata section. Fields may be added without a new one, if a reader that does
// not know them restores the same VM.
const metadataFormat = 1

// Validate checks what can be checked without the slices: Write refuses what it refuses, and Read reports it as ErrCorrupt.
func (d *Descriptor) Validate() error {
	switch {
	case d.ID == "":
		return fmt.Errorf("it has no id")
	case d.Hypervisor.Name == "" || d.Hypervisor.Version == "" || d.Hypervisor.Accelerator == "" || d.Hypervisor.Machine == "":
		return fmt.Errorf("its hypervisor is not fully named: %+v", d.Hypervisor)
	case d.VCPUs < 1:
		return fmt.Errorf("it has %d virtual CPUs", d.VCPUs)
	case d.Memory <= 0 || d.Memory > MaxMemory || d.Memory%PageSize != 0:
		return fmt.Errorf("its memory of %d bytes is not whole pages up to %d bytes", d.Memory, int64(MaxMemory))
	case d.MemoryImage.Size != d.Memory:
		return fmt.Errorf("its memory image has %d bytes and its memory %d", d.MemoryImage.Size, d.Memory)
	case len(d.MemoryMap) == 0:
		return fmt.Errorf("it has no memory map")
	case d.ZeroPages == nil || int64(d.ZeroPages.Len()) != d.Memory/PageSize:
		return fmt.Errorf("its zero-page bitmap is not one bit for each of %d pages", d.Memory/PageSize)
	}
	var end uint64
	for _, r := range d.MemoryMap {
		if r.Size == 0 || r.Start < end || r.Start+r.Size < r.Start ||
			r.Offset > uint64(d.Memory) || r.Size > uint64(d.Memory)-r.Offset || (r.Start|r.Size|r.Offset)%PageSize != 0 {
			return fmt.Errorf("its memory map has a range %+v that overlaps, is not whole pages, or leaves the image", r)
		}
		end = r.Start + r.Size
	}
	var ids []slice.ID
	var sizes []int64
	for _, im := range append([]Image{d.MemoryImage}, d.Disks...) {
		if im.Name == "" || im.Size <= 0 || len(im.Slices) == 0 {
			return fmt.Errorf("its image %q of %d bytes in %d slices cannot be", im.Name, im.Size, len(im.Slices))
		}
		for _, id := range im.Slices {
			ids, sizes = append(ids, id), append(sizes, im.Size)
		}
	}
	if len(d.Maps) != len(d.Origins) || len(d.Maps) != 0 && len(d.Maps) != len(ids) {
		return fmt.Errorf("it has %d maps and %d origins for %d slices", len(d.Maps), len(d.Origins), len(ids))
	}
	for i, m := range d.Maps {
		if m.ID != ids[i] || m.Size != sizes[i] {
			return fmt.Errorf("its map %d is of slice %v of %d bytes instead of %v of %d", i, m.ID, m.Size, ids[i], sizes[i])
		}
	}
	return nil
}
