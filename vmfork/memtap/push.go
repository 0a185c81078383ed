package memtap

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// maxStore is how much is put into the kernel's cache by one message (FUSE_NOTIFY_STORE), in blocks. 16 MB in runs of
// 32 KB took 10 ms, with 8.5 ms of processor time. A process that reads them from the mount took 21 ms and 20 ms, and
// has to be started first. Blocks of zeros take 8.6 ms here, and as long as others there, so they are pushed too
// (BenchmarkPush).
const maxStore = maxRequest / slice.BlockSize

// Push puts the blocks of a trace into the kernel's cache of a memory file, in the trace's order, before anybody asks
// for them, and returns how many bytes that were. It leaves out what was read or pushed before, and what is not inside
// the image. What is on another host is brought in bulk, some ahead of what is stored (slice.Image.Prefetch). Push ends
// early, without an error, when the file is removed. The image must have been delivered.
//
// It may be called while others fault on the same blocks. The kernel lets it wait for the page of a read that is being
// answered; the answer waits for nothing of Push's.
func (t *Tap) Push(ctx context.Context, name string, trace Trace) (pushed int64, err error) {
	f := t.fs.byName(name)
	if f == nil {
		return 0, nil
	}
	if pushed, err = t.push(ctx, f, trace); err != nil {
		return pushed, fmt.Errorf("push %s: %w", name, err)
	}
	return pushed, nil
}

func (t *Tap) push(ctx context.Context, f *file, trace Trace) (pushed int64, err error) {
	image := f.image.Load()
	switch {
	case f.kind != slice.Memory:
		return 0, errors.New("the kernel keeps nothing of a disk")
	case image == nil:
		return 0, errors.New("its image was not delivered yet")
	}
	// The kernel takes pages only of a file that it has heard of. To look a name up is not to open it.
	var st unix.Stat_t
	if t.fs.unknown(f) && unix.Lstat(filepath.Join(t.dir, f.name), &st) != nil {
		return 0, nil // removed, or unmounted
	}
	if f.present.Err() != nil {
		return 0, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.present, cancel)()
	pieces := f.ahead(ctx, image, trace)
	defer func() {
		cancel()
		for range pieces {
		}
		if f.present.Err() != nil {
			err = nil
		}
	}()
	buf := make([]byte, maxStore*slice.BlockSize)
	for p := range pieces {
		if p.err != nil {
			return pushed, p.err
		}
		for _, run := range p.runs {
			n, err := t.store(ctx, f, image, run, buf)
			pushed += n
			if err == errGone {
				return pushed, nil
			}
			if err != nil {
				return pushed, err
			}
		}
	}
	return pushed, ctx.Err()
}

// errGone is what the kernel says of a file that it has forgotten.
var errGone = errors.New("the kernel does not have the file any more")

// store puts one run of a trace into the kernel's cache. The error is errGone if the kernel has forgotten the file.
func (t *Tap) store(ctx context.Context, f *file, image *slice.Image, run Run, buf []byte) (pushed int64, err error) {
	blocks := uint32(f.size / slice.BlockSize) // whole ones
	if run.First >= blocks {
		return 0, nil
	}
	run.Count = min(run.Count, blocks-run.First)
	for run.Count > 0 {
		if err := ctx.Err(); err != nil {
			return pushed, err
		}
		var next Run
		if next, run = f.recorder.push(run, maxStore); next.Count == 0 {
			break
		}
		n, off := int64(next.Count)*slice.BlockSize, int64(next.First)*slice.BlockSize
		stat, err := image.ReadStat(ctx, buf[:n], off)
		if err != nil {
			return pushed, err
		}
		switch st := t.server.InodeNotifyStoreCache(f.node, off, buf[:n]); st {
		case fuse.OK:
		case fuse.ENOENT:
			return pushed, errGone
		default:
			return pushed, fmt.Errorf("store %d bytes at %d in the kernel's cache: %w", n, off, unix.Errno(st))
		}
		pushed += n
		add(&f.pushed, stat.Fetched*slice.BlockSize)
	}
	return pushed, nil
}

// Pieces of a trace that are brought from another host at once, in blocks: small ones first, because their pages are
// wanted first, and then enough that the way to the host and back does not count.
const (
	firstPiece = 64
	lastPiece  = 1024
)

// piece is a part of a trace whose blocks are on this host, unless err says why they are not.
type piece struct {
	runs Trace
	err  error
}

// ahead cuts a trace into pieces and brings each, one ahead of the one that is taken from the channel. It ends after an
// error, and with ctx.
func (f *file) ahead(ctx context.Context, image *slice.Image, trace Trace) <-chan piece {
	pieces := make(chan piece)
	go func() {
		defer close(pieces)
		for size := uint32(firstPiece); len(trace) > 0; size = min(2*size, lastPiece) {
			var p piece
			p.runs, trace = trace.cut(size)
			var asked int64
			asked, p.err = image.Prefetch(ctx, f.recorder.unread(p.runs))
			f.prefetched.Add(asked * slice.BlockSize)
			select {
			case pieces <- p:
			case <-ctx.Done():
				return
			}
			if p.err != nil {
				return
			}
		}
	}()
	return pieces
}

// unknown reports whether the kernel has no reference to a file.
func (fs *filesystem) unknown(f *file) bool {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return f.lookups == 0
}
