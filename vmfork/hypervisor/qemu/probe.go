package qemu

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// The probe's loop, and what a step of it may take. Hardware needs less than a
// nanosecond for one, and a host that emulates instruction by instruction was seen
// to take 650. What a step
// takes is taken from the best of several rounds, each twice as long as the one
// before: a busy host makes rounds longer, and none shorter, and what entering
// and leaving the guest costs, which on emulated processors is much, is lost in
// the longer ones. That it is fast is known after a few milliseconds; that it is
// slow is believed of the best of some long rounds only, for the host may have done
// something else in one, and in the next.
const (
	probeFirst = 1_000   // steps of the first round
	probeLast  = 256_000 // and of the last
	probeStep  = 50 * time.Nanosecond

	probeSure  = 10                    // times as fast or as slow: no need for longer rounds
	probeSlow  = 8_000                 // but a round that is slow proves nothing before this one
	probeProof = 3                     // and it takes so many
	probeLimit = 50 * time.Millisecond // for all, when it is slow
)

// Probe says which accelerator to take. KVM counts only when it is fast: a
// /dev/kvm that opens proves nothing. reason is nil when KVM is usable, and
// else matches [hypervisor.ErrNotSupported] and says why it is not.
func Probe(ctx context.Context) (accel Accel, reason error) {
	step, took, err := probeKVM(ctx)
	if err != nil {
		return TCG, err
	}
	if step > probeStep {
		return TCG, hypervisor.Lacksf("KVM is not usable here (a probe loop took %.0f ms)", took.Seconds()*1e3)
	}
	return KVM, nil
}

// probeKVM runs a long-mode loop in a throw-away VM with one page-table and
// returns what a step of it takes, and what all took; it stops early once that is
// known to be fast or slow.
func probeKVM(ctx context.Context) (step, took time.Duration, err error) {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return 0, 0, hypervisor.Lacksf("KVM is not usable here (%v)", err)
	}
	defer dev.Close()
	runtime.LockOSThread() // a vCPU belongs to a thread
	defer runtime.UnlockOSThread()

	ioctl := func(fd, request int, arg uintptr) (int, error) {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), arg)
		if errno != 0 {
			return 0, hypervisor.Lacksf("KVM is not usable here (ioctl %#x: %v)", request, errno)
		}
		return int(r), nil
	}
	vm, err := ioctl(int(dev.Fd()), kvmCreateVM, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(vm)
	const size = 2 << 20
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, 0, fmt.Errorf("map memory for the KVM probe: %w", err)
	}
	defer unix.Munmap(mem)
	region := kvmMemoryRegion{Size: size, Address: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if _, err := ioctl(vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return 0, 0, err
	}
	if _, err := ioctl(vm, kvmSetTSSAddr, 0xfffbd000); err != nil {
		return 0, 0, err
	}
	vcpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(vcpu)
	runSize, err := ioctl(int(dev.Fd()), kvmGetVCPUMmapSize, 0)
	if err != nil {
		return 0, 0, err
	}
	run, err := unix.Mmap(vcpu, 0, runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, 0, fmt.Errorf("map the KVM probe's vCPU: %w", err)
	}
	defer unix.Munmap(run)

	writeProbeProgram(mem)
	sregs := make([]byte, kvmSregsSize)
	if _, err := ioctl(vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&sregs[0]))); err != nil {
		return 0, 0, err
	}
	enterLongMode(sregs)
	if _, err := ioctl(vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&sregs[0]))); err != nil {
		return 0, 0, err
	}
	step = math.MaxInt64
	for n, proofs := probeFirst, 0; n <= probeLast; {
		regs := kvmRegs{RIP: probeCode, RFlags: 2, RCX: uint64(n)}
		if _, err := ioctl(vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&regs))); err != nil {
			return 0, 0, err
		}
		begin := time.Now()
		for {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vcpu), kvmRun, 0)
			if errno == 0 {
				break
			}
			// A signal, such as the Go scheduler's, interrupts the run. (The
			// exit reason may then still be that of the last round.)
			if errno != unix.EINTR && errno != unix.EAGAIN {
				return 0, 0, hypervisor.Lacksf("KVM is not usable here (ioctl %#x: %v)", kvmRun, errno)
			}
			if ctx.Err() != nil || time.Since(begin) > time.Second {
				return 0, 0, hypervisor.Lacksf("KVM is not usable here (a probe loop of %d steps did not end in %v)", n, time.Second)
			}
		}
		if reason := *(*uint32)(unsafe.Pointer(&run[kvmRunExitReason])); reason != kvmExitHLT {
			return 0, 0, hypervisor.Lacksf("KVM is not usable here (the probe ended with exit reason %d)", reason)
		}
		round := time.Since(begin)
		step = min(step, round/time.Duration(n))
		took += round
		if n >= probeSlow {
			proofs++
		}
		surely := step > probeStep*probeSure
		if step <= probeStep/probeSure || proofs >= probeProof && (surely || took > probeLimit) {
			break
		}
		if n < probeSlow || !surely {
			n *= 2
		}
	}
	return step, took, nil
}

// Where things lie in the probe's 2 MB, which one huge page maps.
const (
	probePML4 = 0x2000
	probePDPT = 0x3000
	probePD   = 0x4000
	probeCode = 0x10000
)

func writeProbeProgram(mem []byte) {
	entry := func(at int, v uint64) { *(*uint64)(unsafe.Pointer(&mem[at])) = v }
	const present, writable, huge = 1, 2, 1 << 7
	entry(probePML4, probePDPT|present|writable)
	entry(probePDPT, probePD|present|writable)
	entry(probePD, huge|present|writable)
	copy(mem[probeCode:], []byte{
		0xff, 0xc9, // dec ecx
		0x75, 0xfc, // jnz -4
		0xf4, // hlt
	})
}
