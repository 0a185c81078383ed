package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unused is how long a part of the rig is kept that no run has used.
const unused = 30 * 24 * time.Hour

// A Cache keeps what is costly to make: unpacked packages, a kernel, a hypervisor that was compiled. Each is a folder whose
// name has a digest of what it is made of, so that a new version is another folder.
type Cache struct {
	Dir string
	Log func(format string, args ...any) // a line for each slow step
}

// DefaultCache is in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache): mpirun-sf-xen.
func DefaultCache(log func(format string, args ...any)) (*Cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w: set HOME or XDG_CACHE_HOME", err)
	}
	return &Cache{Dir: filepath.Join(dir, "mpirun-sf-xen"), Log: log}, nil
}

// part returns the folder of that name that is made of what recipe says, and has it filled by fill if it is not there. Runs
// that want the same wait for each other, at most until ctx ends.
func (c *Cache) part(ctx context.Context, name string, recipe []string, fill func(dir string) error) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(recipe, "\x00")))
	dir := filepath.Join(c.Dir, fmt.Sprintf("%s-%x", name, sum[:5]))
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", fmt.Errorf("make the rig's cache: %w", err)
	}
	unlock, err := c.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	now := time.Now()
	if err := os.Chtimes(dir, now, now); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	// With the lock held, what is half made is of a run that was killed.
	half, _ := filepath.Glob(filepath.Join(c.Dir, "tmp-"+name+"-*"))
	for _, h := range half {
		os.RemoveAll(h)
	}
	tmp, err := os.MkdirTemp(c.Dir, "tmp-"+name+"-")
	if err != nil {
		return "", fmt.Errorf("make the rig's %s: %w", name, err)
	}
	defer os.RemoveAll(tmp)
	if err := errors.Join(fill(tmp), os.Chmod(tmp, 0o755)); err != nil {
		return "", fmt.Errorf("make the rig's %s: %w", name, err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("keep the rig's %s: %w", name, err)
	}
	c.forget(name)
	return dir, nil
}

// forget removes the parts of that name that were not used for long.
func (c *Cache) forget(name string) {
	dirs, _ := filepath.Glob(filepath.Join(c.Dir, name+"-*"))
	for _, d := range dirs {
		if info, err := os.Stat(d); err == nil && info.IsDir() && time.Since(info.ModTime()) > unused {
			os.RemoveAll(d)
		}
	}
}

// lock takes the lock of parts of that name, which is dropped with the process.
func (c *Cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the rig's cache: %w", err)
	}
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !told {
			c.Log("waiting for another run that makes the rig's %s", name)
			told = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another run that makes the rig's %s: %w", name, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// WorkDir makes a folder for one run, in the cache because the rig has its own /tmp. remove removes it; those of runs that were
// killed go with the next run.
func (c *Cache) WorkDir() (dir string, remove func(), err error) {
	runs := filepath.Join(c.Dir, "runs")
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return "", nil, fmt.Errorf("make a folder for this run: %w", err)
	}
	unlock, err := c.lock(context.Background(), "runs")
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	old, _ := filepath.Glob(filepath.Join(runs, "*"))
	for _, d := range old {
		// A run has its folder locked.
		f, err := os.Open(d)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(d)
		}
		f.Close()
	}
	if dir, err = os.MkdirTemp(runs, ""); err != nil {
		return "", nil, fmt.Errorf("make a folder for this run: %w", err)
	}
	f, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", nil, fmt.Errorf("lock the folder of this run: %w", err)
	}
	return dir, func() { os.RemoveAll(dir); f.Close() }, nil
}
