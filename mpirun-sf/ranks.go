package main

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// ranksFolder holds the source of the small agent and, after make build, the program. The folder
// rather than the file is embedded so that a plain go build works: then this program is the agent.
//
//go:embed ranks
var ranksFolder embed.FS

// ranksBuilt is the program in ranksFolder.
const ranksBuilt = "ranks/sf-ranks"

// keptPrograms is how many versions of the agent stay in the cache, as on hosts that it is sent to.
const keptPrograms = 3

// ranksProgram opens the file of the agent that runs ranks without clones: the small one, from the user's cache, where it
// is put when it is missing; or this program, where that cannot be.
func ranksProgram() (*os.File, error) {
	if cache, err := os.UserCacheDir(); err == nil {
		// The same folder as on other hosts, which may see it.
		if f, err := openProgram(ranksFolder, filepath.Join(cache, "mpirun-sf", "bin")); err == nil {
			return f, nil
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	return os.Open(self)
}

// openProgram opens the agent of built in a folder of programs.
func openProgram(built fs.FS, folder string) (*os.File, error) {
	in, err := built.Open(ranksBuilt)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	content, ok := in.(io.ReaderAt)
	if !ok {
		return nil, errors.New("what is embedded cannot be read anywhere")
	}
	name, err := allocator.NameOf(content, info.Size())
	if err != nil {
		return nil, err
	}
	path := filepath.Join(folder, name, "mpirun-sf")
	if f, err := openOwn(path, info.Size()); err == nil {
		return f, nil
	}
	if err := writeProgram(path, in); err != nil {
		return nil, err
	}
	prunePrograms(folder)
	return openOwn(path, info.Size())
}

// openOwn opens a program that nobody but this user, or root, can have written: under sudo, the cache may be another's.
// What is open cannot be changed for another file afterwards.
func openOwn(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	switch err := unix.Fstat(int(f.Fd()), &st); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o022 == 0 && st.Mode&0o100 != 0 && st.Size == size && int(st.Uid) == os.Geteuid():
		return f, nil
	}
	f.Close()
	return nil, fmt.Errorf("%s is not what mpirun-sf has put there", path)
}

// writeProgram writes a program so that nobody sees a part of it.
func writeProgram(path string, content io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new.")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which after a rename is nothing
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// prunePrograms removes all but the newest versions.
func prunePrograms(folder string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return
	}
	began := func(e fs.DirEntry) time.Time {
		if info, err := e.Info(); err == nil {
			return info.ModTime()
		}
		return time.Time{}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return began(b).Compare(began(a)) })
	for _, e := range entries[min(keptPrograms, len(entries)):] {
		os.RemoveAll(filepath.Join(folder, e.Name()))
	}
}
