package guest

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A File is a file, symbolic link or folder of this machine that goes into the
// guest's root at the same path.
type File struct {
	Path    string      // absolute; every folder on the way is a real one
	Link    string      // target of a symbolic link; "" for a file or folder
	Dir     bool        // a folder that is wanted as such, empty or not
	Mode    fs.FileMode // permission bits
	Size    int64       // bytes
	ModTime time.Time
	Changed time.Time // of content, mode or name (ctime), which no program can set
	Inode   uint64
}

// A tree collects files with the links that lead to them.
type tree map[string]File

// maxLinks is the kernel's limit of symbolic links in one path.
const maxLinks = 40

// add puts the file at path, and each symbolic link that is passed on the way to
// it, into the tree, and returns where the file really lies.
func (t tree) add(path string) (string, error) {
	real, info, err := t.walk(path)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", &fs.PathError{Op: "add", Path: path, Err: syscall.EISDIR}
	}
	if !info.Mode().IsRegular() {
		return "", &fs.PathError{Op: "add", Path: real, Err: errors.New("not a regular file")}
	}
	t[real] = newFile(real, info)
	return real, nil
}

// walk follows path to what it leads to and puts each symbolic link that is
// passed into the tree, also those of a path that leads nowhere. It returns what
// it found, and where that really lies.
func (t tree) walk(path string) (string, fs.FileInfo, error) {
	if !filepath.IsAbs(path) {
		return "", nil, fmt.Errorf("add %s: not an absolute path", path)
	}
	cur, links := "/", 0
	at, err := os.Lstat(cur)
	if err != nil {
		return "", nil, err
	}
	rest := split(path)
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if !at.IsDir() {
			return "", nil, &fs.PathError{Op: "follow", Path: path, Err: syscall.ENOTDIR}
		}
		next := filepath.Join(cur, name) // of "..", the folder above, as cur has no links
		info, err := os.Lstat(next)
		if err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			cur, at = next, info
			continue
		}
		if links++; links > maxLinks {
			return "", nil, &fs.PathError{Op: "follow", Path: path, Err: syscall.ELOOP}
		}
		f := newFile(next, info)
		if f.Link, err = os.Readlink(next); err != nil {
			return "", nil, err
		}
		t[next] = f
		if filepath.IsAbs(f.Link) {
			cur = "/"
			if at, err = os.Lstat(cur); err != nil {
				return "", nil, err
			}
		}
		rest = append(split(f.Link), rest...)
	}
	return cur, at, nil
}

// addTopLinks adds the links of a merged /usr (/bin → usr/bin): scripts name
// /bin/sh however the machine is laid out.
func (t tree) addTopLinks() {
	for _, p := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		info, err := os.Lstat(p)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		f := newFile(p, info)
		if f.Link, err = os.Readlink(p); err == nil {
			t[p] = f
		}
	}
}

// real is where path lies once the tree's links are followed.
func (t tree) real(path string) string {
	cur := "/"
	rest := split(path)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			cur = filepath.Dir(cur)
			continue
		}
		next := filepath.Join(cur, name)
		link := t[next].Link
		if link == "" || links == maxLinks {
			cur = next
			continue
		}
		links++
		if filepath.IsAbs(link) {
			cur = "/"
		}
		rest = append(split(link), rest...)
	}
	return cur
}

func newFile(path string, info fs.FileInfo) File {
	f := File{Path: path, Dir: info.IsDir(), Mode: info.Mode().Perm(), Size: info.Size(), ModTime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.Inode, f.Changed = st.Ino, time.Unix(st.Ctim.Unix())
	}
	if f.Dir {
		// It counts as a place: what is in it counts by itself.
		f.Size, f.ModTime, f.Changed, f.Inode = 0, time.Time{}, time.Time{}, 0
	}
	return f
}

// split returns a path's elements without empty ones and dots.
func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}

// has tells if there is a file whose name begins with prefix.
func (t tree) has(prefix string) bool {
	for p := range t {
		if strings.HasPrefix(filepath.Base(p), prefix) {
			return true
		}
	}
	return false
}

// bytes is the size of all files together.
func (t tree) bytes() int64 {
	var n int64
	for _, f := range t {
		if f.Link == "" {
			n += f.Size
		}
	}
	return n
}

// files returns the tree in order of path.
func (t tree) files() []File {
	out := make([]File, 0, len(t))
	for _, f := range t {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return out
}
