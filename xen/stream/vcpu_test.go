package stream

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// contextEntry is an entry of an HVM context.
func contextEntry(kind uint16, body []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func registers(v VCPU) []byte {
	b := make([]byte, cpuSize+100)
	for at, value := range map[int]uint64{cpuSP: v.SP, cpuCR3: v.CR3, cpuCR4: v.CR4, cpuGS: v.GS, cpuKernelGS: v.KernelGS} {
		binary.LittleEndian.PutUint64(b[at:], value)
	}
	return b
}

func TestVCPUs(t *testing.T) {
	want := []VCPU{{1, 2, 3, 4, 5}, {6, 7, 8, 9, 10}}
	whole := slices.Concat(contextEntry(1, make([]byte, 20)), contextEntry(contextCPU, registers(want[0])), contextEntry(5, nil),
		contextEntry(contextCPU, registers(want[1])), contextEntry(contextEnd, nil))
	of := func(context []byte) *Domain { return &Domain{Records: []Record{{HVMContext, context}}} }
	if got, err := of(whole).VCPUs(); err != nil || !slices.Equal(got, want) {
		t.Errorf("the processors are %+v (%v)", got, err)
	}
	for name, d := range map[string]*Domain{
		"no context":  {},
		"cut short":   of(whole[:len(whole)-8]),
		"too long":    of(whole[:60]),
		"a small CPU": of(append(contextEntry(contextCPU, make([]byte, cpuSize-1)), contextEntry(contextEnd, nil)...)),
	} {
		if _, err := d.VCPUs(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzVCPUs(f *testing.F) {
	f.Add(append(contextEntry(contextCPU, registers(VCPU{1, 2, 3, 4, 5})), contextEntry(contextEnd, nil)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		vcpus, err := (&Domain{Records: []Record{{HVMContext, b}}}).VCPUs()
		if err == nil && len(vcpus)*cpuSize > len(b) {
			t.Errorf("%d bytes have %d processors", len(b), len(vcpus))
		}
	})
}
