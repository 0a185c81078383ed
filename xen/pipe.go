package xen

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is what a pipe for a guest's memory holds, in bytes. With the usual 64 KB its ends wait for each other two thousand
// times for 128 MB.
const pipeSize = 1 << 20

// memoryPipe makes one. Where the kernel does not let it be that large, it is slower.
func memoryPipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	if raw, err := r.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	return r, w, nil
}
