package paging

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// ring is the page through which Xen asks for pages: what its public header io/ring.h makes of vm_event.h's entries. An answer takes the
// place of a request that was consumed.
type ring struct {
	page     []byte
	consumed uint32
	answered uint32
}

// Where the indices are, and the entries.
const (
	requestProd  = 0
	requestEvent = 4
	answerProd   = 8
	answerEvent  = 12
	ringHead     = 64
	entrySize    = 400
	ringSlots    = 8 // the largest power of two of entries in a page
)

// request is an entry of the ring. Its bytes, struct vm_event_st: version, flags, reason and number of the vCPU (u32 each), 8 that do
// not matter here, the frame (u64), its type (u32), flags of paging (u32), and registers.
type request struct {
	frame   uint64
	dropped bool // the guest has given the frame up
	entry   [entrySize]byte
}

const (
	reasonPaging  = 3 // VM_EVENT_REASON_MEM_PAGING
	flagStopped   = 1 // VM_EVENT_FLAG_VCPU_PAUSED
	pagingDropped = 1 // MEM_PAGING_DROP_PAGE
)

// errRing is a ring that cannot be read.
var errRing = errors.New("the ring of paging events cannot be read")

var le = binary.LittleEndian

func (r *ring) index(at int) *uint32 { return (*uint32)(unsafe.Pointer(&r.page[at])) }

func (r *ring) place(i uint32) []byte {
	return r.page[ringHead+int(i%ringSlots)*entrySize:][:entrySize]
}

// clear makes an empty ring, before Xen uses it.
func (r *ring) clear() {
	clear(r.page)
	*r.index(requestEvent), *r.index(answerEvent) = 1, 1
}

// next takes a request, if there is one. When there is none, Xen will notify of the next.
func (r *ring) next() (q request, ok bool, err error) {
	for again := false; ; again = true {
		prod := atomic.LoadUint32(r.index(requestProd))
		if prod-r.answered > ringSlots || prod-r.consumed > ringSlots {
			return q, false, fmt.Errorf("%w: it has %d requests", errRing, prod-r.answered)
		}
		if prod != r.consumed {
			break
		}
		if again {
			return q, false, nil
		}
		atomic.StoreUint32(r.index(requestEvent), r.consumed+1)
	}
	copy(q.entry[:], r.place(r.consumed))
	r.consumed++
	if err := q.parse(); err != nil {
		return q, false, err
	}
	return q, true, nil
}

// parse reads a request's entry.
func (q *request) parse() error {
	if v := le.Uint32(q.entry[:]); v != privcmd.PagingVersion {
		return fmt.Errorf("%w: an event has version %d, and %d is known here", errRing, v, privcmd.PagingVersion)
	}
	if reason := le.Uint32(q.entry[8:]); reason != reasonPaging {
		return fmt.Errorf("%w: an event has reason %d", errRing, reason)
	}
	q.frame = le.Uint64(q.entry[24:])
	q.dropped = le.Uint32(q.entry[36:])&pagingDropped != 0
	return nil
}

// answer puts the answer to a request into the ring: its own bytes, by which Xen knows which vCPU goes on.
func (r *ring) answer(q *request) {
	copy(r.place(r.answered), q.entry[:])
	r.answered++
	atomic.StoreUint32(r.index(answerProd), r.answered)
}
