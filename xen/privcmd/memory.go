package privcmd

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageSize is that of a frame.
const PageSize = 4096

// SuperOrder is the order of a superpage: 2^9 frames.
const SuperOrder = 9

// SuperFrames is how many frames a superpage has.
const SuperFrames = 1 << SuperOrder

const memoryPopulate = 6 // XENMEM_populate_physmap

// Populate gives a domain memory: for each frame in frames a piece of 2^order
// frames that begins there. It returns how many pieces it made, fewer than it was
// asked for only with an error. What is in the memory is not said.
func (h *Handle) Populate(d Domain, frames []uint64, order uint) (done int, err error) {
	const head = 64 // struct xen_memory_reservation, and the frames behind it
	for done < len(frames) {
		some := frames[done:min(len(frames), done+(bufferSize-head)/8)]
		err := h.with(func(b buffer) error {
			le.PutUint64(b, b.at(head))
			le.PutUint64(b[8:], uint64(len(some)))
			le.PutUint32(b[16:], uint32(order))
			le.PutUint16(b[24:], uint16(d))
			for i, f := range some {
				le.PutUint64(b[head+8*i:], f)
			}
			n, err := h.call(opMemory, memoryPopulate, b.at(0))
			if n > 0 {
				done += int(n)
			}
			if err == nil && n < int64(len(some)) {
				err = unix.ENOMEM
			}
			return err
		})
		if err != nil {
			return done, fmt.Errorf("give domain %d memory at frame %#x: %w", d, frames[done], err)
		}
	}
	return done, nil
}

// Mapping is memory of another domain in this process.
type Mapping struct{ Bytes []byte }

// Map maps frames of a domain, one behind the other. A frame that is not there is
// an error, and nothing is mapped.
func (h *Handle) Map(d Domain, frames []uint64, writable bool) (Mapping, error) {
	if len(frames) == 0 {
		return Mapping{}, nil
	}
	protection := unix.PROT_READ
	if writable {
		protection |= unix.PROT_WRITE
	}
	fd := h.device.Fd()
	defer runtime.KeepAlive(h.device) // or it is closed, if nobody will use the handle again
	b, err := unix.Mmap(int(fd), 0, len(frames)*PageSize, protection, unix.MAP_SHARED)
	if err != nil {
		return Mapping{}, fmt.Errorf("map memory of domain %d: %w", d, err)
	}
	errnos := make([]int32, len(frames))
	arg := mapBatch{num: uint32(len(frames)), domain: d, addr: uintptr(unsafe.Pointer(&b[0])), frames: &frames[0], errnos: &errnos[0]}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, ioctlMapBatch, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(arg)
	err = mapError(d, frames, errno, errnos)
	if err != nil {
		unix.Munmap(b)
		return Mapping{}, err
	}
	return Mapping{b}, nil
}

// mapBatch is struct privcmd_mmapbatch_v2.
type mapBatch struct {
	num    uint32
	domain Domain
	_      uint16
	addr   uintptr
	frames *uint64
	errnos *int32
}

const ioctlMapBatch = 32<<16 | 'P'<<8 | 4 // IOCTL_PRIVCMD_MMAPBATCH_V2

// mapError says which frame could not be mapped.
func mapError(d Domain, frames []uint64, errno unix.Errno, errnos []int32) error {
	for i, e := range errnos {
		if e != 0 {
			return fmt.Errorf("map frame %#x of domain %d: %w", frames[i], d, unix.Errno(-e))
		}
	}
	if errno != 0 {
		return fmt.Errorf("map memory of domain %d: %w", d, errno)
	}
	return nil
}

// Unmap ends a mapping.
func (m Mapping) Unmap() error {
	if m.Bytes == nil {
		return nil
	}
	return unix.Munmap(m.Bytes)
}

const hvmGetParam = 1 // HVMOP_get_param

// Param returns a parameter of an HVM or PVH domain, by its number in Xen's public
// header hvm/params.h.
func (h *Handle) Param(d Domain, index uint32) (value uint64, err error) {
	err = h.with(func(b buffer) error {
		le.PutUint16(b, uint16(d))
		le.PutUint32(b[4:], index)
		_, err := h.call(opHVM, hvmGetParam, b.at(0))
		value = le.Uint64(b[8:])
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("get parameter %d of domain %d: %w", index, d, err)
	}
	return value, nil
}
