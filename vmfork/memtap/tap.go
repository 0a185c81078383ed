package memtap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// maxName is the longest name of a file, in bytes.
const maxName = 255

// maxRequest is the most that one READ or WRITE carries, in bytes.
const maxRequest = 128 << 10

// maxBackground is how many requests the kernel sends without an answer to any: as many as the protocol can say.
const maxBackground = 1<<16 - 1

// ErrNotSupported is what Probe and Mount return on a machine that cannot have a memtap.
var ErrNotSupported = errors.New("memory on demand is not available")

// Probe says whether this process can mount a memtap, or what is missing and what to do about it.
func Probe() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: mounting FUSE needs root: run this as root", ErrNotSupported)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: open /dev/fuse: %w: load the kernel's fuse module (modprobe fuse)", ErrNotSupported, err)
	case err != nil:
		return fmt.Errorf("%w: open /dev/fuse: %w: allow the device in this container", ErrNotSupported, err)
	}
	return unix.Close(fd)
}

// Options are the settings of a Tap. The zero value is right.
type Options struct {
	Window   int            // bytes read around a fault; 0 is DefaultWindow
	Patience time.Duration  // longest wait of a read for an image that is expected; 0 is DefaultPatience
	Logger   zerolog.Logger // for what the FUSE library has to say; the zero value is silent
}

// Tap is a mounted directory of images.
type Tap struct {
	dir    string
	fs     *filesystem
	server *fuse.Server
	done   chan struct{} // closed when nothing is served any more

	mu        sync.Mutex // guards what follows
	window    int
	unmounted bool
}

// Mount mounts a new, empty tap on the existing directory dir and serves it until Unmount, or until this process ends:
// the files then answer errors. It needs no fusermount.
func Mount(ctx context.Context, dir string, opts Options) (*Tap, error) {
	fail := func(err error) (*Tap, error) { return nil, fmt.Errorf("mount memtap on %s: %w", dir, err) }
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if opts.Window == 0 {
		opts.Window = DefaultWindow
	}
	if err := checkWindow(opts.Window); err != nil {
		return fail(err)
	}
	if opts.Patience == 0 {
		opts.Patience = DefaultPatience
	}
	if opts.Patience < 0 {
		return fail(fmt.Errorf("a patience of %v is none", opts.Patience))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fail(err)
	}
	if err := Probe(); err != nil {
		return fail(err)
	}
	fd, err := mount(dir)
	if err != nil {
		return fail(err)
	}
	t := &Tap{dir: dir, fs: newFilesystem(opts.Patience), done: make(chan struct{}), window: opts.Window}
	t.server, err = fuse.NewServer(t.fs, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		Name:         "memtap",
		MaxWrite:     maxRequest,
		MaxReadAhead: opts.Window, // a limit for the start, so that no fault sees another window
		// The reads of faults count as background requests. Those that wait for an image must not use up what the others need.
		MaxBackground: maxBackground, CongestionThreshold: maxBackground,
		// The answers are in memory, not in a file that could be spliced, and no file changes behind the cache.
		DisableSplice: true, ExplicitDataCacheControl: true,
		DisableXAttrs: true, DisableReadDirPlus: true,
		Logger: log.New(opts.Logger, "", 0),
	})
	if err != nil {
		unix.Close(fd) // fails if NewServer got far enough to do it
		unix.Unmount(dir, unix.MNT_DETACH)
		return fail(err)
	}
	go func() {
		t.server.Serve()
		close(t.done)
	}()
	refusePoll(dir)
	if err := t.setReadAhead(opts.Window); err != nil {
		if opts.Window > kernelReadAhead {
			return fail(errors.Join(err, t.Unmount(ctx)))
		}
		opts.Logger.Debug().Err(err).Msg("memtap: the window is set by the mount alone")
	}
	return t, nil
}

