package share

import (
	"bytes"
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// The requests about one file.

// preferredBlock is what programs are told to read and write at a time, in bytes. Each read or write of theirs is a
// round trip, which 4096, the file system's own block, is too little for.
const preferredBlock = 128 << 10

// magic is the kind of file system that clients are told: 9p's own. With that of the host's file system, MPI-IO would
// use features of it that 9P does not carry.
const magic = 0x01021997

// openFlags translates a client's flags to the host's. Those that tell how a name is found or made are not among them.
func openFlags(flags uint32) (int, error) {
	var host int
	switch flags & ninep.OpenAccess {
	case ninep.OpenReadOnly:
		host = unix.O_RDONLY
	case ninep.OpenWriteOnly:
		host = unix.O_WRONLY
	case ninep.OpenReadWrite:
		host = unix.O_RDWR
	default:
		return 0, unix.EINVAL
	}
	for _, flag := range []struct {
		client uint32
		host   int
	}{
		{ninep.OpenTruncate, unix.O_TRUNC},
		{ninep.OpenAppend, unix.O_APPEND},
		{ninep.OpenDSync, unix.O_DSYNC},
		{ninep.OpenDirectory, unix.O_DIRECTORY},
		{ninep.OpenSync, unix.O_SYNC},
	} {
		if flags&flag.client != 0 {
			host |= flag.host
		}
	}
	return host, nil
}

// changes tells whether a file that is opened with these flags may be changed by it.
func changes(flags uint32) bool {
	return flags&ninep.OpenAccess != ninep.OpenReadOnly || flags&ninep.OpenTruncate != 0
}

func (s *session) newOpenFile(fd int, flags uint32) *openFile {
	return &openFile{fd: fd, access: flags & ninep.OpenAccess, session: s}
}

func (s *session) lopen(m *ninep.Tlopen) (ninep.Message, error) {
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	flags, err := openFlags(m.Flags)
	switch {
	case err != nil:
		return nil, err
	case f.open != nil:
		return nil, unix.EBUSY
	case f.mode == unix.S_IFLNK:
		return nil, unix.ELOOP
	case f.mode != unix.S_IFREG && f.mode != unix.S_IFDIR:
		return nil, unix.ENXIO
	case changes(m.Flags) && s.export.readOnly:
		return nil, unix.EROFS
	}
	fd, err := s.export.open(f.path, flags)
	if err != nil {
		return nil, err
	}
	if err := s.replace(m.FID, f, newFID(f.path.hold(), f.mode, f.where, s.newOpenFile(fd, m.Flags))); err != nil {
		return nil, err
	}
	st, err := f.path.stat()
	if err != nil {
		return nil, err
	}
	return &ninep.Rlopen{QID: s.export.qid(st)}, nil
}

func (s *session) lcreate(m *ninep.Tlcreate) (ninep.Message, error) {
	dir, err := s.entry(m.FID, m.Name)
	if err != nil {
		return nil, err
	}
	defer dir.release()
	if dir.open != nil {
		return nil, unix.EBUSY
	}
	flags, err := openFlags(m.Flags &^ ninep.OpenDirectory)
	if err != nil {
		return nil, err
	}
	where, err := join(dir.where, m.Name)
	if err != nil {
		return nil, err
	}
	fd, path, err := s.create(dir, m, flags)
	if err != nil {
		return nil, err
	}
	f := newFID(path, unix.S_IFREG, where, s.newOpenFile(fd, m.Flags))
	st, err := path.stat()
	if err != nil {
		f.release()
		return nil, err
	}
	if err := s.replace(m.FID, dir, f); err != nil {
		return nil, err
	}
	return &ninep.Rlcreate{QID: s.export.qid(st)}, nil
}

// create opens a regular file by name, and makes it when there is none. open(2) alone can do both, but what it finds
// there may be a fifo or a device, for which to be opened means something.
func (s *session) create(dir *fid, m *ninep.Tlcreate, flags int) (int, *handle, error) {
	const attempts = 100 // each means that somebody made and removed the name in between
	for range attempts {
		fd, err := retry(func() (int, error) {
			return unix.Openat(dir.path.fd, m.Name, flags|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, m.Mode&0o7777)
		})
		if err == nil {
			path, err := s.export.pathOf(fd)
			if err != nil {
				unix.Close(fd)
			}
			return fd, path, err
		}
		if err != unix.EEXIST || m.Flags&ninep.OpenExclusive != 0 {
			return 0, nil, err
		}
		path, err := child(dir.path, m.Name)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		st, err := path.stat()
		switch {
		case err != nil:
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			err = unix.EISDIR
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			err = unix.ELOOP
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			err = unix.ENXIO
		default:
			fd, err = s.export.open(path, flags)
		}
		if err != nil {
			path.release()
			return 0, nil, err
		}
		return fd, path, nil
	}
	return 0, nil, unix.EAGAIN
}

// room is how many bytes of data a reply may have, when the client asks for count.
func (s *session) room(count uint32) int { return int(min(count, s.maxSize-ninep.DataOverhead)) }

func (s *session) readFile(m *ninep.Tread) (ninep.Message, error) {
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	if m.Offset > math.MaxInt64 {
		return nil, unix.EINVAL
	}
	data := buffers.get(s.room(m.Count))
	n, err := retry(func() (int, error) { return unix.Pread(f.open.fd, *data, int64(m.Offset)) })
	if err != nil {
		buffers.put(data)
		return nil, err
	}
	return &ninep.Rread{Data: (*data)[:n]}, nil
}

func (s *session) writeFile(m *ninep.Twrite) (ninep.Message, error) {
	if err := s.export.checkWrite(); err != nil {
		return nil, err
	}
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	if m.Offset > math.MaxInt64 {
		return nil, unix.EINVAL
	}
	n, err := retry(func() (int, error) { return unix.Pwrite(f.open.fd, m.Data, int64(m.Offset)) })
	if err != nil {
		return nil, err
	}
	return &ninep.Rwrite{Count: uint32(n)}, nil
}

func (s *session) fsync(m *ninep.Tfsync) (ninep.Message, error) {
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	_, err = retry(func() (int, error) {
		if m.DataOnly != 0 {
			return 0, unix.Fdatasync(f.open.fd)
		}
		return 0, unix.Fsync(f.open.fd)
	})
	return &ninep.Rfsync{}, err
}

// readdir translates entries of getdents(2), whose offsets are the cookies of the protocol.
func (s *session) readdir(m *ninep.Treaddir) (ninep.Message, error) {
	f, err := s.opened(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	if f.mode != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	if m.Offset > math.MaxInt64 {
		return nil, unix.EINVAL
	}
	// Of an entry with a name of n bytes, 9P makes 24+n and Linux 20+n, rounded up to a multiple of 8. The ratio is
	// highest at n = 4 with 28 to 24, so all of what fits in 6/7 of the space fits when translated.
	in := make([]byte, min(s.room(m.Count), 64<<10)/7*6)

	f.open.dirMu.Lock()
	defer f.open.dirMu.Unlock()
	if _, err := unix.Seek(f.open.fd, int64(m.Offset), unix.SEEK_SET); err != nil {
		return nil, err
	}
	n, err := retry(func() (int, error) { return unix.Getdents(f.open.fd, in) })
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, n/6*7+n%6)
	for rest := in[:n]; len(rest) > 0; {
		// struct linux_dirent64: d_ino[8] d_off[8] d_reclen[2] d_type[1] d_name[], ended by a zero
		size := binary.NativeEndian.Uint16(rest[16:])
		name, _, _ := bytes.Cut(rest[19:size], []byte{0})
		entry := ninep.Dirent{
			QID:    s.direntQID(f, binary.NativeEndian.Uint64(rest), rest[18], string(name)),
			Offset: binary.NativeEndian.Uint64(rest[8:]),
			Kind:   rest[18],
			Name:   string(name),
		}
		out = ninep.AppendDirent(out, &entry)
		rest = rest[size:]
	}
	return &ninep.Rreaddir{Data: out}, nil
}

// direntQID is the identity of an entry as far as the listing tells it. The root's ".." is the root.
func (s *session) direntQID(dir *fid, ino uint64, kind uint8, name string) ninep.QID {
	qid := ninep.QID{Path: s.export.qidPath(fileID{s.export.id.dev, ino})}
	switch {
	case name == ".." && dir.where == "":
		return ninep.QID{Type: ninep.TypeDir, Path: s.export.qidPath(s.export.id)}
	case kind == unix.DT_DIR:
		qid.Type = ninep.TypeDir
	case kind == unix.DT_LNK:
		qid.Type = ninep.TypeSymlink
	case kind == unix.DT_UNKNOWN:
		var st unix.Stat_t
		if unix.Fstatat(dir.path.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return s.export.qid(&st)
		}
	}
	return qid
}

func (s *session) getattr(m *ninep.Tgetattr) (ninep.Message, error) {
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	st, err := f.path.stat()
	if err != nil {
		return nil, err
	}
	return &ninep.Rgetattr{
		Valid:     ninep.GetattrBasic,
		QID:       s.export.qid(st),
		Mode:      st.Mode,
		UID:       st.Uid,
		GID:       st.Gid,
		NLink:     uint64(st.Nlink),
		RDev:      st.Rdev,
		Size:      uint64(st.Size),
		BlockSize: preferredBlock,
		Blocks:    uint64(st.Blocks),
		Atime:     timeOf(st.Atim),
		Mtime:     timeOf(st.Mtim),
		Ctime:     timeOf(st.Ctim),
	}, nil
}

func timeOf(t unix.Timespec) ninep.Time {
	sec, nsec := t.Unix()
	return ninep.Time{Sec: uint64(sec), Nsec: uint64(nsec)}
}

// setattr sets the owner first, because that takes set-user-id bits away, and times last, because the others set them.
func (s *session) setattr(m *ninep.Tsetattr) (ninep.Message, error) {
	if err := s.export.checkWrite(); err != nil {
		return nil, err
	}
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()

	// To set neither owner sets the time of change, which is what SetCtime alone asks for.
	if m.Valid&(ninep.SetUID|ninep.SetGID) != 0 || m.Valid == ninep.SetCtime {
		uid, gid := -1, -1
		if m.Valid&ninep.SetUID != 0 {
			uid = int(m.UID)
		}
		if m.Valid&ninep.SetGID != 0 {
			gid = int(m.GID)
		}
		if err := unix.Fchownat(f.path.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return nil, err
		}
	}
	if m.Valid&ninep.SetMode != 0 {
		if f.mode == unix.S_IFLNK {
			return nil, unix.EOPNOTSUPP
		}
		if err := unix.Fchmodat(int(s.export.descriptors.Fd()), name(f.path), m.Mode&0o7777, 0); err != nil {
			return nil, err
		}
	}
	if m.Valid&ninep.SetSize != 0 {
		if err := s.truncate(f, m.Size); err != nil {
			return nil, err
		}
	}
	if m.Valid&(ninep.SetAtime|ninep.SetMtime) != 0 {
		times := []unix.Timespec{
			timeToSet(m.Valid, ninep.SetAtime, ninep.SetAtimeSet, m.Atime),
			timeToSet(m.Valid, ninep.SetMtime, ninep.SetMtimeSet, m.Mtime),
		}
		if err := unix.UtimesNanoAt(f.path.fd, "", times, unix.AT_EMPTY_PATH); err != nil {
			return nil, err
		}
	}
	return &ninep.Rsetattr{}, nil
}

func timeToSet(valid, bit, setBit uint32, t ninep.Time) unix.Timespec {
	switch {
	case valid&bit == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&setBit == 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case t.Nsec >= 1e9:
		return unix.Timespec{Nsec: -1} // refused by the kernel; 2^30-1 would be "now"
	}
	return unix.Timespec{Sec: int64(t.Sec), Nsec: int64(t.Nsec)}
}

// truncate goes through the open file where there is one, which may be allowed what a new one is not.
func (s *session) truncate(f *fid, size uint64) error {
	switch {
	case size > math.MaxInt64:
		return unix.EFBIG
	case f.mode == unix.S_IFDIR:
		return unix.EISDIR
	case f.mode != unix.S_IFREG:
		return unix.EINVAL
	}
	fd := -1
	if f.open != nil && f.open.access != ninep.OpenReadOnly {
		fd = f.open.fd
	} else {
		var err error
		if fd, err = s.export.open(f.path, unix.O_WRONLY); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	_, err := retry(func() (int, error) { return 0, unix.Ftruncate(fd, int64(size)) })
	return err
}

func (s *session) statfs(m *ninep.Tstatfs) (ninep.Message, error) {
	f, err := s.fid(m.FID)
	if err != nil {
		return nil, err
	}
	defer f.release()
	var st unix.Statfs_t
	if err := unix.Fstatfs(f.path.fd, &st); err != nil {
		return nil, err
	}
	return &ninep.Rstatfs{
		Kind:       magic,
		BlockSize:  uint32(st.Bsize),
		Blocks:     st.Blocks,
		Free:       st.Bfree,
		Available:  st.Bavail,
		Files:      st.Files,
		FilesFree:  st.Ffree,
		FSID:       uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32,
		NameLength: uint32(st.Namelen),
	}, nil
}
