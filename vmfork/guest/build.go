package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the files in an entry.
const (
	kernelName    = "vmlinuz"
	initramfsName = "initramfs"
	rootName      = "root.img"
)

// An Image is a guest image in the cache, locked in use until Release.
type Image struct {
	Key           string // SHA-256 of its content, 64 hexadecimal digits
	Dir           string // the entry's folder, 0700; checkpoints go into subfolders
	Kernel        string // path of the kernel image
	KernelRelease string
	Initramfs     string // path
	Root          string // path of the raw root disk; not to be written
	Used          int64  // bytes in use in the root file system; 0 for a user's disk
	OwnDisk       bool   // Root is a copy of the user's own disk, on which the agent looks for the root
	Program       *Files // the program's closure; nil without a program
	Found         bool   // it was in the cache
	Took          time.Duration

	release func()
}

// Release ends the image's use. It may be called more than once.
func (i *Image) Release() { i.release() }

// Lock is for what is made once per image, such as a checkpoint: it takes the
// entry's lock of that name, waiting for as long as ctx and limit allow. waiting,
// if not nil, is called once if another process has it.
func (i *Image) Lock(ctx context.Context, name string, limit time.Duration, waiting func()) (unlock func(), err error) {
	unlock, err = lockFile(ctx, filepath.Join(i.Dir, name+".lock"), limit, waiting)
	if err != nil {
		return nil, fmt.Errorf("lock %s of guest image: %w", name, outOfSpace(err, i.Dir))
	}
	return unlock, nil
}

// Build returns the guest image for spec, from the cache or made anew. progress
// gets one line for each step that a user may have to wait for; it may be nil.
// The caller calls Release when nothing uses the image any more.
//
// A disk that is full gives one line, and what was made so far is removed.
func Build(ctx context.Context, cache *Cache, spec Spec, progress func(string)) (*Image, error) {
	start := time.Now()
	if progress == nil {
		progress = func(string) {}
	}
	p, err := newPlan(spec)
	if err != nil {
		return nil, err
	}
	kernel := spec.Kernel
	if kernel == nil {
		if kernel, err = cache.FindKernel(ctx, progress, spec.Modules...); err != nil {
			return nil, err
		}
	}
	key, err := p.key(kernel)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Key: key, Source: "machine", Program: spec.purpose(), Libraries: p.libraries()}
	if p.files != nil {
		m.Kind, m.UCX = p.files.Kind.String(), p.files.UCX
	}
	img, err := cache.obtain(ctx, m, kernel, spec.Agent, progress, func(dst string) (err error) {
		m.Used, err = p.build(ctx, dst)
		return err
	})
	if err != nil {
		return nil, err
	}
	img.Program = p.files
	img.Took = time.Since(start)
	return img, nil
}

// obtain finds the image of m.Key, or makes it: the boot files from kernel and
// agent, the root by makeRoot, the manifest from m.
func (c *Cache) obtain(ctx context.Context, m *Manifest, kernel *Kernel, agent string, progress func(string), makeRoot func(dst string) error) (*Image, error) {
	if img, err := c.find(m.Key); err == nil {
		return img, nil
	}
	if err := c.setUp(); err != nil {
		return nil, err
	}
	unlock, err := lockFile(ctx, c.lockOf(m.Key), buildWait, func() {
		progress("waiting for another mpirun-sf that is making the same guest image")
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the guest image: %w", outOfSpace(err, c.Dir))
	}
	defer unlock()
	img, err := c.find(m.Key)
	if err == nil {
		return img, nil
	}
	img, err = c.make(ctx, m, kernel, agent, makeRoot)
	if err != nil {
		return nil, fmt.Errorf("make guest image: %w", outOfSpace(err, c.Dir))
	}
	if removed, err := c.Trim(); err != nil {
		progress(fmt.Sprintf("could not make room in the image cache: %v", err))
	} else if len(removed) > 0 {
		progress(fmt.Sprintf("removed %d guest images that were not used for long: the cache is limited to %d MB", len(removed), c.limit()>>20))
	}
	return img, nil
}

// find returns the image of that key, in use, if it is there and whole.
func (c *Cache) find(key string) (*Image, error) {
	release, err := c.Use(key)
	if err != nil {
		return nil, err
	}
	dir := c.entry(key)
	m, err := readEntry(dir)
	if err == nil && m.Key != key {
		err = fmt.Errorf("image %s has the key %s", dir, m.Key)
	}
	if err != nil {
		release()
		return nil, err
	}
	img := newImage(dir, m, release)
	img.Found = true
	return img, nil
}

func newImage(dir string, m *Manifest, release func()) *Image {
	return &Image{
		Key: m.Key, Dir: dir, KernelRelease: m.Kernel, Used: m.Used, OwnDisk: m.Source == "disk",
		Kernel:    filepath.Join(dir, kernelName),
		Initramfs: filepath.Join(dir, initramfsName),
		Root:      filepath.Join(dir, rootName),
		release:   release,
	}
}

// make fills a temporary folder and renames it into place. The lock on the
// folder, which said that it is being filled, becomes the one that says that it
// is in use.
func (c *Cache) make(ctx context.Context, m *Manifest, kernel *Kernel, agent string, makeRoot func(dst string) error) (img *Image, err error) {
	var tmp string
	var lock *os.File
	err = c.locked(ctx, func() (err error) {
		if tmp, err = os.MkdirTemp(c.images(), "tmp-"); err != nil {
			return err
		}
		lock, err = tryLock(tmp, unix.LOCK_EX)
		return err
	})
	if err != nil {
		return nil, err
	}
	dir := tmp
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
			lock.Close()
		}
	}()
	if err := makeRoot(filepath.Join(tmp, rootName)); err != nil {
		return nil, err
	}
	if err := makeBoot(tmp, kernel, agent); err != nil {
		return nil, err
	}
	m.Version, m.Kernel, m.Created = manifestVersion, kernel.Release, time.Now().UTC()
	if err := writeManifest(tmp, m); err != nil {
		return nil, err
	}
	final := c.entry(m.Key)
	err = c.locked(ctx, func() error {
		// What is there is broken, or find would have found it; somebody else may be
		// finding that out at this moment.
		for deadline := time.Now().Add(momentLimit / 2); ; time.Sleep(lockPoll) {
			err := c.remove(m.Key)
			if err == nil || errors.Is(err, ErrNoImage) {
				break
			}
			if !errors.Is(err, ErrInUse) || time.Now().After(deadline) {
				return err
			}
		}
		if err := os.Rename(tmp, final); err != nil {
			return err
		}
		dir = final
		return unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	})
	if err != nil {
		return nil, err
	}
	return newImage(final, m, c.inUse(final, lock)), nil
}

// makeBoot puts the kernel and the initramfs into dir.
func makeBoot(dir string, kernel *Kernel, agent string) error {
	dst := filepath.Join(dir, kernelName)
	// A link is enough where the kernel is in the cache anyway: both go by being
	// unlinked, never by being written.
	if os.Link(kernel.Path, dst) != nil {
		if err := copyFile(dst, kernel.Path, 0o600); err != nil {
			return fmt.Errorf("copy kernel: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, initramfsName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := WriteInitramfs(w, agent, kernel); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

// writeManifest completes m with the sizes of the files in dir and writes it.
func writeManifest(dir string, m *Manifest) error {
	for name, size := range map[string]*int64{kernelName: &m.Files.Kernel, initramfsName: &m.Files.Initramfs, rootName: &m.Files.Root} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("write manifest: %w", err)
		}
		*size = info.Size()
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, manifestName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(0o600))
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}
