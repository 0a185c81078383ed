package memtap

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// forever is how long the kernel may trust names and attributes. Nothing changes behind its back, but for Remove, which
// tells it.
const forever = 365 * 24 * time.Hour

func (fs *filesystem) String() string { return "memtap" }

// Init keeps the way back to the kernel.
func (fs *filesystem) Init(server *fuse.Server) { fs.server = server }

// Lookup finds a file by its name.
func (fs *filesystem) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.names[name]
	if f == nil || header.NodeId != fuse.FUSE_ROOT_ID {
		return fuse.ENOENT // not remembered by the kernel: the file may come yet
	}
	f.lookups++
	out.NodeId, out.Generation = f.node, 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	fs.attr(&out.Attr, f)
	return fuse.OK
}

// Forget drops references that Lookup gave.
func (fs *filesystem) Forget(node, lookups uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.nodes[node]
	if f == nil {
		return
	}
	f.lookups -= min(lookups, f.lookups)
	if f.removed && f.lookups == 0 {
		delete(fs.nodes, node)
	}
}

// attr fills in the attributes of a file, or of the directory for nil.
func (fs *filesystem) attr(out *fuse.Attr, f *file) {
	*out = fuse.Attr{Ino: fuse.FUSE_ROOT_ID, Mode: unix.S_IFDIR | 0o700, Nlink: 2, Blksize: slice.BlockSize}
	if f != nil {
		out.Ino, out.Mode, out.Nlink = f.node, unix.S_IFREG|0o600, 1
		out.Size = uint64(f.size)
		out.Blocks = (out.Size + 511) / 512
	}
	out.Uid, out.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
	out.SetTimes(&fs.mounted, &fs.mounted, &fs.mounted)
}

func (fs *filesystem) attrOut(node uint64, out *fuse.AttrOut) fuse.Status {
	f := fs.byNode(node)
	if f == nil && node != fuse.FUSE_ROOT_ID {
		return fuse.Status(unix.ESTALE)
	}
	fs.attr(&out.Attr, f)
	out.SetTimeout(forever)
	return fuse.OK
}

// GetAttr returns the attributes of a file or of the directory.
func (fs *filesystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return fs.attrOut(in.NodeId, out)
}

// SetAttr changes nothing, and says so only where it would be a lie: hypervisors truncate their memory file to the size
// that it has.
func (fs *filesystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok {
		if f := fs.byNode(in.NodeId); f != nil && size != uint64(f.size) {
			return fuse.EINVAL
		}
	}
	return fs.attrOut(in.NodeId, out)
}

// StatFs says that nothing is free.
func (fs *filesystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	*out = fuse.StatfsOut{Bsize: slice.BlockSize, Frsize: slice.BlockSize, NameLen: maxName, Files: uint64(len(fs.names))}
	for _, f := range fs.names {
		out.Blocks += uint64(f.size+slice.BlockSize-1) / slice.BlockSize
	}
	return fuse.OK
}

// OpenDir lets the directory be listed.
func (fs *filesystem) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.OK
}

// ReadDir lists the directory.
func (fs *filesystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	for i, name := range slices.Sorted(maps.Keys(fs.names)) {
		if uint64(i) < in.Offset {
			continue
		}
		if !out.AddDirEntry(fuse.DirEntry{Name: name, Ino: fs.names[name].node, Mode: unix.S_IFREG}) {
			break // full; the kernel comes again
		}
	}
	return fuse.OK
}

// Contents.

