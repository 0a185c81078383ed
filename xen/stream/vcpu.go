package stream

import (
	"encoding/binary"
	"fmt"
)

// VCPU is what is used here of the registers of a virtual processor.
type VCPU struct {
	SP       uint64 // the stack pointer
	CR3, CR4 uint64
	GS       uint64 // base of the segment GS
	KernelGS uint64 // what SWAPGS would exchange it for
}

// Types of the entries of an HVM context, and the places of registers in struct hvm_hw_cpu of Xen's public header arch-x86/hvm/save.h.
const (
	contextEnd = 0
	contextCPU = 2

	cpuSP       = 512 + 7*8
	cpuCR3      = 512 + 16*8 + 2*8 + 2*8
	cpuCR4      = cpuCR3 + 8
	cpuBases    = cpuCR4 + 8 + 6*8 + 8*4 + 10*4
	cpuGS       = cpuBases + 4*8
	cpuKernelGS = cpuBases + 10*8 + 8*4 + 3*8
	cpuSize     = cpuKernelGS + 8 // and more
)

// VCPUs are the registers of the processors that were on, in their order. A domain that has none is not an HVM guest's.
func (d *Domain) VCPUs() (vcpus []VCPU, err error) {
	b, ok := d.Record(HVMContext)
	if !ok {
		return nil, fmt.Errorf("%w: it has no HVM context", ErrCorrupt)
	}
	for len(b) >= 8 { // struct hvm_save_descriptor
		kind, length := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint32(b[4:])
		b = b[8:]
		if uint64(length) > uint64(len(b)) {
			break
		}
		entry := b[:length]
		b = b[length:]
		switch {
		case kind == contextEnd:
			return vcpus, nil
		case kind != contextCPU:
		case length < cpuSize:
			return nil, fmt.Errorf("%w: the registers of a processor have %d bytes", ErrCorrupt, length)
		default:
			at := func(i int) uint64 { return binary.LittleEndian.Uint64(entry[i:]) }
			vcpus = append(vcpus, VCPU{SP: at(cpuSP), CR3: at(cpuCR3), CR4: at(cpuCR4), GS: at(cpuGS), KernelGS: at(cpuKernelGS)})
		}
	}
	return nil, fmt.Errorf("%w: its HVM context has no end", ErrCorrupt)
}
