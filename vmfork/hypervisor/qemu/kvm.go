package qemu

import (
	"encoding/binary"
)

// The few calls and layouts of Linux's <linux/kvm.h> (x86) that the probe
// needs.
const (
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetTSSAddr          = 0xae47
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84

	kvmSregsSize     = 0x138
	kvmRunExitReason = 8 // offset of exit_reason in struct kvm_run
	kvmExitHLT       = 5
)

type kvmMemoryRegion struct {
	Slot, Flags  uint32
	GuestAddress uint64
	Size         uint64
	Address      uint64
}

type kvmRegs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFlags                            uint64
}

// enterLongMode edits a struct kvm_sregs so that the vCPU starts in 64-bit
// mode with flat segments: cs ds es fs gs ss tr ldt (24 bytes each), gdt idt
// (16 each), cr0 cr2 cr3 cr4 cr8 efer.
func enterLongMode(sregs []byte) {
	segment := func(i int, code bool) {
		s := sregs[i*24:]
		binary.LittleEndian.PutUint64(s, 0)
		binary.LittleEndian.PutUint32(s[8:], 0xffffffff)
		selector, kind, db, long := uint16(16), byte(3), byte(1), byte(0)
		if code {
			selector, kind, db, long = 8, 11, 0, 1
		}
		binary.LittleEndian.PutUint16(s[12:], selector)
		// type present dpl db s l g avl unusable
		copy(s[14:], []byte{kind, 1, 0, db, 1, long, 1, 0, 0})
	}
	for i := range 6 {
		segment(i, i == 0)
	}
	const registers = 8*24 + 2*16
	put := func(i int, v uint64) { binary.LittleEndian.PutUint64(sregs[registers+8*i:], v) }
	put(0, 0x80050033) // cr0: PG, PE and friends
	put(2, probePML4)  // cr3
	put(3, 1<<5)       // cr4: PAE
	put(5, 0x500)      // efer: LME, LMA
}
