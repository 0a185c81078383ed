package slice

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"
)

// readFar reads what readAll could not, because blocks of it are on another host. No lock is held while they are brought,
// so neither Restack nor anybody else waits for that host; hence the stack may be another one afterwards, and the read
// begins again.
func (im *Image) readFar(ctx context.Context, p []byte, off int64) (stat Stat, err error) {
	far := 0
	for {
		im.mu.RLock()
		gaps := im.gaps(nil, off/BlockSize, blocksOf(off+int64(len(p)))-off/BlockSize)
		im.mu.RUnlock()
		n, err := im.bring(ctx, gaps)
		far += n
		if err == nil {
			if stat, err = im.readAll(p, off); err == errAwaited {
				continue
			}
		}
		stat.Far = far
		if err != nil {
			err = fmt.Errorf("read image: %w", err)
		}
		return stat, err
	}
}

// away reports whether anything at all is on another host only. One of the image's locks is held.
func (im *Image) away() bool {
	return slices.ContainsFunc(im.layers, func(l *Slice) bool { return l.away.Load() != nil })
}

// gaps appends the blocks that a read of n blocks from block first on would have to bring. One of the image's locks is
// held.
func (im *Image) gaps(to []gap, first, n int64) []gap {
	for end := first + n; first < end; {
		run := end - first
		for _, l := range im.layers {
			locked := l.lock()
			got, has := l.run(first, run)
			l.unlock(locked)
			run = got
			if has != absent {
				if has == stored {
					to = l.gaps(to, first, run)
				}
				break
			}
		}
		first += run
	}
	return to
}

// bring brings gaps, with no lock held, and returns how many blocks they have. An error of a slice that has left the stack
// meanwhile, and was perhaps closed, is none.
func (im *Image) bring(ctx context.Context, gaps []gap) (n int, err error) {
	if len(gaps) == 0 {
		return 0, nil
	}
	for i, err := range bring(ctx, gaps) {
		if err != nil && (ctx.Err() != nil || im.has(gaps[i].slice)) {
			return 0, err
		}
		n += int(gaps[i].n)
	}
	return n, nil
}

func (im *Image) has(s *Slice) bool {
	im.mu.RLock()
	defer im.mu.RUnlock()
	return slices.Contains(im.layers, s)
}

// lockToWrite takes the lock of writers for a write of n bytes at off, once the parts of blocks at its ends, which have to
// be read for it, are here: so no other write, and no Restack, waits for another host. It returns how many were brought.
func (im *Image) lockToWrite(ctx context.Context, off, n int64) (far int, err error) {
	end := off + n
	for {
		im.writing.Lock()
		var gaps []gap
		if n > 0 && (off%BlockSize != 0 || n < BlockSize && end < im.size) {
			gaps = im.gaps(gaps, off/BlockSize, 1)
		}
		if n > 0 && end%BlockSize != 0 && end < im.size && end/BlockSize != off/BlockSize {
			gaps = im.gaps(gaps, end/BlockSize, 1)
		}
		if len(gaps) == 0 {
			return far, nil
		}
		im.writing.Unlock()
		brought, err := im.bring(ctx, gaps)
		if err != nil {
			return far, err
		}
		far += brought
	}
}

// Prefetch brings those of the given blocks that are on another host, of all slices at once, and for each slice in the
// order given, for readers that are expected: in bulk (SetPrefetch), with no lock held. It returns how many it asked for. A
// block outside the image is left out.
func (im *Image) Prefetch(ctx context.Context, blocks iter.Seq[int64]) (asked int64, err error) {
	im.mu.RLock()
	away := im.away()
	im.mu.RUnlock()
	if !away {
		return 0, nil
	}
	wanted := slices.Collect(blocks) // without the lock
	far := map[*Slice][]int64{}
	im.mu.RLock()
	for _, b := range wanted {
		if b < 0 || b >= blocksOf(im.size) {
			continue
		}
		for _, g := range im.gaps(nil, b, 1) {
			far[g.slice] = append(far[g.slice], b)
			asked++
		}
	}
	im.mu.RUnlock()
	var g errgroup.Group
	for s, missing := range far {
		g.Go(func() error {
			if err := s.fetchMany(ctx, missing); err != nil && (ctx.Err() != nil || im.has(s)) {
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return asked, fmt.Errorf("prefetch: %w", err)
	}
	return asked, nil
}
