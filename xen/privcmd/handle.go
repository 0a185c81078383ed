package privcmd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Device is through which hypercalls are made.
const Device = "/dev/xen/privcmd"

// bufferDevice is where memory for their arguments comes from, since Linux 4.18.
const bufferDevice = "/dev/xen/hypercall"

// Domain is the number of a domain.
type Domain uint16

// Handle makes hypercalls.
type Handle struct {
	device  *os.File
	call    func(op uint64, args ...uint64) (int64, error) // a hypercall, errors as errno
	buffers chan buffer
	domctl  uint32 // version of the interface
	release Release
	makes   Makes
}

// buffer is memory for the arguments of one hypercall.
type buffer []byte

const (
	bufferSize = 64 << 10
	buffers    = 8
)

// Hypercalls, as in Xen's public header xen.h.
const (
	opMemory    = 12
	opMulticall = 13
	opVersion   = 17
	opHVM       = 34
	opDomctl    = 36
)

// Open opens Xen's device. An error that matches [hypervisor.ErrNotSupported]
// says that there is no Xen here, or one that is not known.
func Open() (*Handle, error) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, hypervisor.Lacksf("this is no privileged domain of Xen's (%v)", err)
	}
	if err != nil {
		return nil, err
	}
	memory, err := bufferMemory()
	if err != nil {
		f.Close()
		return nil, err
	}
	h := &Handle{device: f}
	h.call = func(op uint64, args ...uint64) (int64, error) {
		a := [6]uint64{op} // struct privcmd_hypercall
		copy(a[1:], args)
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlHypercall, uintptr(unsafe.Pointer(&a)))
		runtime.KeepAlive(f) // or it is closed meanwhile, if this is the last call
		if errno != 0 {
			return 0, errno
		}
		return int64(r), nil
	}
	h.use(memory)
	if err := h.probe(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

const ioctlHypercall = 6*8<<16 | 'P'<<8 // IOCTL_PRIVCMD_HYPERCALL

// bufferMemory makes memory for all buffers.
func bufferMemory() ([]byte, error) {
	const size = buffers * bufferSize
	if f, err := os.OpenFile(bufferDevice, os.O_RDWR, 0); err == nil {
		defer f.Close()
		b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", bufferDevice, err)
		}
		return b, nil
	}
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map memory for hypercalls: %w", err)
	}
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		unix.Munmap(b)
		return nil, fmt.Errorf("map memory for hypercalls: %w", err)
	}
	return b, nil
}

// use makes buffers of memory. Each is touched, or the hypervisor would find
// nothing there.
func (h *Handle) use(memory []byte) {
	clear(memory)
	h.buffers = make(chan buffer, buffers)
	for i := range buffers {
		h.buffers <- memory[i*bufferSize:][:bufferSize:bufferSize]
	}
}

// Close closes the device, when no call is under way any more. The buffers stay
// mapped: 512 KB, once for a driver.
func (h *Handle) Close() error {
	if h.device == nil {
		return nil
	}
	return h.device.Close()
}

// with calls do with a buffer full of zeros.
func (h *Handle) with(do func(b buffer) error) error {
	b := <-h.buffers
	defer func() { h.buffers <- b }()
	clear(b)
	return do(b)
}

// at is the address of a place in a buffer, as the hypervisor is told it.
func (b buffer) at(offset int) uint64 { return uint64(uintptr(unsafe.Pointer(&b[offset]))) }

var le = binary.LittleEndian

// Release is the version of a hypervisor.
type Release struct {
	Major, Minor int
	Extra        string // such as ".5"
}

func (r Release) String() string { return fmt.Sprintf("%d.%d%s", r.Major, r.Minor, r.Extra) }

// Release is the hypervisor's version.
func (h *Handle) Release() Release { return h.release }

// probe finds out what the hypervisor is, and which of its interfaces it has.
func (h *Handle) probe() error {
	v, err := h.call(opVersion, versionNumber, 0)
	if err != nil {
		return fmt.Errorf("ask Xen for its version: %w", err)
	}
	extra, err := h.versionText(versionExtra, 16)
	if err != nil {
		return fmt.Errorf("ask Xen for its version: %w", err)
	}
	h.release = Release{Major: int(v >> 16), Minor: int(v & 0xffff), Extra: string(extra)}
	capabilities, err := h.versionText(versionCapabilities, 1024)
	if err != nil {
		return fmt.Errorf("ask Xen which guests it makes: %w", err)
	}
	h.makes = makesOf(capabilities)
	if h.release.Major != 4 || h.release.Minor < 17 {
		return hypervisor.Lacksf("Xen %v is not one that will do: 4.17 is the oldest", h.release)
	}
	for h.domctl = domctlLast; h.domctl >= domctlFirst; h.domctl-- {
		if _, err = h.Info(0); !errors.Is(err, unix.EACCES) {
			return err
		}
	}
	h.domctl = 0
	return hypervisor.Lacksf("Xen %v has another domctl interface than versions %#x to %#x, which are known here; use Xen 4.17 to 4.22",
		h.release, domctlFirst, domctlLast)
}