// mount is the mount call itself. It is made here and not by go-fuse so that the descriptor is never, not for a moment,
// inherited: a hypervisor that held it would keep the connection alive after the end of this process, and wait for ever
// in its next fault, instead of getting its SIGBUS.
func mount(dir string) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRequest)
	if err := unix.Mount("memtap", dir, "fuse.memtap", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// refusePoll makes the kernel ask once whether files can be polled, so that it never asks again: go-fuse answers no for
// a file of this name. A Go program that opens a file polls it, in a way in which the runtime cannot run anything else
// on that processor, such as the server that it waits for.
func refusePoll(dir string) {
	fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // then only a program that breaks the rule is the worse for it
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	unix.Close(fd)
}

// Dir returns the mount point.
func (t *Tap) Dir() string { return t.dir }

// Done is closed when the mount is gone, by Unmount or by anybody else's hand.
func (t *Tap) Done() <-chan struct{} { return t.done }

// AddMemory serves a frozen memory image under name, for any number of clones, and returns the file's path. The tap does
// not own the image; it must stay open until Unmount, or until the last user of a removed file is gone.
func (t *Tap) AddMemory(name string, image *slice.Image) (path string, err error) {
	return t.add(name, slice.Memory, image)
}

// AddDisk serves a disk image under name and returns the file's path. It is for one clone, if its top is writable.
func (t *Tap) AddDisk(name string, image *slice.Image) (path string, err error) {
	return t.add(name, slice.Disk, image)
}

func (t *Tap) add(name string, kind slice.Kind, image *slice.Image) (path string, err error) {
	if err := suits(image, kind); err != nil {
		return "", fmt.Errorf("add image %s: %w", name, err)
	}
	if path, err = t.appear(name, image.Size(), kind, image); err != nil {
		return "", fmt.Errorf("add image %s: %w", name, err)
	}
	return path, nil
}

func (t *Tap) appear(name string, size int64, kind slice.Kind, image *slice.Image) (path string, err error) {
	if name == "" || len(name) > maxName || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("%q is no file name", name)
	}
	return filepath.Join(t.dir, name), t.fs.add(name, size, kind, image)
}

// suits says why an image cannot be what a file of a kind serves.
func suits(image *slice.Image, kind slice.Kind) error {
	switch {
	case image.Kind() != kind:
		return fmt.Errorf("it is a %v image, not a %v image", image.Kind(), kind)
	case kind == slice.Memory && image.Writable():
		return errors.New("its top slice is writable: freeze it first, since clones share what they read of it")
	}
	return nil
}

// Remove takes a name away and returns its last counters. Who has the file open keeps it, but an image that has not been
// delivered will not be, and those who wait for it get EIO. A Push into it ends.
func (t *Tap) Remove(name string) (Counters, error) {
	f := t.fs.remove(name)
	if f == nil {
		return Counters{}, fmt.Errorf("remove image %s: there is none", name)
	}
	// The kernel has been told to trust the name for ever. ENOENT means that it never asked for it.
	if st := t.server.EntryNotify(fuse.FUSE_ROOT_ID, name); !st.Ok() && st != fuse.ENOENT && st != fuse.Status(unix.ENODEV) {
		return f.snapshot(), fmt.Errorf("remove image %s: tell the kernel: %w", name, unix.Errno(st))
	}
	return f.snapshot(), nil
}

// Counters returns what the file has done so far, and nothing for a name that there is not.
func (t *Tap) Counters(name string) Counters {
	if f := t.fs.byName(name); f != nil {
		return f.snapshot()
	}
	return Counters{}
}

// Err returns the first error that the file answered to the kernel, such as slice.ErrCorrupt: the reason of a clone that
// died of SIGBUS. It is nil if there was none. It outlives Remove, until the name is taken again.
func (t *Tap) Err(name string) error { return t.fs.reason(name) }

// Unmount takes the mount away and waits until nothing is served any more. Reads that wait for an image fail. Processes that still have files of it open,
// or mapped, get errors from now on, and SIGBUS: a guest without its memory cannot go on, and must not hang.
func (t *Tap) Unmount(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.unmounted {
		t.fs.end() // or the kernel might wait for the waiting
		// MNT_FORCE aborts the connection. It would outlive the mount where a mount namespace that somebody made in the
		// meantime has a copy of it.
		err := unix.Unmount(t.dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(t.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if err != nil && !t.gone() {
			return fmt.Errorf("unmount memtap from %s: %w", t.dir, err)
		}
		t.unmounted = true
	}
	select {
	case <-t.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("unmount memtap from %s: wait for its server to end: %w", t.dir, ctx.Err())
	}
}

// gone reports whether somebody else unmounted it before.
func (t *Tap) gone() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}
