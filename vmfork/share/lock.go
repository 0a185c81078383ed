package share

import (
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// Advisory locks. A client's kernel settles its own processes' conflicts before it asks, so the server judges between
// clients, and between them and processes of the host: all locks of a session on one file are those of one open file
// description on the host (F_OFD_SETLK).
//
// Whose a lock is within the session matters when it is let go, since two may read-lock the same bytes. An owner is a
// process, as the client names it. That is by far not academic: a process that closes a file unlocks it, to the kernel, and
// Linux passes this on for a child that merely inherited the file and closes it to execute a program. The parent's
// lock must stay.

// lockPoll is how often a lock that waits looks whether a process of the host has let go. Clones' letting go wakes it.
const lockPoll = 50 * time.Millisecond

// maxHeld bounds the locks of one client on one file.
const maxHeld = 1024

// A lockedFile is a file on which the session holds locks.
type lockedFile struct {
	fd   int // the description that has the locks
	held []heldLock
}

// A heldLock is an owner's lock on the bytes from first to last. It goes with the open file through which it came.
type heldLock struct {
	through *openFile
	owner   uint32
	span
}

// A span is bytes of a file, both ends included. One that ends at the largest offset has no end.
type span struct{ first, last int64 }

// lock takes and returns advisory locks. A request that may wait does so here, without its slot: a client that were told
// LockBlocked would sleep before asking again.
func (s *session) lock(r *request, m *ninep.Tlock) (ninep.Message, error) {
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	kind, where, err := hostLock(m.Kind, m.Start, m.Length)
	if err != nil {
		return nil, err
	}
	if kind == unix.F_UNLCK {
		if err := s.unlock(f, m.ProcID, where); err != nil {
			return nil, err
		}
		return &ninep.Rlock{Status: ninep.LockSuccess}, nil
	}

	waits := false
	for {
		released := s.export.unlocked.wait()
		err := s.tryLock(f, m.ProcID, kind, where)
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
	hostKind, where, err := hostLock(kind, m.Start, m.Length)
	if err != nil {
		return nil, err
	}
	id, err := f.id()
	if err != nil {
		return nil, err
	}
	lock := where.flock(hostKind)
	s.lockMu.Lock()
	fd := f.open.fd
	if file := s.locked[id]; file != nil {
		fd = file.fd // through which the session's own locks are not in the way
	}
	err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, lock)
	s.lockMu.Unlock()
	if err != nil {
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

// tryLock takes a lock, or fails with EAGAIN when another client or the host has one that is in the way.
func (s *session) tryLock(f *fid, owner uint32, kind int16, where span) error {
	id, err := f.id()
	if err != nil {
		return err
	}
	s.lockMu.Lock()
	defer s.lockMu.Unlock()
	file := s.locked[id]
	if file == nil {
		fd, err := s.describe(f)
		if err != nil {
			return err
		}
		file = &lockedFile{fd: fd}
	}
	if len(file.held) >= maxHeld {
		return unix.ENOLCK
	}
	if err := file.set(kind, where); err != nil {
		if len(file.held) == 0 {
			unix.Close(file.fd)
		}
		return err
	}
	file.take(func(h heldLock) bool { return h.owner == owner }, where)
	file.held = append(file.held, heldLock{through: f.open, owner: owner, span: where})
	s.locked[id] = file
	f.open.locked.Store(true)
	return nil
}

// describe opens the description for a file's locks. To lock for writing takes one that can write.
func (s *session) describe(f *fid) (int, error) {
	if f.open.access != ninep.OpenReadOnly {
		return unix.FcntlInt(uintptr(f.open.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	if !s.export.readOnly && f.mode == unix.S_IFREG {
		if fd, err := s.export.open(f.path, unix.O_RDWR); err == nil {
			return fd, nil
		}
	}
	return s.export.open(f.path, unix.O_RDONLY)
}

// unlock lets an owner's locks go.
func (s *session) unlock(f *fid, owner uint32, where span) error {
	id, err := f.id()
	if err != nil {
		return err
	}
	return s.letGo(id, func(h heldLock) bool { return h.owner == owner }, where)
}

// dropLocks lets the locks go that came through a file which is closed.
func (s *session) dropLocks(f *fid) {
	if id, err := f.id(); err == nil {
		_ = s.letGo(id, func(h heldLock) bool { return h.through == f.open }, span{0, math.MaxInt64})
	}
}

// letGo takes locks from the session's books, and unlocks the bytes that nobody else in them has.
func (s *session) letGo(id fileID, whose func(heldLock) bool, where span) error {
	s.lockMu.Lock()
	defer s.lockMu.Unlock()
	file := s.locked[id]
	if file == nil {
		return nil
	}
	defer s.export.unlocked.wake()
	taken := file.take(whose, where)
	if len(file.held) == 0 {
		// Closing alone would not unlock what a fid's own description has.
		delete(s.locked, id)
		defer unix.Close(file.fd)
		return file.set(unix.F_UNLCK, span{0, math.MaxInt64})
	}
	for _, h := range file.held {
		var rest []span
		for _, t := range taken {
			rest = append(rest, t.without(h.span)...)
		}
		taken = rest
	}
	for _, free := range taken {
		if err := file.set(unix.F_UNLCK, free); err != nil {
			return err
		}
	}
	return nil
}

// take removes a span from some of the locks in the books, and returns what it removed.
func (file *lockedFile) take(whose func(heldLock) bool, where span) (taken []span) {
	var split []heldLock
	file.held = slices.DeleteFunc(file.held, func(h heldLock) bool {
		both := span{max(h.first, where.first), min(h.last, where.last)}
		if !whose(h) || both.first > both.last {
			return false
		}
		taken = append(taken, both)
		for _, part := range h.without(where) {
			split = append(split, heldLock{h.through, h.owner, part})
		}
		return true
	})
	file.held = append(file.held, split...)
	return taken
}

func (file *lockedFile) set(kind int16, where span) error {
	_, err := retry(func() (int, error) {
		return 0, unix.FcntlFlock(uintptr(file.fd), unix.F_OFD_SETLK, where.flock(kind))
	})
	return err
}

// without is what is left of a span without another.
func (a span) without(b span) (rest []span) {
	if b.first > a.last || b.last < a.first {
		return []span{a}
	}
	if a.first < b.first {
		rest = append(rest, span{a.first, b.first - 1})
	}
	if a.last > b.last {
		rest = append(rest, span{b.last + 1, a.last})
	}
	return rest
}

func (a span) flock(kind int16) *unix.Flock_t {
	lock := &unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: a.first}
	if a.last < math.MaxInt64 {
		lock.Len = a.last - a.first + 1
	}
	return lock
}

// hostLock translates a lock's kind and bytes.
func hostLock(kind uint8, start, length uint64) (int16, span, error) {
	where := span{int64(start), math.MaxInt64}
	if start > math.MaxInt64 || length > math.MaxInt64-start+1 {
		return 0, where, unix.EINVAL
	}
	if length > 0 {
		where.last = int64(start + length - 1)
	}
	switch kind {
	case ninep.LockRead:
		return unix.F_RDLCK, where, nil
	case ninep.LockWrite:
		return unix.F_WRLCK, where, nil
	case ninep.LockUnlock:
		return unix.F_UNLCK, where, nil
	}
	return 0, where, unix.EINVAL
}
