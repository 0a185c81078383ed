package memtap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// DefaultPatience is how long a read waits for an image that is expected, if nothing else is asked for. A fork that takes
// longer has failed, and its clones had better say so.
const DefaultPatience = 2 * time.Minute

// Why an expected image never comes.
var (
	errRemoved   = errors.New("the file was removed before its image was delivered")
	errUnmounted = errors.New("memtap was unmounted before its image was delivered")
)

// errInterrupted is a wait that nobody waits for any more.
var errInterrupted = errors.New("interrupted")

// calledOff is a context that ends when the kernel calls a request off, also because the mount is gone. It takes no
// memory, so that a read that waits for nothing does not either.
type calledOff <-chan struct{}

var _ context.Context = calledOff(nil)

func (c calledOff) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
func (c calledOff) Done() <-chan struct{}                   { return c }
func (c calledOff) Value(any) any                           { return nil }

func (c calledOff) Err() error {
	select {
	case <-c:
		return errInterrupted
	default:
		return nil
	}
}

// Expect makes a file of size bytes appear under name whose image comes later, by Deliver, and returns its path: so that
// hypervisors can be started over the memory of a VM that still runs. The file can be opened and mapped at once. A read
// of it, or a write to a disk, waits for the image: until it is delivered; until Remove or Unmount, or the end of
// Options.Patience, which make it fail with EIO and leave a reason in Err; or until the kernel calls it off, because the
// process that waits for it is killed.
//
// QEMU 7.2 with -incoming defer touches no RAM before it loads a VM's state, but reads a disk as soon as it opens it, and
// would wait. A disk whose lower slices come later is therefore better added with its top alone, and restacked.
func (t *Tap) Expect(name string, size int64, kind slice.Kind) (path string, err error) {
	if size <= 0 || size > slice.MaxImageSize || (kind != slice.Memory && kind != slice.Disk) {
		return "", fmt.Errorf("expect image %s: a %v image of %d bytes cannot be", name, kind, size)
	}
	if path, err = t.appear(name, size, kind, nil); err != nil {
		return "", fmt.Errorf("expect image %s: %w", name, err)
	}
	return path, nil
}

// Deliver gives a file from Expect its image, of the size and kind that was expected, and wakes those who wait for it.
// The conditions are those of AddMemory and AddDisk. After an error the image is still expected.
func (t *Tap) Deliver(name string, image *slice.Image) error {
	if err := t.fs.deliver(name, image); err != nil {
		return fmt.Errorf("deliver image %s: %w", name, err)
	}
	return nil
}

// deliver gives a file its image and wakes those who wait for it. The filesystem's lock is held.
func (f *file) deliver(image *slice.Image) error {
	switch {
	case f.image.Load() != nil:
		return errors.New("it has its image already")
	case f.lost != nil:
		return f.lost
	}
	f.image.Store(image)
	f.since = nil
	close(f.decided)
	return nil
}

// giveUp ends the waits for a file's image, unless it has one. The filesystem's lock is held.
func (f *file) giveUp(why error) {
	if f.image.Load() == nil && f.lost == nil {
		f.lost = why
		close(f.decided)
	}
}

// await returns the file's image, as soon as there is one, to a thread that asks for something in it.
func (fs *filesystem) await(f *file, thread uint32, cancel <-chan struct{}) (*slice.Image, error) {
	if image := f.image.Load(); image != nil {
		return image, nil
	}
	f.waits.Add(1)
	timer := time.NewTimer(time.Until(fs.deadline(f, thread)))
	defer timer.Stop()
	var err error
	select {
	case <-f.decided:
		err = f.lost
	case <-cancel:
		err = errInterrupted
	case <-timer.C:
		err = fmt.Errorf("its %v image was not delivered within %v: the fork that it belongs to has failed or takes too long",
			f.kind, fs.patience)
	}
	if image := f.image.Load(); image != nil { // perhaps at the last moment
		return image, nil
	}
	return nil, err
}

// deadline is when a thread has waited long enough for a file's image, however often it asks: the kernel asks again for a
// page whose read has failed, and a thread that was interrupted by a signal comes back when it has handled it.
func (fs *filesystem) deadline(f *file, thread uint32) time.Time {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.image.Load() != nil || f.lost != nil {
		return time.Now().Add(fs.patience) // it came just now
	}
	if f.since == nil {
		f.since = make(map[uint32]time.Time)
	}
	since, ok := f.since[thread]
	if !ok {
		since = time.Now()
		f.since[thread] = since
	}
	return since.Add(fs.patience)
}
