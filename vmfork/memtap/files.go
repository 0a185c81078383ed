package memtap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// filesystem answers the kernel. It stands on go-fuse's raw interface: with one directory and no file that is ever
// created, renamed or linked through the mount, the tree of nodes of its fs package would only lie between a fault and
// its page.
type filesystem struct {
	fuse.RawFileSystem // ENOSYS for all else

	mounted  time.Time
	patience time.Duration // longest wait for an image
	server   *fuse.Server  // set by Init, before the first request

	mu      sync.RWMutex
	names   map[string]*file
	nodes   map[uint64]*file // also removed files that the kernel still holds
	reasons map[string]error // of removed files that failed, until their name is taken again
	last    uint64           // node id given last; none is given twice
	ended   bool             // nothing is added any more
}

// file is one image under its name.
type file struct {
	name string
	node uint64
	size int64
	kind slice.Kind // memory never changes, may be cached and shared

	image   atomic.Pointer[slice.Image] // nil until it is delivered
	decided chan struct{}               // closed when image, or lost, is set
	lost    error                       // why there will never be an image; set with filesystem.mu, before decided is closed

	// Guarded by filesystem.mu.
	since   map[uint32]time.Time // which threads wait for the image, and since when
	lookups uint64               // the kernel's references
	removed bool

	present context.Context // ends when the name is taken away
	leave   context.CancelFunc

	recorder *recorder // nil for a disk
	counters
	err atomic.Pointer[error]
}

func newFilesystem(patience time.Duration) *filesystem {
	return &filesystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		mounted:       time.Now(),
		patience:      patience,
		names:         make(map[string]*file),
		nodes:         make(map[uint64]*file),
		reasons:       make(map[string]error),
		last:          fuse.FUSE_ROOT_ID,
	}
}

func (fs *filesystem) byNode(node uint64) *file {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return fs.nodes[node]
}

func (fs *filesystem) byName(name string) *file {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return fs.names[name]
}

// reason returns the first error of the file of a name, or of the last one that had it.
func (fs *filesystem) reason(name string) error {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	if f := fs.names[name]; f != nil {
		if err := f.err.Load(); err != nil {
			return *err
		}
	}
	return fs.reasons[name]
}

// add makes a file appear, with its image, or with none yet if image is nil.
func (fs *filesystem) add(name string, size int64, kind slice.Kind, image *slice.Image) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch {
	case fs.ended:
		return errors.New("memtap is unmounted")
	case fs.names[name] != nil:
		return errors.New("the name is taken")
	}
	fs.last++
	f := &file{name: name, node: fs.last, size: size, kind: kind, decided: make(chan struct{})}
	f.present, f.leave = context.WithCancel(context.Background())
	if kind == slice.Memory {
		f.recorder = newRecorder(size)
	}
	if image != nil {
		f.deliver(image) // cannot fail: the file is new
	}
	fs.names[name], fs.nodes[f.node] = f, f
	delete(fs.reasons, name)
	return nil
}

// deliver gives an expected file its image.
func (fs *filesystem) deliver(name string, image *slice.Image) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.names[name]
	if f == nil {
		return errors.New("no such image is expected")
	}
	if err := suits(image, f.kind); err != nil {
		return err
	}
	if image.Size() != f.size {
		return fmt.Errorf("it has %d bytes, and %d are expected", image.Size(), f.size)
	}
	return f.deliver(image)
}

// end makes every wait for an image fail, and every one to come.
func (fs *filesystem) end() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.ended = true
	for _, f := range fs.nodes {
		f.giveUp(errUnmounted)
		f.leave()
	}
}

// remove makes a file disappear. Who has it open goes on reading it; it is dropped when the kernel forgets it.
func (fs *filesystem) remove(name string) *file {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.names[name]
	if f == nil {
		return nil
	}
	f.giveUp(errRemoved)
	delete(fs.names, name)
	f.removed = true
	f.leave()
	if err := f.err.Load(); err != nil {
		fs.reasons[name] = *err
	}
	if f.lookups == 0 {
		delete(fs.nodes, f.node)
	}
	return f
}
