package qemu

import (
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A seccomp filter is inherited by what a thread starts and can never be
// taken off, so one thread exists for nothing but starting QEMU under it.
var nohuge struct {
	once  sync.Once
	start chan startRequest
	err   error
}

type startRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// startNoHuge starts cmd so that its madvise(…, MADV_HUGEPAGE) fails with
// EINVAL, as on a kernel without huge pages. QEMU asks for them on all of its
// RAM and carries on without; with them the kernel reads memtap's file 2 MB
// at a time, whatever the window.
func startNoHuge(cmd *exec.Cmd) error {
	nohuge.once.Do(func() {
		nohuge.start = make(chan startRequest)
		installed := make(chan error)
		go func() {
			runtime.LockOSThread() // for ever: see above
			if nohuge.err = installFilter(); nohuge.err != nil {
				installed <- nohuge.err
				return
			}
			close(installed)
			for r := range nohuge.start {
				r.done <- r.cmd.Start()
			}
		}()
		<-installed
	})
	if nohuge.err != nil {
		return nohuge.err
	}
	r := startRequest{cmd, make(chan error)}
	nohuge.start <- r
	return <-r.done
}

func installFilter() error {
	const (
		offsetNr   = 0  // struct seccomp_data: nr
		offsetArg2 = 32 // args[2], low half on little-endian machines
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetNr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MADVISE, Jt: 0, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetArg2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.MADV_HUGEPAGE, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges for QEMU: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("install the seccomp filter that keeps QEMU from huge pages: %w", err)
	}
	return nil
}
