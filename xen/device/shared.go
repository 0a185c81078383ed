package device

import (
	"sync/atomic"
	"unsafe"
)

// sharedRing is a page with a ring of requests of a guest's and, in their places, the
// answers: what Xen's public header io/ring.h makes. The guest writes to all of it
// whenever it likes, so a request is copied before it is looked at.
type sharedRing struct {
	page     []byte
	slot     int    // bytes of a request
	slots    uint32 // a power of two
	consumed uint32 // requests
	answered uint32
}

const (
	requestProd  = 0 // where the indices are
	requestEvent = 4
	answerProd   = 8
	answerEvent  = 12
	ringHead     = 64
)

func (r *sharedRing) index(at int) *uint32 { return (*uint32)(unsafe.Pointer(&r.page[at])) }

func (r *sharedRing) place(i uint32) []byte {
	return r.page[ringHead+int(i%r.slots)*r.slot:][:r.slot:r.slot]
}

// waiting says whether there is a request. When there is none, the guest will
// notify of the next one.
func (r *sharedRing) waiting() (bool, error) {
	for again := false; ; again = true {
		prod := atomic.LoadUint32(r.index(requestProd))
		if prod-r.answered > r.slots || prod-r.consumed > r.slots {
			return false, errRing
		}
		if prod != r.consumed || again {
			return prod != r.consumed, nil
		}
		atomic.StoreUint32(r.index(requestEvent), r.consumed+1)
	}
}

// next takes a request, if there is one, by copying it to b.
func (r *sharedRing) next(b []byte) (ok bool, err error) {
	if ok, err = r.waiting(); ok {
		copy(b, r.place(r.consumed))
		r.consumed++
	}
	return ok, err
}

// answer puts an answer into the ring, and says whether the guest waits for it.
func (r *sharedRing) answer(b []byte) (notify bool) {
	copy(r.place(r.answered), b)
	r.answered++
	atomic.StoreUint32(r.index(answerProd), r.answered)
	return r.answered-atomic.LoadUint32(r.index(answerEvent)) < 1
}