// Open takes O_RDWR also for memory, since that is how hypervisors open the file that they then map privately.
func (fs *filesystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	switch f := fs.byNode(in.NodeId); {
	case f == nil:
		return fuse.Status(unix.ESTALE)
	case f.kind == slice.Memory:
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	default:
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return fuse.OK
}

// Read is a fault's, or a disk's, way to its data.
func (fs *filesystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	start := time.Now()
	f := fs.byNode(in.NodeId)
	if f == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	off, n := f.clip(in.Offset, uint64(len(buf)))
	if f.recorder != nil {
		f.recorder.read(off, n) // before the wait, so that Push leaves it alone
	}
	image, err := fs.await(f, in.Pid, cancel)
	var stat slice.Stat
	if err == nil {
		stat, err = image.ReadStat(calledOff(cancel), buf[:n], off)
	}
	if errors.Is(err, errInterrupted) {
		return nil, fuse.EINTR
	}
	f.reads.Add(1)
	f.blocks(stat)
	f.latency[bucket(time.Since(start))].Add(1)
	if err != nil {
		// All of it or nothing: the kernel takes a short answer for the end of the file, and fills up with zeros.
		return nil, fs.fail(f, fmt.Errorf("read %d bytes at %d: %w", n, off, err))
	}
	f.served.Add(n)
	answer := answers.Get().(*answer)
	answer.data = buf[:n]
	return answer, fuse.OK
}

// Write goes to a disk's own slice. Memory is not written: the kernel has changed its cached page before it asked, and
// other clones may have that page mapped, so it is told to read it again. It does so once it has this answer, hence the
// goroutine.
func (fs *filesystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f := fs.byNode(in.NodeId)
	if f == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	if f.kind == slice.Memory {
		f.refused.Add(1)
		go fs.server.InodeNotify(f.node, int64(in.Offset), int64(in.Size))
		return 0, fuse.EROFS
	}
	image, err := fs.await(f, in.Pid, cancel)
	switch {
	case err == errInterrupted:
		return 0, fuse.EINTR
	case err != nil:
		return 0, fs.fail(f, fmt.Errorf("write %d bytes at %d: %w", len(data), in.Offset, err))
	case !image.Writable():
		f.refused.Add(1)
		return 0, fuse.EROFS
	}
	off, n := f.clip(in.Offset, uint64(len(data)))
	if n < int64(len(data)) {
		return 0, fuse.Status(unix.ENOSPC) // as at the end of a disk
	}
	stat, err := image.WriteStat(calledOff(cancel), data, off)
	if errors.Is(err, errInterrupted) {
		return 0, fuse.EINTR
	}
	f.writes.Add(1)
	f.blocks(stat)
	if err != nil {
		return 0, fs.fail(f, fmt.Errorf("write %d bytes at %d: %w", n, off, err))
	}
	f.written.Add(n)
	return uint32(n), fuse.OK
}

// Fallocate is free page reporting in a clone, for memory: the page's contents do not matter to it any more, but they do
// to the other clones. For a disk it is a trim.
func (fs *filesystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f := fs.byNode(in.NodeId)
	if f == nil {
		return fuse.Status(unix.ESTALE)
	}
	off, n := f.clip(in.Offset, in.Length)
	if uint64(n) < in.Length && in.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		return fuse.EINVAL // it would grow
	}
	if in.Mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return fuse.OK // space for what is there already
	}
	f.punches.Add(1)
	if f.kind == slice.Memory {
		return fuse.OK
	}
	image, err := fs.await(f, in.Pid, cancel)
	var stat slice.Stat
	if err == nil {
		stat, err = image.Discard(calledOff(cancel), off, n)
	}
	if errors.Is(err, errInterrupted) {
		return fuse.EINTR
	}
	f.blocks(stat)
	if err != nil {
		return fs.fail(f, fmt.Errorf("discard %d bytes at %d: %w", n, off, err))
	}
	return fuse.OK
}

// Flush, at each close, has nothing to do.
func (fs *filesystem) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Fsync has nothing to do: memory is never written, and a clone's disk vanishes with it.
func (fs *filesystem) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// clip cuts a range to the part of it inside the file.
func (f *file) clip(off, n uint64) (int64, int64) {
	size := uint64(f.size)
	off = min(off, size)
	return int64(off), int64(min(n, size-off))
}

// fail counts an error and keeps the first, beyond the end of the file's name. The guest sees EIO.
func (fs *filesystem) fail(f *file, err error) fuse.Status {
	f.errors.Add(1)
	err = fmt.Errorf("%s: %w", f.name, err)
	if !f.err.CompareAndSwap(nil, &err) {
		return fuse.EIO
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.removed && fs.names[f.name] == nil {
		fs.reasons[f.name] = err
	}
	return fuse.EIO
}

// answer hands the kernel's own buffer back. Answers are reused, so that a read allocates nothing.
type answer struct{ data []byte }

var answers = sync.Pool{New: func() any { return new(answer) }}

var _ = (fuse.ReadResult)((*answer)(nil))

func (a *answer) Bytes([]byte) ([]byte, fuse.Status) { return a.data, fuse.OK }
func (a *answer) Size() int                          { return len(a.data) }
func (a *answer) Done()                              { a.data = nil; answers.Put(a) }
