package device

import (
	"errors"
	"sync/atomic"
	"unsafe"
)

// consoleRing is the page of a console, struct xencons_interface: a ring of bytes
// for the guest to read, one that it writes, and for each how far its reader and its
// writer are. The guest writes to all of it whenever it likes.
type consoleRing []byte

const (
	inSize  = 1024
	outSize = 2048

	inCons  = inSize + outSize // where the indices are
	inProd  = inCons + 4
	outCons = inCons + 8
	outProd = inCons + 12
)

var errRing = errors.New("the guest's ring has impossible indices")

func (r consoleRing) index(at int) *uint32 { return (*uint32)(unsafe.Pointer(&r[at])) }

func (r consoleRing) load(at int) uint32     { return atomic.LoadUint32(r.index(at)) }
func (r consoleRing) store(at int, v uint32) { atomic.StoreUint32(r.index(at), v) }

// output appends what the guest has written to b, and frees its place.
func (r consoleRing) output(b []byte) ([]byte, error) {
	cons, prod := r.load(outCons), r.load(outProd)
	if prod-cons > outSize {
		return b, errRing
	}
	for i := cons; i != prod; i++ {
		b = append(b, r[inSize+i%outSize])
	}
	r.store(outCons, prod)
	return b, nil
}

// unread is how many bytes the guest has not read.
func (r consoleRing) unread() (int, error) {
	n := r.load(inProd) - r.load(inCons)
	if n > inSize {
		return 0, errRing
	}
	return int(n), nil
}

// input puts as much of b as there is room for into the guest's ring.
func (r consoleRing) input(b []byte) (n int, err error) {
	unread, err := r.unread()
	if err != nil {
		return 0, err
	}
	n = min(len(b), inSize-unread)
	prod := r.load(inProd)
	for i := range n {
		r[(prod+uint32(i))%inSize] = b[i]
	}
	r.store(inProd, prod+uint32(n))
	return n, nil
}
