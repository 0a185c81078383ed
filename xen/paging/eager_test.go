package paging

import (
	"errors"
	"slices"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/xen/stream"
)

// guest is memory with page tables in it.
type guest map[uint64][]byte

func (g guest) read(frame uint64, page []byte) error {
	if g[frame] == nil {
		return errors.New("there is no such frame")
	}
	copy(page, g[frame])
	return nil
}

// mapPage maps an address to a frame, in tables of four levels whose root is frame 1. A page at level 2 is large.
func (g guest) mapPage(address, frame uint64, level int) {
	table := uint64(1)
	for l := 4; ; l-- {
		if g[table] == nil {
			g[table] = make([]byte, pageSize)
		}
		entry := g[table][address>>(12+9*(l-1))%512*8:]
		if l == level {
			flags := uint64(entryPresent)
			if level > 1 {
				flags |= entryLarge
			}
			le.PutUint64(entry, frame*pageSize|flags|1<<63)
			return
		}
		if le.Uint64(entry)&entryPresent == 0 {
			le.PutUint64(entry, uint64(len(g)+1)*pageSize|entryPresent)
			table = uint64(len(g) + 1)
			g[table] = make([]byte, pageSize)
			continue
		}
		table = le.Uint64(entry) & addressMask / pageSize
	}
}

func TestEager(t *testing.T) {
	const perCPUBase, stack = 0xffff_8880_07c0_0000, 0xffff_c900_0000_8000
	g := guest{}
	g.mapPage(perCPUBase, 0x7c00, 2) // 2 MB, of which 256 KB are wanted
	for i := range uint64(4) {
		g.mapPage(stack+i*pageSize, 0x100+7*i, 1)
	}
	g.mapPage(stack+4*pageSize, 0x500, 1) // the guard page's neighbour
	var want []uint64
	for i := range uint64(4) {
		want = append(want, 0x100+7*i)
	}
	for i := range uint64(perCPU / pageSize) {
		want = append(want, 0x7c00+i)
	}
	kernel := stream.VCPU{SP: stack + 0x3f00, CR3: 1*pageSize | 0x18, GS: perCPUBase}
	for name, vcpus := range map[string][]stream.VCPU{
		"in the kernel": {kernel},
		"in a program":  {{SP: kernel.SP, CR3: kernel.CR3, GS: 0x7f00_0000_0000, KernelGS: perCPUBase}},
		"two":           {kernel, kernel},
	} {
		got, err := Eager(vcpus, g.read)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: the frames are %x, want %x (%v)", name, got, want, err)
		}
	}
	if got, err := Eager([]stream.VCPU{{CR3: 1 * pageSize, SP: 0x1000, GS: 1 << 63}}, g.read); err != nil || len(got) > 0 {
		t.Errorf("of what is not mapped: %x (%v)", got, err)
	}
	if _, err := Eager([]stream.VCPU{{CR3: 0x999 * pageSize}}, g.read); err == nil {
		t.Error("without page tables there is no error")
	}
}

// Whatever a guest's page tables say, there is an end.
func FuzzEager(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), uint64(0x1000), uint64(1<<12))
	f.Fuzz(func(t *testing.T, pattern []byte, cr3, cr4 uint64) {
		if len(pattern) == 0 {
			return
		}
		frames, err := Eager([]stream.VCPU{{CR3: cr3, CR4: cr4, SP: cr3 * 3, GS: cr4 * 5, KernelGS: cr3 * 7}}, func(frame uint64, page []byte) error {
			for i := range page {
				page[i] = pattern[(uint64(i)+frame)%uint64(len(pattern))]
			}
			return nil
		})
		if err != nil || len(frames) > (perCPU+stackSize)/pageSize {
			t.Errorf("%d frames (%v)", len(frames), err)
		}
	})
}
