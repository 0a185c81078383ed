package privcmd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// fake is a hypervisor that reads what hypercalls point to, as Xen does.
type fake struct {
	version   int64
	domctl    uint32
	domains   map[Domain]*domain
	populated []string
	refuse    int // populates so many, and no more

	paging error           // of memory paging, if there is none
	events uint32          // version of its events
	out    map[uint64]byte // frames that are nominated (0) or out (1)
	in     map[uint64]byte // first bytes of pages that were brought
	used   map[uint64]bool // frames that are in use
}

type domain struct {
	flags uint32
	pause int
}

// start makes a Handle over one.
func (f *fake) start(t *testing.T) (*Handle, error) {
	memory, err := unix.Mmap(-1, 0, buffers*bufferSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	base := uint64(uintptr(unsafe.Pointer(&memory[0])))
	h := &Handle{}
	h.call = func(op uint64, args ...uint64) (int64, error) {
		mem := func(at uint64) []byte { return memory[at-base:] }
		switch op {
		case opVersion:
			switch args[0] {
			case versionNumber:
				return f.version, nil
			case versionExtra:
				copy(mem(args[1]), ".5\x00")
			case versionCapabilities:
				copy(mem(args[1]), "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_64 \x00")
			}
			return 0, nil
		case opDomctl:
			return f.control(mem(args[0]))
		case opMulticall:
			for i := range int(args[1]) {
				e := mem(args[0])[i*callSize:]
				r, err := h.call(le.Uint64(e), le.Uint64(e[16:]), le.Uint64(e[24:]))
				if errno, ok := err.(unix.Errno); ok {
					r = -int64(errno)
				}
				le.PutUint64(e[8:], uint64(r))
			}
			return 0, nil
		case opMemory:
			if args[0] == memoryPaging {
				return 0, f.page(mem(args[1]), mem)
			}
			b := mem(args[1])
			frames := mem(le.Uint64(b))
			n := min(int(le.Uint64(b[8:])), f.refuse)
			f.refuse -= n
			for i := range n {
				f.populated = append(f.populated, fmt.Sprintf("%d:%#x/%d", le.Uint16(b[24:]), le.Uint64(frames[8*i:]), le.Uint32(b[16:])))
			}
			return int64(n), nil
		case opHVM:
			b := mem(args[1])
			if args[0] != hvmGetParam || f.domains[Domain(le.Uint16(b))] == nil {
				return 0, unix.ESRCH
			}
			le.PutUint64(b[8:], uint64(le.Uint32(b[4:]))<<12)
			return 0, nil
		}
		return 0, unix.ENOSYS
	}
	h.use(memory)
	return h, h.probe()
}

func (f *fake) control(b []byte) (int64, error) {
	if le.Uint32(b[4:]) != f.domctl {
		return 0, unix.EACCES
	}
	id := Domain(le.Uint16(b[8:]))
	d := f.domains[id]
	switch command := le.Uint32(b); command {
	case domctlInfo:
		for ; d == nil; d = f.domains[id] {
			if id++; id > 100 {
				return 0, unix.ESRCH
			}
		}
		le.PutUint16(b[16:], uint16(id))
		le.PutUint32(b[20:], d.flags)
		le.PutUint64(b[24:], 1234)
		le.PutUint64(b[72:], uint64(3*time.Second))
	case domctlPause, domctlUnpause:
		if d == nil {
			return 0, unix.ESRCH
		}
		d.pause += int(domctlPause)*2 + 1 - 2*int(command)
	case domctlEvents:
		switch le.Uint32(b[16:]) {
		case eventsVersion:
			le.PutUint32(b[24:], f.events)
		case eventsEnable:
			if d == nil {
				return 0, unix.EXDEV
			}
			le.PutUint32(b[24:], 42)
		}
	default:
		return 0, unix.ENOSYS
	}
	return 0, nil
}

// page is XENMEM_paging_op.
func (f *fake) page(b []byte, mem func(uint64) []byte) error {
	if f.paging != nil {
		return f.paging
	}
	if f.domains[Domain(le.Uint16(b[2:]))] == nil {
		return unix.ESRCH
	}
	frame := le.Uint64(b[16:])
	state, nominated := f.out[frame]
	switch b[0] {
	case pagingNominate:
		if f.used[frame] || nominated {
			return unix.EBUSY
		}
		f.out[frame] = 0
	case pagingEvict:
		if !nominated || state != 0 {
			return unix.EBUSY
		}
		f.out[frame] = 1
	case pagingIn:
		if state != 1 {
			return unix.ENOENT
		}
		delete(f.out, frame)
		f.in[frame] = mem(le.Uint64(b[8:]))[0]
	}
	return nil
}

func xen417() *fake {
	return &fake{version: 4<<16 | 17, domctl: 0x15, refuse: 1 << 20, events: PagingVersion,
		out: map[uint64]byte{}, in: map[uint64]byte{}, used: map[uint64]bool{},
		domains: map[Domain]*domain{0: {}, 7: {flags: 1<<2 | 1<<3 | 3<<16}}}
}

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		version int64
		domctl  uint32
		release string
		lacks   string
	}{
		"4.17":   {4<<16 | 17, 0x15, "4.17.5", ""},
		"4.19":   {4<<16 | 19, 0x17, "4.19.5", ""},
		"old":    {4<<16 | 16, 0x14, "", "Xen 4.16.5 is not one that will do"},
		"future": {4<<16 | 30, 0x19, "", "Xen 4.30.5 has another domctl interface than versions 0x15 to 0x18"},
	} {
		f := xen417()
		f.version, f.domctl = c.version, c.domctl
		h, err := f.start(t)
		if c.lacks != "" {
			if !errors.Is(err, hypervisor.ErrNotSupported) || !strings.HasPrefix(err.Error(), c.lacks) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || h.Release().String() != c.release {
			t.Errorf("%s: it is %v (%v)", name, h.Release(), err)
		}
	}
}

