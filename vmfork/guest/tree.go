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

// A File is a file or symbolic link of this machine that goes into the guest's
// root at the same path.
type File struct {
	Path    string      // absolute; every folder on the way is a real one
	Link    string      // target of a symbolic link; "" for a file
	Mode    fs.FileMode // permission bits
	Size    int64       // bytes
	ModTime time.Time
	Inode   uint64
}

// A tree collects files with the links that lead to them.
type tree map[string]File

// maxLinks is the kernel's limit of symbolic links in one path.
const maxLinks = 40

// add puts the file at path, and each symbolic link that is passed on the way to
// it, into the tree, and returns where the file really lies.
func (t tree) add(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("add %s: not an absolute path", path)
	}
	cur, links := "/", 0
	rest := split(path)
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			cur = filepath.Dir(cur)
			continue
		}
		next := filepath.Join(cur, name)
		info, err := os.Lstat(next)
		if err != nil {
			return "", err
		}
		f := newFile(next, info)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", &fs.PathError{Op: "follow", Path: path, Err: syscall.ELOOP}
			}
			if f.Link, err = os.Readlink(next); err != nil {
				return "", err
			}
			t[next] = f
			if filepath.IsAbs(f.Link) {
				cur = "/"
			}
			rest = append(split(f.Link), rest...)
		case info.IsDir():
			cur = next
		case info.Mode().IsRegular() && len(rest) == 0:
			t[next] = f
			return next, nil
		default:
			return "", &fs.PathError{Op: "add", Path: next, Err: errors.New("not a regular file")}
		}
	}
	return "", &fs.PathError{Op: "add", Path: path, Err: syscall.EISDIR}
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
	f := File{Path: path, Mode: info.Mode().Perm(), Size: info.Size(), ModTime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.Inode = st.Ino
	}
	return f
}

// split returns a path's elements without empty ones and dots.
func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
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
