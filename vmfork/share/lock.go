package share

import (
	"errors"
	"io"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// lockPoll is how often a lock that waits looks whether a process of the host has let go. Clones' letting go wakes it.
const lockPoll = 50 * time.Millisecond

// lock takes and returns advisory locks. A request that may wait does so here, without its slot: a client that were told
// LockBlocked would sleep for half a minute before asking again.
func (s *session) lock(r *request, m *ninep.Tlock) (ninep.Message, error) {
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	want, err := hostLock(m.Kind, m.Start, m.Length)
	if err != nil {
		return nil, err
	}
	if want.Type == unix.F_UNLCK {
		if err := setLock(f, want); err != nil {
			return nil, err
		}
		s.export.unlocked.wake()
		return &ninep.Rlock{Status: ninep.LockSuccess}, nil
	}

	f.open.locked.Store(true)
	waits := false
	for {
		released := s.export.unlocked.wait()
		err := setLock(f, want)
		switch {
		case err == nil:
			return &ninep.Rlock{Status: ninep.LockSuccess}, nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
			return nil, err
		case m.Flags&ninep.LockBlock == 0:
			return &ninep.Rlock{Status: ninep.LockBlocked}, nil
		}
		if !waits {
			waits = true
			defer s.waiting.Add(-1)
			if s.waiting.Add(1) > maxWaiting {
				return &ninep.Rlock{Status: ninep.LockBlocked}, nil
			}
			r.leave()
		}
		timer := time.NewTimer(lockPoll)
		select {
		case <-released:
		case <-timer.C:
		case <-r.flushed:
			err = unix.EINTR
		case <-s.closed:
			err = unix.EINTR
		}
		timer.Stop()
		if errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

// getlock tells which lock is in the way. Linux asks for one of type LockUnlock whatever it wants to know; any lock of
// others is then in the way.
func (s *session) getlock(m *ninep.Tgetlock) (ninep.Message, error) {
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	kind := m.Kind
	if kind == ninep.LockUnlock {
		kind = ninep.LockWrite
	}
	lock, err := hostLock(kind, m.Start, m.Length)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(uintptr(f.open.fd), unix.F_OFD_GETLK, lock); err != nil {
		return nil, err
	}
	reply := &ninep.Rgetlock{Kind: ninep.LockUnlock, Start: m.Start, Length: m.Length, ProcID: m.ProcID, ClientID: m.ClientID}
	switch lock.Type {
	case unix.F_UNLCK:
		return reply, nil
	case unix.F_RDLCK:
		reply.Kind = ninep.LockRead
	default:
		reply.Kind = ninep.LockWrite
	}
	// Whose it is, the host cannot tell: such locks have no process.
	reply.Start, reply.Length, reply.ProcID, reply.ClientID = uint64(lock.Start), uint64(lock.Len), 0, ""
	return reply, nil
}

func hostLock(kind uint8, start, length uint64) (*unix.Flock_t, error) {
	if start > math.MaxInt64 || length > math.MaxInt64 {
		return nil, unix.EINVAL
	}
	lock := &unix.Flock_t{Whence: io.SeekStart, Start: int64(start), Len: int64(length)}
	switch kind {
	case ninep.LockRead:
		lock.Type = unix.F_RDLCK
	case ninep.LockWrite:
		lock.Type = unix.F_WRLCK
	case ninep.LockUnlock:
		lock.Type = unix.F_UNLCK
	default:
		return nil, unix.EINVAL
	}
	return lock, nil
}

func setLock(f *fid, lock *unix.Flock_t) error {
	_, err := retry(func() (int, error) {
		return 0, unix.FcntlFlock(uintptr(f.open.fd), unix.F_OFD_SETLK, lock)
	})
	return err
}
