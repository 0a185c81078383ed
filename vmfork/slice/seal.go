package slice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// chunkSize is what one worker of Seal takes at a time, in bytes. It is a multiple of 64 blocks, so that no two workers
// set bits in the same word of a bitmap.
const chunkSize = 1 << 20

var zeroBlock [BlockSize]byte

func isZero(block []byte) bool { return bytes.Equal(block, zeroBlock[:len(block)]) }

// SealOptions are the settings of Seal. The zero value is right.
type SealOptions struct {
	Workers int // goroutines that read; 0 is one for each processor, at least 2
}

// SealStats says what Seal found, in blocks. The three add up to the blocks of the image.
type SealStats struct {
	Stored int64 // kept, with a checksum
	Zero   int64 // held nothing but zeros, and were made holes
	Holes  int64 // were holes already: never touched, or reported free by the guest (section 3.4)
}

// Seal turns a raw file (the RAM file of a suspended VM, a disk image just made) into a sealed slice and opens it.
// The file becomes the slice's data file: it is not copied, and must not be written by anybody from now on. Blocks of
// zeros are punched out of it. The map is written to mapPath, replacing what was there.
//
// The result is the lowest layer of an image: a zero block is absent. For a slice from Create use its method Seal.
func Seal(ctx context.Context, dataPath, mapPath string, kind Kind, opts SealOptions) (*Slice, SealStats, error) {
	fail := func(err error) (*Slice, SealStats, error) {
		return nil, SealStats{}, fmt.Errorf("seal %s: %w", dataPath, err)
	}
	f, err := os.OpenFile(dataPath, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if !st.Mode().IsRegular() || st.Size() == 0 || st.Size() > MaxImageSize {
		return fail(fmt.Errorf("it is no file of 1 to %d bytes", int64(MaxImageSize)))
	}
	blocks := blocksOf(st.Size())
	sc := &scanner{file: f, sidecar: &mapFile{
		kind: kind, id: newID(), size: st.Size(),
		stored: bitset.New(uint(blocks)), zero: bitset.New(uint(blocks)), sums: make([]uint32, blocks),
	}}
	if err := sc.scan(ctx, opts.Workers); err != nil {
		return fail(err)
	}
	if err := sc.sidecar.save(mapPath); err != nil {
		return fail(err)
	}
	stats := SealStats{Stored: int64(sc.sidecar.stored.Count()), Zero: sc.zero.Load()}
	stats.Holes = blocks - stats.Stored - stats.Zero
	s, err := Open(dataPath, mapPath)
	if err != nil {
		return fail(err)
	}
	return s, stats, nil
}

// scanner finds the blocks of a raw file that hold data.
type scanner struct {
	file    *os.File
	sidecar *mapFile // its bitmaps and sums are written by the workers, each in its own chunks
	zero    atomic.Int64
}

// scan gives the chunks that are not altogether holes to the workers.
func (sc *scanner) scan(ctx context.Context, workers int) error {
	if workers == 0 {
		workers = max(2, runtime.GOMAXPROCS(0))
	}
	g, ctx := errgroup.WithContext(ctx)
	chunks := make(chan int64) // offsets
	g.Go(func() error {
		defer close(chunks)
		for off := int64(0); off < sc.sidecar.size; off += chunkSize {
			if err := ctx.Err(); err != nil {
				return err // the select below may prefer a worker that is ready
			}
			data, err := sc.seek(off, unix.SEEK_DATA)
			if err != nil {
				return err
			}
			if data >= sc.sidecar.size {
				return nil
			}
			off = data / chunkSize * chunkSize
			select {
			case chunks <- off:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, chunkSize)
			for off := range chunks {
				if err := sc.chunk(buf, off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// chunk reads the extents of data in one chunk and enters their blocks in the map.
func (sc *scanner) chunk(buf []byte, off int64) error {
	end := min(off+chunkSize, sc.sidecar.size)
	for off < end {
		data, err := sc.seek(off, unix.SEEK_DATA)
		if err != nil {
			return err
		}
		if data >= end {
			return nil
		}
		hole, err := sc.seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		// A file system's extents may be finer than our blocks.
		off = data / BlockSize * BlockSize
		stop := min(end, blocksOf(hole)*BlockSize)
		n, err := sc.file.ReadAt(buf[:stop-off], off)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("it became shorter, so it is still in use: %w", err)
			}
			return err
		}
		sc.blocks(buf[:n], off)
		off = stop
	}
	return nil
}

// blocks enters the blocks of one extent, and punches holes where they are zero.
func (sc *scanner) blocks(data []byte, off int64) {
	zeroFrom := int64(-1)
	punch := func(end int64) {
		if zeroFrom >= 0 {
			// The map says absent in any case; the hole only saves space, where the file system has holes.
			_ = punchHole(sc.file, zeroFrom, end-zeroFrom)
			zeroFrom = -1
		}
	}
	for ; len(data) > 0; off += BlockSize {
		block := data[:min(BlockSize, len(data))]
		data = data[len(block):]
		if isZero(block) {
			sc.zero.Add(1)
			if zeroFrom < 0 {
				zeroFrom = off
			}
			continue
		}
		punch(off)
		b := off / BlockSize
		sc.sidecar.stored.Set(uint(b))
		sum := crc32.Checksum(block, castagnoli)
		sc.sidecar.sums[b] = crc32.Update(sum, castagnoli, zeroBlock[len(block):])
	}
	punch(off)
}

// seek finds the next data or hole at or after off; the size of the file is returned where there is no more data.
// All workers move the file's one offset, which nothing uses.
func (sc *scanner) seek(off int64, whence int) (int64, error) {
	pos, err := unix.Seek(int(sc.file.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return sc.sidecar.size, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find holes: %w", err)
	}
	return pos, nil
}

func punchHole(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}
