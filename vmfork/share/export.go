package share

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// maxPath bounds, in bytes, how deep a fid may be below the folder.
const maxPath = 4096

// An export is the folder that is served, and how files in it are reached.
type export struct {
	root     *handle
	id       fileID
	readOnly bool
	// descriptors is /proc/self/fd. A path descriptor is opened for reading or writing by its name there, which works
	// after chroot, and for files that have no name any more.
	descriptors *os.File
	unlocked    broadcast
}

// fileID tells files apart.
type fileID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{st.Dev, st.Ino} }

// openDescriptors opens what an export needs of /proc.
func openDescriptors() (*os.File, error) { return os.Open("/proc/self/fd") }

// newExport serves a folder. It owns descriptors from then on, also after an error.
func newExport(folder string, descriptors *os.File, readOnly bool) (*export, error) {
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		descriptors.Close()
		return nil, fmt.Errorf("open folder: %w", err)
	}
	e := &export{root: newHandle(fd), readOnly: readOnly, descriptors: descriptors}
	st, err := e.root.stat()
	if err != nil {
		e.close()
		return nil, fmt.Errorf("open folder: %w", err)
	}
	e.id = idOf(st)
	return e, nil
}

func (e *export) close() {
	e.root.release()
	e.descriptors.Close()
}

// name is that of a handle in e.descriptors.
func name(h *handle) string { return strconv.Itoa(h.fd) }

// open opens the file of a handle. It must be regular or a directory: to open anything else may wait or act.
func (e *export) open(h *handle, flags int) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat(int(e.descriptors.Fd()), name(h), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
}

// pathOf is a handle for a file that is open.
func (e *export) pathOf(fd int) (*handle, error) {
	path, err := unix.Openat(int(e.descriptors.Fd()), strconv.Itoa(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return newHandle(path), nil
}

// child is a handle for one name in a directory, whatever it is; a symbolic link is itself.
func child(dir *handle, name string) (*handle, error) {
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return newHandle(fd), nil
}

// directory is a handle for a directory by its path below the root, which a fid remembers.
func (e *export) directory(where string) (*handle, error) {
	dir := e.root.hold()
	for _, name := range strings.FieldsFunc(where, func(r rune) bool { return r == '/' }) {
		next, err := child(dir, name)
		dir.release()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// parent is the directory where a fid was found, and its name there, if it is still there.
func (e *export) parent(f *fid) (*handle, string, error) {
	cut := strings.LastIndexByte(f.where, '/')
	if cut < 0 {
		return nil, "", unix.EBUSY // the root has none
	}
	dir, err := e.directory(f.where[:cut])
	if err != nil {
		return nil, "", err
	}
	name := f.where[cut+1:]
	st, err := f.path.stat()
	if err == nil {
		var there unix.Stat_t
		err = unix.Fstatat(dir.fd, name, &there, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && idOf(&there) != idOf(st) {
			err = unix.ESTALE
		}
	}
	if err != nil {
		dir.release()
		return nil, "", err
	}
	return dir, name, nil
}

// join is the path of a name in the directory of a fid.
func join(where, name string) (string, error) {
	if len(where)+1+len(name) > maxPath {
		return "", unix.ENAMETOOLONG
	}
	return where + "/" + name, nil
}

// checkName refuses what is no name of a file in a directory.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return unix.EINVAL
	case len(name) > unix.NAME_MAX:
		return unix.ENAMETOOLONG
	}
	return nil
}

// checkWrite is asked before each request that would change something.
func (e *export) checkWrite() error {
	if e.readOnly {
		return unix.EROFS
	}
	return nil
}

// qid is the identity of a file for clients.
func (e *export) qid(st *unix.Stat_t) ninep.QID {
	qid := ninep.QID{Type: qidType(st.Mode), Path: e.qidPath(idOf(st))}
	if qid.Type == ninep.TypeRegular {
		// Anything that changes with the contents will do.
		qid.Version = uint32(st.Mtim.Sec) ^ uint32(st.Mtim.Nsec)<<2 ^ uint32(st.Size)<<8
	}
	return qid
}

// qidPath is the inode number in the file system of the folder. Other file systems may be mounted below, with the same
// numbers again: theirs are moved to a place of their own among the 2^64.
func (e *export) qidPath(id fileID) uint64 {
	if id.dev == e.id.dev {
		return id.ino
	}
	x := id.dev + 0x9e3779b97f4a7c15 // the finalizer of SplitMix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return id.ino ^ x ^ x>>31
}

func qidType(mode uint32) ninep.QIDType {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return ninep.TypeDir
	case unix.S_IFLNK:
		return ninep.TypeSymlink
	}
	return ninep.TypeRegular
}

// retry goes on where a signal, of which the Go runtime sends itself some, interrupted a system call.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// A broadcast wakes all who wait for something.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait is closed by the next wake.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
