package share

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// The requests that find, make and remove names.

func (s *session) attach(m *ninep.Tattach) (ninep.Message, error) {
	if m.AuthFID != ninep.NoFID {
		return nil, unix.EINVAL
	}
	st, err := s.export.root.stat()
	if err != nil {
		return nil, err
	}
	// Whoever the client says that it is: files are used as the user that this process is.
	if err := s.insert(m.FID, newFID(s.export.root.hold(), st.Mode, "", nil)); err != nil {
		return nil, err
	}
	return &ninep.Rattach{QID: s.export.qid(st)}, nil
}

func (s *session) walk(m *ninep.Twalk) (ninep.Message, error) {
	from, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer from.release()
	if m.NewFID == m.FID && from.open != nil {
		return nil, unix.EBUSY
	}
	reply := &ninep.Rwalk{QIDs: []ninep.QID{}}
	at := newFID(from.path.hold(), from.mode, from.where, nil)
	for i, name := range m.Names {
		next, st, err := s.step(at, name)
		if err != nil {
			at.release()
			if i == 0 {
				return nil, err
			}
			return reply, nil // how far it went; there is no new fid
		}
		at.release()
		at = next
		reply.QIDs = append(reply.QIDs, s.export.qid(st))
	}
	if m.NewFID == m.FID {
		err = s.replace(m.FID, from, at)
	} else {
		err = s.insert(m.NewFID, at)
	}
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// step walks one name on.
func (s *session) step(at *fid, name string) (*fid, *unix.Stat_t, error) {
	var path *handle
	var where string
	var err error
	switch {
	case at.mode != unix.S_IFDIR:
		return nil, nil, unix.ENOTDIR
	case name == "..":
		path, where, err = s.up(at)
	default:
		if err = checkName(name); err == nil {
			where, err = join(at.where, name)
		}
		if err == nil {
			path, err = child(at.path, name)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	st, err := path.stat()
	if err != nil {
		path.release()
		return nil, nil, err
	}
	return newFID(path, st.Mode, where, nil), st, nil
}

// up is "..": the directory where the client came from, provided that it is the parent still. The kernel's ".." would
// lead out of the folder from a directory that somebody moved out of it.
func (s *session) up(at *fid) (*handle, string, error) {
	if at.where == "" {
		return s.export.root.hold(), "", nil
	}
	where := at.where[:strings.LastIndexByte(at.where, '/')]
	dir, err := s.export.directory(where)
	if err != nil {
		return nil, "", err
	}
	st, err := dir.stat()
	if err == nil {
		var parent unix.Stat_t
		err = unix.Fstatat(at.path.fd, "..", &parent, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && idOf(&parent) != idOf(st) {
			err = unix.ESTALE
		}
	}
	if err != nil {
		dir.release()
		return nil, "", err
	}
	return dir, where, nil
}

// entry is what all requests that change a name begin with: they may, it is one, and the fid is a directory. The caller
// releases the fid.
func (s *session) entry(number uint32, name string) (*fid, error) {
	if err := s.export.checkWrite(); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	dir, err := s.fid(number)
	if err == nil && dir.mode != unix.S_IFDIR {
		dir.release()
		return nil, unix.ENOTDIR
	}
	return dir, err
}

// made is the identity of a name just made.
func (s *session) made(dir *fid, name string) (ninep.QID, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir.path.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ninep.QID{}, err
	}
	return s.export.qid(&st), nil
}

func (s *session) mkdir(m *ninep.Tmkdir) (ninep.Message, error) {
	dir, err := s.entry(m.DirFID, m.Name)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	if err := unix.Mkdirat(dir.path.fd, m.Name, m.Mode&0o7777); err != nil {
		return nil, err
	}
	qid, err := s.made(dir, m.Name)
	return &ninep.Rmkdir{QID: qid}, err
}

func (s *session) symlink(m *ninep.Tsymlink) (ninep.Message, error) {
	dir, err := s.entry(m.DirFID, m.Name)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	if strings.IndexByte(m.Target, 0) >= 0 {
		return nil, unix.EINVAL
	}
	if err := unix.Symlinkat(m.Target, dir.path.fd, m.Name); err != nil {
		return nil, err
	}
	qid, err := s.made(dir, m.Name)
	return &ninep.Rsymlink{QID: qid}, err
}

func (s *session) readlink(m *ninep.Treadlink) (ninep.Message, error) {
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	if f.mode != unix.S_IFLNK {
		return nil, unix.EINVAL
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(f.path.fd, "", target)
	if err != nil {
		return nil, err
	}
	if n+ninep.HeaderSize+2 > int(s.maxSize) {
		return nil, unix.ENAMETOOLONG
	}
	return &ninep.Rreadlink{Target: string(target[:n])}, nil
}

// mknod makes empty files, fifos and sockets, which are names with which a guest's kernel does the rest. Devices are
// the host's.
func (s *session) mknod(m *ninep.Tmknod) (ninep.Message, error) {
	dir, err := s.entry(m.DirFID, m.Name)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	switch m.Mode & unix.S_IFMT {
	case 0, unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return nil, unix.EPERM
	}
	if err := unix.Mknodat(dir.path.fd, m.Name, m.Mode&(unix.S_IFMT|0o7777), 0); err != nil {
		return nil, err
	}
	qid, err := s.made(dir, m.Name)
	return &ninep.Rmknod{QID: qid}, err
}

func (s *session) link(m *ninep.Tlink) (ninep.Message, error) {
	dir, err := s.entry(m.DirFID, m.Name)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	// What is followed is the descriptor's name; a symbolic link is linked itself.
	return &ninep.Rlink{}, unix.Linkat(int(s.export.descriptors.Fd()), name(f.path), dir.path.fd, m.Name, unix.AT_SYMLINK_FOLLOW)
}

func (s *session) renameat(m *ninep.Trenameat) (ninep.Message, error) {
	from, err := s.entry(m.OldDirFID, m.OldName)
	if err != nil {
		return nil, err
	}
	defer from.release()
	to, err := s.entry(m.NewDirFID, m.NewName)
	if err != nil {
		return nil, err
	}
	defer to.release()
	return &ninep.Rrenameat{}, unix.Renameat(from.path.fd, m.OldName, to.path.fd, m.NewName)
}

// rename renames the file of a fid, at the name by which the client came to it.
func (s *session) rename(m *ninep.Trename) (ninep.Message, error) {
	to, err := s.entry(m.DirFID, m.Name)
	if err != nil {
		return nil, err
	}
	defer to.release()
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	where, err := join(to.where, m.Name)
	if err != nil {
		return nil, err
	}
	from, name, err := s.export.parent(f)
	if err != nil {
		return nil, err
	}
	defer from.release()
	if err := unix.Renameat(from.fd, name, to.path.fd, m.Name); err != nil {
		return nil, err
	}
	if f.open == nil {
		// An open fid keeps its old path: it may not be walked from, and has no other use for it.
		err = s.replace(m.FID, f, newFID(f.path.hold(), f.mode, where, nil))
	}
	return &ninep.Rrename{}, err
}

func (s *session) unlinkat(m *ninep.Tunlinkat) (ninep.Message, error) {
	dir, err := s.entry(m.DirFID, m.Name)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	flags := 0
	if m.Flags&ninep.UnlinkDir != 0 {
		flags = unix.AT_REMOVEDIR
	}
	return &ninep.Runlinkat{}, unix.Unlinkat(dir.path.fd, m.Name, flags)
}

// removeFile removes the file of a fid, and the fid, this also when the file cannot be removed.
func (s *session) removeFile(m *ninep.Tremove) (ninep.Message, error) {
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	_ = s.remove(m.FID)
	if err := s.export.checkWrite(); err != nil {
		return nil, err
	}
	dir, name, err := s.export.parent(f)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	flags := 0
	if f.mode == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	return &ninep.Rremove{}, unix.Unlinkat(dir.fd, name, flags)
}
