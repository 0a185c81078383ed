package mcdist

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const (
	guessedRate = 125e6 // bytes a second, of a network that nothing is known of
	guessedPack = 400e6 // bytes a second, of a processor that nothing is known of
	retryPack   = 64    // one in so many pieces is compressed to see whether it pays now
)

// packer decides whether to compress what goes to one host. A page of a guest's memory takes s2 some 6 µs here, and 2 µs if it
// cannot be compressed; it saves half of the 33 µs that a page takes on a gigabit network, and none of the time on a
// fast one. So it compares: how fast blocks reach the host, as the host says, with how fast they were compressed lately,
// by the clock. On a busy processor the latter falls, and nothing is compressed.
type packer struct {
	rate  atomic.Int64 // MB/s to the host; 0 is unknown
	speed atomic.Int64 // bytes a second of compressing; 0 is unknown
	tries atomic.Uint32
}

// pack returns p compressed into dst, or nil if that does not pay. Only the first block is tried at first.
func (k *packer) pack(dst, p []byte) []byte {
	rate, speed := float64(k.rate.Load())*1e6, float64(k.speed.Load())
	if rate == 0 {
		rate = guessedRate
	}
	if speed == 0 {
		speed = guessedPack
	}
	// At best, nearly everything is saved.
	if rate > speed && k.tries.Add(1)%retryPack != 0 {
		return nil
	}
	start := time.Now()
	trial := p[:slice.BlockSize]
	out := s2.Encode(dst[:cap(dst)], trial)
	if saved := 1 - float64(len(out))/float64(len(trial)); saved < 1./8 || rate > saved*speed && k.tries.Load()%retryPack != 0 {
		return nil
	}
	if len(p) > len(trial) {
		if out = s2.Encode(dst[:cap(dst)], p); len(out) > len(p)*7/8 {
			return nil
		}
	}
	// The trial of a piece counts as time, but not as work.
	now := float64(len(p)) / max(time.Since(start), 100*time.Nanosecond).Seconds()
	k.speed.Store(int64(speed + (now-speed)/8))
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
