package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultLimit is how much room the images may take, checkpoints included.
	DefaultLimit = 4 << 30

	keyDigits = 12 // of a key, in the name of its folder

	// momentLimit bounds the wait for locks that are held for moments.
	momentLimit = 30 * time.Second

	// buildWait bounds the wait for another launcher that builds the same image.
	buildWait = 10 * time.Minute
)

var (
	// ErrNoImage says that the cache has no image of that key.
	ErrNoImage = errors.New("no such guest image")

	// ErrInUse says that a job is using the image.
	ErrInUse = errors.New("the guest image is in use by a running job")
)

// A Cache keeps guest images, each in a folder Dir/images/KEY with its kernel,
// initramfs, root and manifest, and with whatever else is made from it (a booted
// guest's checkpoints): it all goes with the image.
type Cache struct {
	Dir   string // made with mode 0700 when it is first needed
	Limit int64  // bytes; 0 is DefaultLimit
}

// DefaultCache is the cache in the user's cache folder ($XDG_CACHE_HOME, or
// ~/.cache), mpirun-sf.
func DefaultCache() (*Cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w: set HOME or XDG_CACHE_HOME", err)
	}
	return &Cache{Dir: filepath.Join(dir, "mpirun-sf")}, nil
}

// An Entry is one image in the cache.
type Entry struct {
	Key      string // first 12 digits
	Dir      string
	Manifest *Manifest // nil if Err is set
	Size     int64     // bytes on the disk: holes do not count, checkpoints do
	LastUsed time.Time
	InUse    bool
	Err      error // why the entry cannot be used; it is replaced when next needed
}

func (c *Cache) images() string           { return filepath.Join(c.Dir, "images") }
func (c *Cache) entry(key string) string  { return filepath.Join(c.images(), key[:keyDigits]) }
func (c *Cache) lockOf(key string) string { return filepath.Join(c.Dir, "locks", key[:keyDigits]) }

// FindKernel is the function of that name, which keeps what it has to fetch in the cache: kernels with more modules
// apart from those without.
func (c *Cache) FindKernel(ctx context.Context, log func(string), more ...string) (*Kernel, error) {
	return FindKernel(ctx, c.kernelDir(more), log, more...)
}

// KeepKernel puts a kernel where FindKernel finds it for who wants those modules, if the machine has no kernel and no network.
func (c *Cache) KeepKernel(k *Kernel, more ...string) error { return k.Keep(c.kernelDir(more)) }

func (c *Cache) kernelDir(more []string) string {
	if len(more) == 0 {
		return c.Dir
	}
	return filepath.Join(c.Dir, "with", strings.Join(more, "+"))
}

func (c *Cache) limit() int64 {
	if c.Limit == 0 {
		return DefaultLimit
	}
	return c.Limit
}

// setUp makes the cache's folders. Guests' memory will lie in them, so they are
// the user's alone.
func (c *Cache) setUp() error {
	for _, dir := range []string{c.Dir, c.images(), filepath.Join(c.Dir, "locks")} {
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = os.Chmod(dir, 0o700)
		}
		if err != nil {
			err = outOfSpace(err, filepath.Dir(c.Dir))
			return fmt.Errorf("make the cache folder: %w: set XDG_CACHE_HOME to a folder that you can write", err)
		}
	}
	return nil
}

// locked runs f while no other process changes the folders in images/, having
// removed what killed processes left there.
func (c *Cache) locked(ctx context.Context, f func() error) error {
	if err := c.setUp(); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, filepath.Join(c.Dir, "lock"), momentLimit, nil)
	if err != nil {
		return fmt.Errorf("lock the image cache: %w", outOfSpace(err, c.Dir))
	}
	defer unlock()
	c.sweep()
	return f()
}

// sweep removes temporary folders that nobody has locked: their owners are gone.
func (c *Cache) sweep() {
	tmp, _ := filepath.Glob(filepath.Join(c.images(), "tmp-*"))
	made, _ := filepath.Glob(filepath.Join(c.images(), "*", "*-tmp-*")) // from images, under their own locks
	for _, dir := range append(tmp, made...) {
		if f, err := tryLock(dir, unix.LOCK_EX); err == nil {
			os.RemoveAll(dir)
			f.Close()
		}
	}
}

// discard moves a folder that is locked exclusively out of the way and empties it.
func (c *Cache) discard(dir string) error {
	tmp, err := os.MkdirTemp(c.images(), "tmp-")
	if err == nil {
		// Rename replaces the empty folder in one step.
		err = unix.Rename(dir, tmp)
	}
	if err != nil {
		tmp = dir // no room even for a folder; then it goes as it is
	}
	return os.RemoveAll(tmp)
}

// checkKey accepts whole keys and the 12 digits that entries go by.
func checkKey(key string) error {
	if len(key) < keyDigits || len(key) > 64 || strings.Trim(key, "0123456789abcdef") != "" {
		return fmt.Errorf("%q: %w: a key has %d hexadecimal digits", key, ErrNoImage, keyDigits)
	}
	return nil
}

