package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// complete is the file that a build has once it is one.
const complete = "complete"

// DefaultCache is the folder for builds of that kind in the user's own cache.
func DefaultCache(kind string) (string, error) {
	own, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w", err)
	}
	return filepath.Join(own, "mpirun-sf-"+kind), nil
}

// Open finds the folder of a build in a cache. Where there is none, the error is fs.ErrNotExist.
func Open(cache, name string) (dir string, err error) {
	dir = filepath.Join(cache, name)
	if _, err := os.Stat(filepath.Join(dir, complete)); err != nil {
		return "", err
	}
	return dir, nil
}

// Make finds the folder of a build in a cache, or has it made: build fills the empty folder that it is given, whose path is that
// of the build for good.
func Make(cache, name string, build func(dir string) error) (dir string, err error) {
	dir = filepath.Join(cache, name)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	// Dropped with the process. Whoever waits finds the build.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if dir, err := Open(cache, name); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := build(dir); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, complete), nil, 0o644)
}
