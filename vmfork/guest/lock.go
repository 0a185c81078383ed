package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a waiter tries again; flock has no wait with a deadline.
const lockPoll = 25 * time.Millisecond

// errLocked says that another process (or another part of this one) has the lock.
var errLocked = errors.New("locked")

// tryLock opens path (a file or folder that exists) and takes its flock, shared
// or exclusive, without waiting: errLocked if somebody else has it, fs.ErrNotExist
// if the path is gone, or went, or became another file, while it was being locked.
func tryLock(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The path may by now lead elsewhere: then this lock protects nothing.
	locked, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(path); err == nil && !os.SameFile(locked, now) {
			err = fmt.Errorf("lock %s: %w", path, os.ErrNotExist)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockFile takes the exclusive lock of the file at path, which is made if need be
// and removed again by unlock. It waits at most limit; waiting, if not nil, is
// called once if somebody else has the lock.
func lockFile(ctx context.Context, path string, limit time.Duration, waiting func()) (unlock func(), err error) {
	deadline := time.Now().Add(limit)
	for {
		f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		f.Close()
		f, err = tryLock(path, unix.LOCK_EX)
		if err == nil {
			return func() {
				// Removed before it is unlocked: whoever waits for this file sees that
				// the path is gone and starts over.
				os.Remove(path)
				f.Close()
			}, nil
		}
		if !errors.Is(err, errLocked) && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if waiting != nil && errors.Is(err, errLocked) {
			waiting()
			waiting = nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s was still locked by another process after %v", path, limit)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock %s: %w", path, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}
