package privcmd

import (
	"cmp"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Operations of memory paging, as in Xen's public headers memory.h, domctl.h and vm_event.h.
const (
	memoryDecrease = 1  // XENMEM_decrease_reservation
	memoryPaging   = 20 // XENMEM_paging_op

	pagingNominate = 0
	pagingEvict    = 1
	pagingIn       = 2

	domctlEvents  = 56 // XEN_DOMCTL_vm_event_op
	eventsEnable  = 0
	eventsDisable = 1
	eventsVersion = 3
	eventsPaging  = 1 // the mode
)

// PagingVersion is the version of Xen's events of memory paging that is known here.
const PagingVersion = 7

// PagingRing is the parameter (Param) that says which of a domain's frames is for its ring of paging events.
const PagingRing = 27

// Numbers of domains that cannot be.
const (
	domainNone    = 0x7ff4 // DOMID_INVALID: no domain is meant
	domainNobody  = 0x7fef // the last that a guest may have
	pagingArgSize = 24     // of struct xen_mem_paging_op
	callSize      = 64     // of struct multicall_entry
)

// Paging is nil where the hypervisor can page a domain's memory in on demand. Where it cannot, the error matches
// [hypervisor.ErrNotSupported] and says why.
func (h *Handle) Paging() error {
	// What has it looks for the domain.
	err := h.with(func(b buffer) error {
		b.pagingArg(0, pagingNominate, domainNobody, 0, 0)
		_, err := h.call(opMemory, memoryPaging, b.at(0))
		return err
	})
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return hypervisor.Lacksf("Xen %v was compiled without memory paging (CONFIG_MEM_PAGING)", h.release)
	case !errors.Is(err, unix.ESRCH):
		return hypervisor.Lacksf("Xen %v says of memory paging: %v", h.release, err)
	}
	var version uint32
	if err := h.events(domainNone, eventsVersion, func(args []byte) { version = le.Uint32(args[8:]) }); err != nil {
		return hypervisor.Lacksf("Xen %v does not tell the version of its events: %v", h.release, err)
	}
	if version != PagingVersion {
		return hypervisor.Lacksf("Xen %v has version %d of its events, and %d is known here", h.release, version, PagingVersion)
	}
	return nil
}

// events does an operation on a domain's ring of paging events.
func (h *Handle) events(d Domain, operation uint32, read func(args []byte)) error {
	return h.controlWith(domctlEvents, d, func(args []byte) {
		le.PutUint32(args, operation)
		le.PutUint32(args[4:], eventsPaging)
	}, read)
}

// EnablePaging has Xen put a domain's paging events into its ring, whose page has to be there, and returns the event
// channel that tells of them. A domain that cannot be paged is [hypervisor.ErrNotSupported].
func (h *Handle) EnablePaging(d Domain) (port uint32, err error) {
	err = h.events(d, eventsEnable, func(args []byte) { port = le.Uint32(args[8:]) })
	switch {
	case err == nil:
		return port, nil
	case errors.Is(err, unix.ENODEV):
		return 0, hypervisor.Lacksf("Xen pages memory only where the processor has nested page tables")
	case errors.Is(err, unix.EMLINK):
		return 0, hypervisor.Lacksf("Xen does not page memory of a domain that has an IOMMU (passthrough)")
	case errors.Is(err, unix.EXDEV):
		return 0, hypervisor.Lacksf("Xen does not page memory of a domain that populates it on demand (memory below maxmem)")
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, hypervisor.Lacksf("Xen does not page this domain's memory: it has no frame for the ring, or domain 0 is no PV guest")
	}
	return 0, fmt.Errorf("page memory of domain %d on demand: %w", d, err)
}

// DisablePaging ends what EnablePaging began. No page may be out.
func (h *Handle) DisablePaging(d Domain) error {
	if err := h.events(d, eventsDisable, nil); err != nil {
		return fmt.Errorf("end the paging of domain %d: %w", d, err)
	}
	return nil
}

// Withdraw takes a frame from a domain. Who has it mapped keeps it.
func (h *Handle) Withdraw(d Domain, frame uint64) error {
	err := h.with(func(b buffer) error {
		const head = 64 // struct xen_memory_reservation, and the frame behind it
		le.PutUint64(b, b.at(head))
		le.PutUint64(b[8:], 1)
		le.PutUint16(b[24:], uint16(d))
		le.PutUint64(b[head:], frame)
		n, err := h.call(opMemory, memoryDecrease, b.at(0))
		if err == nil && n != 1 {
			err = unix.EBUSY
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("take frame %#x from domain %d: %w", frame, d, err)
	}
	return nil
}

// pagingArg writes a struct xen_mem_paging_op.
func (b buffer) pagingArg(at int, operation byte, d Domain, content, frame uint64) {
	b[at] = operation
	le.PutUint16(b[at+2:], uint16(d))
	le.PutUint64(b[at+8:], content)
	le.PutUint64(b[at+16:], frame)
}

// PageOut takes the content of frames from a domain, which is lost: whoever touches one waits until it was paged in. kept are those
// that stay as they are, because Xen itself or another domain has them in use.
func (h *Handle) PageOut(d Domain, frames []uint64) (kept []uint64, err error) {
	const most = bufferSize / (2*callSize + 2*pagingArgSize)
	for len(frames) > 0 {
		some := frames[:min(most, len(frames))]
		frames = frames[len(some):]
		err := h.with(func(b buffer) error {
			args := 2 * len(some) * callSize
			for i, f := range some {
				at := args + 2*i*pagingArgSize
				b.pagingArg(at, pagingNominate, d, 0, f)
				b.pagingArg(at+pagingArgSize, pagingEvict, d, 0, f)
				b.entry(2*i, opMemory, memoryPaging, b.at(at))
				b.entry(2*i+1, opMemory, memoryPaging, b.at(at+pagingArgSize))
			}
			if err := h.multicall(b, 2*len(some)); err != nil {
				return err
			}
			for i, f := range some {
				switch err := cmp.Or(b.result(2*i), b.result(2*i+1)); {
				case errors.Is(err, unix.EBUSY):
					kept = append(kept, f)
				case err != nil:
					return fmt.Errorf("frame %#x: %w", f, err)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("page out memory of domain %d: %w", d, err)
		}
	}
	return kept, nil
}

// PageIn gives back frames that are out, with content: a page for each. One that is not out is left as it is. It returns how many
// were out.
func (h *Handle) PageIn(d Domain, frames []uint64, content []byte) (in int, err error) {
	const most = bufferSize / (callSize + pagingArgSize + PageSize)
	for len(frames) > 0 {
		some := frames[:min(most, len(frames))]
		err := h.with(func(b buffer) error {
			args := len(some) * callSize
			pages := args + len(some)*pagingArgSize
			copy(b[pages:], content[:len(some)*PageSize])
			for i, f := range some {
				at := args + i*pagingArgSize
				b.pagingArg(at, pagingIn, d, b.at(pages+i*PageSize), f)
				b.entry(i, opMemory, memoryPaging, b.at(at))
			}
			if err := h.multicall(b, len(some)); err != nil {
				return err
			}
			for i, f := range some {
				switch err := b.result(i); {
				case err == nil:
					in++
				case !errors.Is(err, unix.ENOENT):
					return fmt.Errorf("frame %#x: %w", f, err)
				}
			}
			return nil
		})
		if err != nil {
			return in, fmt.Errorf("page in memory of domain %d: %w", d, err)
		}
		frames, content = frames[len(some):], content[len(some)*PageSize:]
	}
	return in, nil
}
