package share

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A handle is a path descriptor (O_PATH) that several fids may share.
type handle struct {
	fd   int
	refs atomic.Int32
}

func newHandle(fd int) *handle {
	h := &handle{fd: fd}
	h.refs.Store(1)
	return h
}

func (h *handle) hold() *handle {
	h.refs.Add(1)
	return h
}

func (h *handle) release() {
	if h.refs.Add(-1) == 0 {
		unix.Close(h.fd)
	}
}

func (h *handle) stat() (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

// An openFile is what reads, writes and locks go through. It belongs to one fid.
type openFile struct {
	fd      int
	access  uint32 // one of ninep.Open…Only, ReadWrite
	session *session
	locked  atomic.Bool // locks came through it
	dirMu   sync.Mutex  // orders the listing of a directory: seek and read
}

// A fid is a client's reference to a file. It does not change; see [session.replace].
type fid struct {
	refs  atomic.Int32
	path  *handle
	mode  uint32    // the file's type, S_IFMT of stat(2), which no file ever changes
	where string    // the path below the root by which the client came here, each name after a slash; the root's is empty
	open  *openFile // nil before lopen or lcreate
}

// newFID takes over path and open.
func newFID(path *handle, mode uint32, where string, open *openFile) *fid {
	f := &fid{path: path, mode: mode & unix.S_IFMT, where: where, open: open}
	f.refs.Store(1)
	return f
}

func (f *fid) release() {
	if f.refs.Add(-1) > 0 {
		return
	}
	if f.open != nil {
		if f.open.locked.Load() {
			f.open.session.dropLocks(f)
		}
		unix.Close(f.open.fd)
	}
	f.path.release()
}

func (f *fid) id() (fileID, error) {
	st, err := f.path.stat()
	if err != nil {
		return fileID{}, err
	}
	return idOf(st), nil
}

// fid finds a fid. The caller releases it.
func (s *session) fid(number uint32) (*fid, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.fids[number]
	if f == nil {
		return nil, unix.EBADF
	}
	f.refs.Add(1)
	return f, nil
}

// opened finds a fid that is open. The caller releases it.
func (s *session) opened(number uint32) (*fid, error) {
	f, err := s.fid(number)
	if err == nil && f.open == nil {
		f.release()
		return nil, unix.EBADF
	}
	return f, err
}

// insert enters a new fid, or releases it when there is an error.
func (s *session) insert(number uint32, f *fid) error {
	s.mu.Lock()
	_, taken := s.fids[number]
	full := len(s.fids) >= maxFIDs
	if !taken && !full {
		s.fids[number] = f
	}
	s.mu.Unlock()
	switch {
	case taken:
		f.release()
		return unix.EINVAL
	case full:
		f.release()
		return unix.ENFILE
	}
	return nil
}

// replace puts another fid in the place of an old one, which is still the caller's to release, or releases the new
// one when the old one is not there any more.
func (s *session) replace(number uint32, old, by *fid) error {
	s.mu.Lock()
	found := s.fids[number] == old
	if found {
		s.fids[number] = by
	}
	s.mu.Unlock()
	if !found {
		by.release()
		return unix.EBADF
	}
	old.release() // the table's
	return nil
}

// remove takes a fid out of the table.
func (s *session) remove(number uint32) error {
	s.mu.Lock()
	f := s.fids[number]
	delete(s.fids, number)
	s.mu.Unlock()
	if f == nil {
		return unix.EBADF
	}
	f.release()
	return nil
}

// removeAll empties the table.
func (s *session) removeAll() {
	s.mu.Lock()
	all := s.fids
	s.fids = make(map[uint32]*fid)
	s.mu.Unlock()
	for _, f := range all {
		f.release()
	}
}