func TestDomains(t *testing.T) {
	f := xen417()
	h, err := f.start(t)
	if err != nil {
		t.Fatal(err)
	}
	info, err := h.Info(7)
	if want := (Info{Shutdown: true, Paused: true, Reason: Crash, Pages: 1234, CPUTime: 3 * time.Second}); err != nil || info != want {
		t.Errorf("it is %+v (%v)", info, err)
	}
	for _, gone := range []Domain{3, 50} {
		if _, err := h.Info(gone); !errors.Is(err, unix.ESRCH) {
			t.Errorf("domain %d: %v", gone, err)
		}
	}
	if err := errors.Join(h.Pause(7), h.Pause(7), h.Unpause(7)); err != nil || f.domains[7].pause != 1 {
		t.Errorf("it is paused %d times (%v)", f.domains[7].pause, err)
	}
	if err := h.Pause(8); !errors.Is(err, unix.ESRCH) || err.Error() != "pause domain 8: no such process" {
		t.Errorf("the error is %v", err)
	}
	if v, err := h.Param(7, 17); v != 17<<12 || err != nil {
		t.Errorf("the parameter is %#x (%v)", v, err)
	}
	if _, err := h.Param(8, 17); !errors.Is(err, unix.ESRCH) {
		t.Errorf("of a domain that is not there: %v", err)
	}
}

func TestPopulate(t *testing.T) {
	f := xen417()
	h, err := f.start(t)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := h.Populate(7, []uint64{0x200, 0x400}, SuperOrder); n != 2 || err != nil {
		t.Errorf("%d pieces (%v)", n, err)
	}
	if want := []string{"7:0x200/9", "7:0x400/9"}; !slices.Equal(f.populated, want) {
		t.Errorf("populated are %v, want %v", f.populated, want)
	}
	f.populated = nil
	many := make([]uint64, 20000) // more than a buffer takes
	for i := range many {
		many[i] = uint64(i)
	}
	if n, err := h.Populate(7, many, 0); n != len(many) || err != nil || len(f.populated) != n || f.populated[n-1] != "7:0x4e1f/0" {
		t.Errorf("%d pieces (%v)", n, err)
	}
	f.refuse = 10
	n, err := h.Populate(7, many, 0)
	if n != 10 || !errors.Is(err, unix.ENOMEM) || !strings.HasPrefix(err.Error(), "give domain 7 memory at frame 0xa: ") {
		t.Errorf("%d pieces (%v)", n, err)
	}
}

