package rig

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
)

// QEMU's translator has a fault that hypervisors in a rig meet. Its VMRUN delivers
// the interrupt that the hypervisor has put into EVENTINJ, and leaves the vector
// in the processor's exception_index (target/i386/tcg/sysemu/svm_helper.c, case
// SVM_EVTINJ_TYPE_INTR; seen in 7.2). The guest's next exit or exception takes it
// away. But when QEMU's loop is left before that for a reason of its own (cpu-exec.c,
// the end of cpu_handle_interrupt), it is taken for an exception that waits, and
// delivered: the guest is in a handler a second time, with interrupts off and its
// locks held, and stands still. Where clocks count instructions, every timer of
// the machine is such a reason.
//
// So a rig's QEMU is started as a debugger starts a program, and before it runs
// that one instruction is taken out of its memory.

// fault is the instruction: where it is in the program's addresses, and its bytes.
type fault struct {
	at    uint64
	store []byte
}

// Mendable says whether the fault is found in this machine's QEMU; the error says why
// not. Where it is not, time that counts instructions ([Machine.OwnTime]) makes guests
// of a guest stand still.
func Mendable() error {
	program, err := exec.LookPath(qemu.Binary)
	if err == nil {
		_, err = findFault(program)
	}
	return err
}

// deliver is the function that VMRUN calls next.
const deliver = "do_interrupt_x86_hardirq"

func findFault(program string) (*fault, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("mend QEMU: %w", err)
	}
	defer f.Close()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("mend QEMU: %w", err)
	}
	var callee uint64
	for _, s := range symbols {
		if s.Name == deliver {
			callee = s.Value
		}
	}
	section := f.Section(".text")
	if callee == 0 || section == nil {
		return nil, fmt.Errorf("mend QEMU: %s does not say where %s is", program, deliver)
	}
	text, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("mend QEMU: %w", err)
	}
	var found []*fault
	for at := 0; ; at++ {
		i := bytes.IndexByte(text[at:], movStore)
		if i < 0 {
			break
		}
		if at += i; isFault(text[at:], section.Addr+uint64(at), callee) {
			found = append(found, &fault{section.Addr + uint64(at), text[at : at+storeSize]})
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("mend QEMU: %d places in %s look as if they had the fault", len(found), program)
	}
	return found[0], nil
}

// Instructions as Debian's compiler makes them of
//
//	cs->exception_index = vector;     mov    %r32, disp32(base)
//	env->error_code = …               (somewhere)
//	env->exception_is_int = 0;        movl   $0, disp32(base)
//	env->exception_next_eip = -1;     movq   $-1, disp32(base)
//	do_interrupt_x86_hardirq(…);      call   rel32
const (
	movStore  = 0x89
	storeSize = 6
	nearCall  = 64 // bytes until the call at most
)

func isFault(code []byte, at, callee uint64) bool {
	const zero, minus, end = storeSize, storeSize + 10, storeSize + 21
	if len(code) < end+nearCall || code[0] != movStore || code[1]>>6 != 2 {
		return false
	}
	base := code[1] & 7
	if base == 4 || // another form of address
		!bytes.Equal(code[zero:zero+2], []byte{0xc7, 0x80 | base}) || binary.LittleEndian.Uint32(code[zero+6:]) != 0 ||
		!bytes.Equal(code[minus:minus+3], []byte{0x48, 0xc7, 0x80 | base}) || binary.LittleEndian.Uint32(code[minus+7:]) != 1<<32-1 {
		return false
	}
	for i := end; i < end+nearCall-5; i++ {
		to := int64(at) + int64(i) + 5 + int64(int32(binary.LittleEndian.Uint32(code[i+1:])))
		if code[i] == 0xe8 && uint64(to) == callee {
			return true
		}
	}
	return false
}

// nothing is one instruction of the store's size that does nothing.
var nothing = []byte{0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00}

// mend takes the fault out of a process that is stopped at its first instruction,
// and lets it go. It is for the thread that started it.
func (f *fault) mend(pid int, program string) error {
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || !status.Stopped() {
		return fmt.Errorf("mend QEMU: wait until it stands at its first instruction: status %#x (%v)", uint32(status), err)
	}
	base, err := loadedAt(pid, program)
	if err != nil {
		return fmt.Errorf("mend QEMU: %w", err)
	}
	at := uintptr(base + f.at)
	was := make([]byte, len(f.store))
	if _, err := unix.PtracePeekText(pid, at, was); err != nil || !bytes.Equal(was, f.store) {
		return fmt.Errorf("mend QEMU: in its memory are %x, want %x (%v)", was, f.store, err)
	}
	if _, err := unix.PtracePokeText(pid, at, nothing); err != nil {
		return fmt.Errorf("mend QEMU: %w", err)
	}
	if err := unix.PtraceDetach(pid); err != nil {
		return fmt.Errorf("let QEMU go: %w", err)
	}
	return nil
}

// loadedAt is what must be added to a program's own addresses in a process.
func loadedAt(pid int, program string) (uint64, error) {
	f, err := elf.Open(program)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if f.Type == elf.ET_EXEC {
		return 0, nil
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	// The program is mapped first, and its first segment has address 0.
	var begin uint64
	line, _, _ := strings.Cut(string(maps), "\n")
	if _, err := fmt.Sscanf(line, "%x-", &begin); err != nil {
		return 0, errors.Join(fmt.Errorf("%q is no line of maps", line), err)
	}
	return begin, nil
}
