package mcdist

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const (
	guessedRate  = 125e6 // bytes a second, of a network that nothing is known of
	guessedSpeed = 1e9   // bytes a second, of a processor that nothing is known of
	guessedSaved = 0.5   // of a guest's memory
	worthwhile   = 1. / 8
	retryPack    = 64 // one piece in so many is compressed to see whether it pays now
)

// packer decides whether to compress what goes to one host. A page that can be compressed takes s2 some 3 to 6 µs here, and
// one that cannot 0.7 µs, because s2 soon gives up; half of a guest's memory is saved, of the 33 µs that a page takes on a
// gigabit network. On a fast network nothing is gained, nor where the processors are what there is too little of. So it
// compares how fast blocks reach the host, as the host says, with what compressing has saved lately in a second, by the
// clock: on a busy processor that falls.
type packer struct {
	rate  atomic.Int64 // MB/s to the host; 0 is unknown
	tries atomic.Uint32

	mu           sync.Mutex
	speed, saved float64 // bytes a second that were compressed, and what part of them was saved; speed 0 is unknown
}

// pack returns p compressed into dst, or nil if that does not pay.
func (k *packer) pack(dst, p []byte) []byte {
	rate := float64(k.rate.Load()) * 1e6
	if rate == 0 {
		rate = guessedRate
	}
	k.mu.Lock()
	if k.speed == 0 {
		k.speed, k.saved = guessedSpeed, guessedSaved
	}
	pays := rate < k.speed*k.saved
	k.mu.Unlock()
	if k.tries.Add(1)%retryPack != 0 && !pays {
		return nil
	}
	start := time.Now()
	out := s2.Encode(dst[:cap(dst)], p)
	took := max(time.Since(start), 100*time.Nanosecond)
	saved := max(0, 1-float64(len(out))/float64(len(p)))
	k.mu.Lock()
	k.speed += (float64(len(p))/took.Seconds() - k.speed) / 16
	k.saved += (saved - k.saved) / 16
	k.mu.Unlock()
	if saved < worthwhile {
		return nil
	}
	return out
}

// packSize is how much room pack needs.
var packSize = s2.MaxEncodedLen(pieceSize)

func decompress(dst, p []byte) ([]byte, error) {
	if n, err := s2.DecodedLen(p); err != nil || n != len(dst) {
		return nil, fmt.Errorf("%w: compressed blocks of %d bytes instead of %d", errFrame, n, len(dst))
	}
	out, err := s2.Decode(dst, p)
	if err != nil {
		return nil, fmt.Errorf("%w: decompress: %v", errFrame, err)
	}
	return out, nil
}

// unpack returns the blocks of a piece, in scratch if they were compressed.
func unpack(f *frame, scratch []byte) (first int64, p []byte, err error) {
	first, n, data, err := f.blocks()
	if err != nil {
		return 0, nil, err
	}
	if f.flags&flagPacked != 0 {
		if data, err = decompress(scratch[:n*slice.BlockSize], data); err != nil {
			return 0, nil, err
		}
	}
	return first, data, nil
}