// Use locks the image of that key against removal until release is called, and
// notes that it was used. It fails with ErrNoImage if there is none.
func (c *Cache) Use(key string) (release func(), err error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	dir := c.entry(key)
	for deadline := time.Now().Add(momentLimit); ; time.Sleep(lockPoll) {
		f, err := tryLock(dir, unix.LOCK_SH)
		switch {
		case err == nil:
			return c.inUse(dir, f), nil
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s: %w", key[:keyDigits], ErrNoImage)
		case !errors.Is(err, errLocked):
			return nil, fmt.Errorf("use guest image: %w", err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("use guest image: %s was locked for %v", dir, momentLimit)
		}
	}
}

// inUse notes the use of an entry and makes the function that ends it.
func (c *Cache) inUse(dir string, lock *os.File) (release func()) {
	now := time.Now()
	os.Chtimes(filepath.Join(dir, manifestName), now, now) // best effort: it only orders evictions
	return sync.OnceFunc(func() { lock.Close() })
}

// readEntry reads and checks what is in an entry's folder.
func readEntry(dir string) (*Manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, err
	}
	if m.Key[:keyDigits] != filepath.Base(dir) {
		return nil, fmt.Errorf("read manifest: it is of image %s", m.Key[:keyDigits])
	}
	for name, size := range map[string]int64{kernelName: m.Files.Kernel, initramfsName: m.Files.Initramfs, rootName: m.Files.Root} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("check image: %w", err)
		}
		if info.Size() != size {
			return nil, fmt.Errorf("check image: %s has %d bytes instead of %d", name, info.Size(), size)
		}
	}
	return m, nil
}

// List returns the images, the last used first.
func (c *Cache) List() ([]Entry, error) {
	if _, err := os.Stat(c.images()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil // and none is made by looking
	}
	var out []Entry
	err := c.locked(context.Background(), func() (err error) {
		out, err = c.list()
		return err
	})
	return out, err
}

func (c *Cache) list() ([]Entry, error) {
	dirs, err := os.ReadDir(c.images())
	if err != nil {
		return nil, fmt.Errorf("list guest images: %w", err)
	}
	var out []Entry
	for _, d := range dirs {
		if !d.IsDir() || strings.HasPrefix(d.Name(), "tmp-") || checkKey(d.Name()) != nil {
			continue
		}
		e := Entry{Key: d.Name(), Dir: filepath.Join(c.images(), d.Name())}
		e.Manifest, e.Err = readEntry(e.Dir)
		e.Size = diskUsage(e.Dir)
		if info, err := os.Stat(filepath.Join(e.Dir, manifestName)); err == nil {
			e.LastUsed = info.ModTime()
		}
		f, err := tryLock(e.Dir, unix.LOCK_EX)
		if err == nil {
			f.Close()
		}
		e.InUse = errors.Is(err, errLocked)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return b.LastUsed.Compare(a.LastUsed) })
	return out, nil
}

// diskUsage is what a folder takes on the disk, in bytes.
func diskUsage(dir string) int64 {
	var n int64
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it may be going just now
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// Remove deletes the image of that key and its checkpoints. It fails with
// ErrNoImage, or with ErrInUse while a job runs on it.
func (c *Cache) Remove(key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return c.locked(context.Background(), func() error { return c.remove(key) })
}

func (c *Cache) remove(key string) error {
	dir := c.entry(key)
	f, err := tryLock(dir, unix.LOCK_EX)
	switch {
	case errors.Is(err, errLocked):
		return fmt.Errorf("%s: %w", key[:keyDigits], ErrInUse)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", key[:keyDigits], ErrNoImage)
	case err != nil:
		return fmt.Errorf("remove guest image: %w", err)
	}
	defer f.Close()
	if err := c.discard(dir); err != nil {
		return fmt.Errorf("remove guest image: %w", err)
	}
	return nil
}

// Trim removes the images that were not used for the longest time until the rest
// fits the limit, and returns their keys. Images in use stay, even if they alone
// exceed it. [Build] trims by itself; whoever adds a checkpoint calls it after.
func (c *Cache) Trim() (removed []string, err error) {
	limit := c.limit()
	err = c.locked(context.Background(), func() error {
		entries, err := c.list()
		if err != nil {
			return err
		}
		var total int64
		for _, e := range entries {
			total += e.Size
		}
		for _, e := range slices.Backward(entries) {
			if total <= limit {
				break
			}
			if err := c.remove(e.Key); err == nil {
				total -= e.Size
				removed = append(removed, e.Key)
			} else if !errors.Is(err, ErrInUse) && !errors.Is(err, ErrNoImage) {
				return err
			}
		}
		return nil
	})
	return removed, err
}
