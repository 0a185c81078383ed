package qemu

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A guest on KVM has the processor of its host, or what KVM lets it see of it
// (-cpu host). Its kernel has settled by then which instructions to use, and how
// large a thread's registers are. So a state is of use only where a guest would
// find the same.

// kvmGetSupportedCPUID asks what KVM lets a guest see, in a struct kvm_cpuid2: the
// number of entries and four bytes of padding, and then the entries.
const kvmGetSupportedCPUID = 0xc008ae05

// cpuidEntry is struct kvm_cpuid_entry2.
type cpuidEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// maxCPUID is more entries than any processor has (KVM_MAX_CPUID_ENTRIES).
const maxCPUID = 256

// telling are the registers, by function and index, that say what a processor can
// do: as masks of EAX, EBX, ECX and EDX. Others have numbers of the very processor
// that was asked, or its caches.
var telling = map[[2]uint32][4]uint32{
	{0x0, 0}:        {0, ^uint32(0), ^uint32(0), ^uint32(0)},          // vendor
	{0x1, 0}:        {^uint32(0xf), 0, ^uint32(0), ^uint32(0)},        // family and model without the stepping, features
	{0x7, 0}:        {0, ^uint32(0), ^uint32(0), ^uint32(0)},          // features
	{0x7, 1}:        {^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}, // features
	{0xd, 0}:        {^uint32(0), 0, 0, ^uint32(0)},                   // which registers XSAVE keeps
	{0xd, 1}:        {^uint32(0), 0, ^uint32(0), ^uint32(0)},          // and how
	{0x40000001, 0}: {^uint32(0), 0, 0, 0},                            // KVM's own
	{0x80000001, 0}: {0, 0, ^uint32(0), ^uint32(0)},                   // features
	{0x80000008, 0}: {0xffff, ^uint32(0), 0, 0},                       // widths of addresses, features
	{0x8000000a, 0}: {0, 0, 0, ^uint32(0)},                            // nested virtualisation
}

// kvmProcessor identifies the processor that KVM shows a guest here, as a word;
// "unknown" where KVM cannot be asked, and no guest be run.
var kvmProcessor = sync.OnceValue(func() string {
	entries, err := supportedCPUID()
	if err != nil {
		return "unknown"
	}
	return identify(entries)
})

// identify makes a word of what tells processors apart.
func identify(entries []cpuidEntry) string {
	h := sha256.New()
	for _, e := range entries {
		if mask, ok := telling[[2]uint32{e.Function, e.Index}]; ok {
			binary.Write(h, binary.LittleEndian, [6]uint32{e.Function, e.Index, e.EAX & mask[0], e.EBX & mask[1], e.ECX & mask[2], e.EDX & mask[3]})
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

func supportedCPUID() ([]cpuidEntry, error) {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	var all struct {
		n, _    uint32
		entries [maxCPUID]cpuidEntry
	}
	all.n = maxCPUID
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), kvmGetSupportedCPUID, uintptr(unsafe.Pointer(&all))); errno != 0 {
		return nil, errno
	}
	return all.entries[:min(all.n, maxCPUID)], nil
}
