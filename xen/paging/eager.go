package paging

import (
	"fmt"
	"maps"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

const pageSize = privcmd.PageSize

// The areas of a processor whose pages have to be there (see the package's comment).
const (
	// perCPU is how much of a processor's per-CPU data is brought, from where GS points: the kernel's static ones, which
	// are about 200 KB in a distribution's kernel, and the first of the dynamic ones.
	perCPU = 256 << 10
	// stackSize is that of a kernel thread's stack, which begins at a multiple of it.
	stackSize = 16 << 10
)

// frameReader reads the page of a guest's frame.
type frameReader func(frame uint64, page []byte) error

// Eager finds the frames that have to be there before a guest runs, in order. read reads the guest's memory as it was saved: the page
// tables are in it.
func Eager(vcpus []stream.VCPU, read func(frame uint64, page []byte) error) ([]uint64, error) {
	found := map[uint64]bool{}
	for i, v := range vcpus {
		t := tables{root: v.CR3 & addressMask / pageSize, levels: 4, read: read, pages: map[uint64][]byte{}}
		if v.CR4&cr4LA57 != 0 {
			t.levels = 5
		}
		gs := v.GS
		if gs>>63 == 0 { // a program's: the processor was not in the kernel
			gs = v.KernelGS
		}
		for _, area := range []struct{ start, size uint64 }{{gs &^ (pageSize - 1), perCPU}, {v.SP &^ (stackSize - 1), stackSize}} {
			for at := area.start; at < area.start+area.size; at += pageSize {
				frame, ok, err := t.frame(at)
				if err != nil {
					return nil, fmt.Errorf("find what processor %d needs at once: %w", i, err)
				}
				if ok {
					found[frame] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// tables are the page tables of a processor.
type tables struct {
	root   uint64 // frame of the topmost
	levels int
	read   frameReader
	pages  map[uint64][]byte // that were read
}

const (
	addressMask  = 0x000f_ffff_ffff_f000
	cr4LA57      = 1 << 12
	entryPresent = 1 << 0
	entryLarge   = 1 << 7
)

// frame is which one an address is mapped to.
func (t *tables) frame(address uint64) (frame uint64, ok bool, err error) {
	table := t.root
	for level := t.levels; level > 0; level-- {
		page := t.pages[table]
		if page == nil {
			page = make([]byte, pageSize)
			if err := t.read(table, page); err != nil {
				return 0, false, fmt.Errorf("read the page table of address %#x: %w", address, err)
			}
			t.pages[table] = page
		}
		shift := 12 + 9*(level-1)
		entry := le.Uint64(page[address>>shift%512*8:])
		if entry&entryPresent == 0 {
			return 0, false, nil
		}
		to := entry & addressMask / pageSize
		if level == 1 {
			return to, true, nil
		}
		if entry&entryLarge != 0 && level <= 3 {
			inside := uint64(1)<<(shift-12) - 1
			return to&^inside | address/pageSize&inside, true, nil
		}
		table = to
	}
	return 0, false, nil
}
