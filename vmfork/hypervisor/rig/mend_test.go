package rig

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
)

// code is the fault as it is in a program at address at, with the call that comes
// after it.
func code(at, callee uint64) []byte {
	b := []byte{
		0x89, 0xb3, 0x54, 0xef, 0xff, 0xff, // mov %esi, -0x10ac(%rbx)
		0xc7, 0x83, 0x84, 0x33, 0, 0, 0, 0, 0, 0, // movl $0, 0x3384(%rbx)
		0x48, 0xc7, 0x83, 0x88, 0x33, 0, 0, 0xff, 0xff, 0xff, 0xff, // movq $-1, 0x3388(%rbx)
		0x48, 0x89, 0xdf, // mov %rbx, %rdi
	}
	call := len(b)
	b = append(b, 0xe8)
	b = binary.LittleEndian.AppendUint32(b, uint32(callee-at-uint64(call)-5))
	return append(b, make([]byte, nearCall)...)
}

func TestFault(t *testing.T) {
	const at, callee = 0x65b284, 0x6b0260
	if !isFault(code(at, callee), at, callee) {
		t.Error("the fault is not seen")
	}
	for name, change := range map[string]func(b []byte) []byte{
		"another callee":         func(b []byte) []byte { b[31]++; return b },
		"another base":           func(b []byte) []byte { b[1] = 0xb7; return b },
		"a load":                 func(b []byte) []byte { b[0] = 0x8b; return b },
		"a short address":        func(b []byte) []byte { b[1] = 0x73; return b },
		"another value":          func(b []byte) []byte { b[12] = 1; return b },
		"another value after it": func(b []byte) []byte { b[23] = 0; return b },
		"cut off":                func(b []byte) []byte { return b[:40] },
		"nothing":                func(b []byte) []byte { return nil },
	} {
		if isFault(change(code(at, callee)), at, callee) {
			t.Errorf("%s is taken for the fault", name)
		}
	}
	for _, program := range []string{"/bin/sh", "/proc/self/exe", "/etc/passwd", "/no/such/program"} {
		if _, err := findFault(program); err == nil {
			t.Errorf("%s has the fault", program)
		}
	}
}

// isMended checks that a rig's QEMU runs without the fault that the program has.
func isMended(t *testing.T, r *Rig) {
	t.Helper()
	program, err := exec.LookPath(qemu.Binary)
	if err != nil {
		t.Fatal(err)
	}
	f, err := findFault(program)
	if err != nil {
		t.Logf("not mended: %v", err)
		return
	}
	base, err := loadedAt(r.cmd.Process.Pid, program)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	is := make([]byte, len(nothing))
	if _, err := memory.ReadAt(is, int64(base+f.at)); err != nil || !bytes.Equal(is, nothing) {
		t.Errorf("at the fault QEMU has %x (%v)", is, err)
	}
}