func TestPaging(t *testing.T) {
	for name, c := range map[string]struct {
		paging error
		events uint32
		lacks  string
	}{
		"there is":    {nil, PagingVersion, ""},
		"not there":   {unix.ENOSYS, PagingVersion, "Xen 4.17.5 was compiled without memory paging (CONFIG_MEM_PAGING)"},
		"not allowed": {unix.EPERM, PagingVersion, "Xen 4.17.5 says of memory paging: operation not permitted"},
		"newer":       {nil, 8, "Xen 4.17.5 has version 8 of its events, and 7 is known here"},
	} {
		f := xen417()
		f.paging, f.events = c.paging, c.events
		h, err := f.start(t)
		if err != nil {
			t.Fatal(err)
		}
		err = h.Paging()
		if c.lacks == "" && err != nil || c.lacks != "" && (!errors.Is(err, hypervisor.ErrNotSupported) || err.Error() != c.lacks) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPages(t *testing.T) {
	f := xen417()
	f.used[0x300] = true
	h, err := f.start(t)
	if err != nil {
		t.Fatal(err)
	}
	if port, err := h.EnablePaging(7); port != 42 || err != nil {
		t.Errorf("the port is %d (%v)", port, err)
	}
	if _, err := h.EnablePaging(8); !errors.Is(err, hypervisor.ErrNotSupported) {
		t.Errorf("of a domain that Xen does not page: %v", err)
	}
	frames := make([]uint64, 1000) // more than a buffer takes
	content := make([]byte, len(frames)*PageSize)
	for i := range frames {
		frames[i] = uint64(i)
		content[i*PageSize] = byte(i)
	}
	kept, err := h.PageOut(7, frames)
	if err != nil || !slices.Equal(kept, []uint64{0x300}) || len(f.out) != len(frames)-1 {
		t.Errorf("%d are out, kept are %x (%v)", len(f.out), kept, err)
	}
	in, err := h.PageIn(7, frames, content)
	if err != nil || in != len(frames)-1 || len(f.out) != 0 || f.in[0x2ff] != 0xff || f.in[0x301] != 1 {
		t.Errorf("%d came in, and %d are out (%v)", in, len(f.out), err)
	}
	if _, err := h.PageOut(8, frames[:1]); err == nil || err.Error() != "page out memory of domain 8: frame 0x0: no such process" {
		t.Errorf("of a domain that is not there: %v", err)
	}
	if _, err := h.PageIn(8, frames[:1], content); !errors.Is(err, unix.ESRCH) {
		t.Errorf("of a domain that is not there: %v", err)
	}
	if err := h.DisablePaging(7); err != nil {
		t.Error(err)
	}
}

func TestMapError(t *testing.T) {
	frames := []uint64{1, 2}
	for _, c := range []struct {
		errno  unix.Errno
		errnos []int32
		want   string
	}{
		{0, []int32{0, 0}, ""},
		{0, []int32{0, -int32(unix.EINVAL)}, "map frame 0x2 of domain 7: invalid argument"},
		{unix.ENOENT, []int32{-int32(unix.ENOENT), 0}, "map frame 0x1 of domain 7: no such file or directory"},
		{unix.EPERM, []int32{0, 0}, "map memory of domain 7: operation not permitted"},
	} {
		got := ""
		if err := mapError(7, frames, c.errno, c.errnos); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("the error is %q, want %q", got, c.want)
		}
	}
}

// On Xen: this domain's own console frame belongs to nobody else, so what can be
// seen without a guest is the version and this domain.
func TestMakes(t *testing.T) {
	for said, want := range map[string]Makes{
		"xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ": {PV: true, HVM: true},
		"xen-3.0-x86_64 ":                 {PV: true},
		"hvm-3.0-x86_32 hvm-3.0-x86_64":   {HVM: true},
		"xen-3.0-x86_32p xen-3.0-aarch64": {},
		"":                                {},
	} {
		if got := makesOf([]byte(said)); got != want {
			t.Errorf("of %q it makes %+v, want %+v", said, got, want)
		}
	}
	h, err := (&fake{version: 4<<16 | 17, domctl: domctlFirst, domains: map[Domain]*domain{0: {}}}).start(t)
	if err != nil || h.Makes() != (Makes{PV: true, HVM: true}) {
		t.Errorf("it makes %+v (%v)", h.Makes(), err)
	}
}

func TestReal(t *testing.T) {
	h, err := Open()
	if errors.Is(err, hypervisor.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	info, err := h.Info(0)
	if err != nil || info.Dying || info.Shutdown || info.Pages == 0 || info.CPUTime == 0 {
		t.Errorf("Xen %v has a domain 0 that is %+v (%v)", h.Release(), info, err)
	}
	if _, err := h.Info(32000); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a domain that is not there: %v", err)
	}
	if _, err := h.Map(32000, []uint64{0}, false); err == nil {
		t.Error("memory of a domain that is not there was mapped")
	}
	t.Logf("Xen %v, domctl %#x, domain 0 has %d pages; it makes %+v", h.Release(), h.domctl, info.Pages, h.Makes())
	if h.Makes() == (Makes{}) {
		t.Error("it makes no guests")
	}
}

// The last call of a handle's life is made on a device that is open.
func TestLastMap(t *testing.T) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 300 {
		f, err := os.Open("/dev/zero") // which can be mapped, and knows nothing of Xen
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&Handle{device: f}).Map(7, make([]uint64, 1<<16), false); !errors.Is(err, unix.ENOTTY) {
			t.Fatal(err)
		}
	}
}
