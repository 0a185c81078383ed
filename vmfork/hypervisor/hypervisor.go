// Package hypervisor says what VM fork needs of a hypervisor, and nothing more.
//
// # What a driver does
//
// A fork needs four things (paper section 3.2): start a machine, suspend it
// to the state that is not RAM, make a machine from such a state over a given
// RAM, and kill it. RAM itself is not in what a driver returns: it is a file, and
// who else fills that file (memtap) is not the driver's matter.
//
//  1. [Driver.Boot] starts a guest. When it is suspended, [Config.MemoryPath] is its
//     RAM: because it was a shared mapping of the file all along, or because
//     the driver has written it there.
//  2. [Driver.Prepare] starts what can be started of a machine of the same shape over
//     a RAM file, which it does not change, and leaves it waiting: what starts then
//     is off the path of a fork.
//  3. [VM.Restore] loads a device state into a prepared one and runs it. Its RAM comes
//     from the file, page by page as it is touched, or all at once before.
//  4. [VM.Suspend] stops a machine and writes its device state. From then on
//     its RAM does not change: state and RAM belong to one instant. A booted
//     machine's RAM is the file; of one that was restored, [VM.Dirtied] tells
//     which pages are its own, and reads them.
//  5. A machine that was suspended for a fork goes on in another that was
//     prepared with the same disk and the same ports. If that fails,
//     [VM.Resume] lets the old one go on instead.
//  6. [VM.Kill] ends one; [VM.Done] tells that one has ended, and [VM.Err] why.
//
// # Locking
//
// A Driver may be used by many goroutines at once. The methods of one VM are
// called one at a time, except Kill, Done, Err and CPUTime, which anyone may
// call whenever they like.
package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
)

// ErrNotSupported is matched by the error of a probe that found this machine
// to lack something.
var ErrNotSupported = errors.New("not supported on this machine")

// Lacks is an error that matches [ErrNotSupported] and says, on its own, what
// is missing and what to do.
type Lacks string

// Lacksf formats one.
func Lacksf(format string, args ...any) Lacks { return Lacks(fmt.Sprintf(format, args...)) }

func (l Lacks) Error() string { return string(l) }

// Is makes errors.Is(err, ErrNotSupported) hold.
func (l Lacks) Is(target error) bool { return target == ErrNotSupported }

// Shape is what two machines must have in common for the device state of one
// to load into the other.
type Shape struct {
	VCPUs  int   `json:"vcpus"`
	Memory int64 `json:"memory"` // bytes, a multiple of 1 MiB
}

// Kernel is what a guest boots from.
type Kernel struct {
	Image   string // path of a bzImage, or of an ELF file where the hypervisor takes one
	Initrd  string // path of an initramfs
	Cmdline string // without what the driver adds (console, clock)
}

// Config describes one machine to start.
type Config struct {
	Name string // a word for logs and process lists: "parent", "clone-3"
	Dir  string // an existing folder for the console log (ConsolePath), owned by the job
	Shape

	MemoryPath string // the RAM file, exactly Memory bytes long
	DiskPath   string // a raw image, "" for no disk

	Tap *os.File         // the host end of the network device, nil for no network
	MAC net.HardwareAddr // address of the network device as the guest finds it at boot, and when it is restored if that is not in its state

	Ports []Port // serial ports, in an order that is part of the machine's shape
}

// Port is a serial port of a machine: a name that the guest finds it by, and
// the machine's end of a connection whose other end its owner keeps. It stays
// the owner's: a machine that goes on in another process keeps its connections.
type Port struct {
	Name string
	File *os.File
}

// Description is what a descriptor records of a machine besides its shape.
type Description struct {
	Accelerator string             // "kvm", "tcg"
	Machine     string             // the machine type
	Devices     []string           // in the order of creation
	MemoryMap   []descriptor.Range // where the RAM file appears to the guest
}

// Driver starts machines on one kind of hypervisor.
type Driver interface {
	// Name is the hypervisor's name as it stands in descriptors: "qemu".
	Name() string
	// Version identifies all that a device state depends on besides the
	// shape: version, accelerator, machine type. States load only into the
	// same version.
	Version() string
	// Describe says what a machine of that shape is, for its descriptor.
	Describe(s Shape) Description
	// Boot starts a guest from a kernel. It returns when the machine runs.
	Boot(ctx context.Context, cfg Config, k Kernel) (VM, error)
	// Prepare starts a machine that waits for Restore. It returns when the
	// hypervisor is ready for it.
	Prepare(ctx context.Context, cfg Config) (VM, error)
}

// VM is one machine.
type VM interface {
	// Suspend stops the vCPUs, returns the device state, and stops the
	// machine's process where it stands: nothing of it runs until Resume,
	// and there is otherwise nothing to do with it but Dirtied and Kill.
	Suspend(ctx context.Context) (state []byte, err error)
	// Resume lets a suspended machine go on.
	Resume(ctx context.Context) error
	// Dirtied says which pages of RAM, of those of a suspended machine that
	// was restored, are the machine's own and no longer the memory file's.
	// ram reads them, at their offsets in the file, until Kill.
	Dirtied(ctx context.Context) (pages *bitset.BitSet, ram io.ReaderAt, err error)
	// Restore loads a device state into a machine that Prepare made. It
	// returns when the vCPUs run. A state that does not load ends the
	// machine, and the error says what the hypervisor said.
	Restore(ctx context.Context, state []byte) error
	// Kill ends the machine and waits until it is gone. Killing twice is
	// no error.
	Kill()
	// Done is closed when the machine is gone.
	Done() <-chan struct{}
	// Err says why the machine is gone, nil while it is not and after Kill.
	Err() error
	// CPUTime is what the hypervisor's process has used so far.
	CPUTime() (time.Duration, error)
	// PID is that process, for those who want to know more of it; 0 if the
	// machine has none.
	PID() int
}
