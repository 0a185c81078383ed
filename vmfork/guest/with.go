package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A gatherer puts into a root what a user names with --with: programs, files, and
// whole folders, each with what it needs to work.
//
// What is named must be whole: a library that is missing is an error. In a folder
// there is always something that would need what nobody wants, such as the part
// of a Java that draws windows, so there everything is brought that can be found,
// and nothing for the sake of X11 or a GPU.
type gatherer struct {
	l       *linker
	t       tree
	folders []string // that are in whole, by their real paths

	// For what is brought for a command's sake: folders that come over shares, and
	// what is passed over in folders.
	shared []string
	skip   func(folder string) bool
}

// anew are folders over which a guest's agent mounts something of its own.
var anew = []string{"/dev", "/proc", "/run", "/sys", "/tmp"}

// add brings what lies at path, at the same path, with every symbolic link on the
// way, its closure if it is a program or a library, and its interpreter if it is
// a script.
func (g *gatherer) add(path string) error {
	real, info, err := g.t.walk(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no %s on this machine: check its path", path)
	case err != nil:
		return err
	case real == "/":
		return errors.New("it is the whole machine: name the folders that the guest needs")
	case g.anew(real):
		return fmt.Errorf("%s is made anew in each guest: copy what you want of it elsewhere", real)
	case info.IsDir():
		return g.folder(real)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is neither a file nor a folder", real)
	}
	return g.file(real, info, true)
}

// file brings a file and what it needs. named is whether the user named it rather
// than a folder that holds it or a link to it.
func (g *gatherer) file(real string, info fs.FileInfo, named bool) error {
	g.t[real] = newFile(real, info)
	runs := info.Mode().Perm()&0o111 != 0
	// Libraries are not executable everywhere. Nothing else needs to be opened,
	// which in a folder of thousands of files counts.
	if !runs && !strings.Contains(filepath.Base(real), ".so") {
		return nil
	}
	head, err := readHead(real, len(elf.ELFMAG))
	switch {
	case err != nil:
		return err
	case runs && bytes.HasPrefix(head, []byte("#!")):
		return g.interpreters(real, named)
	case !bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return nil
	}
	o, err := readObject(real)
	if err != nil {
		return nil // of another machine, or damaged: a file like any other
	}
	return g.libraries(o, named)
}

func readHead(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, n)
	n, err = io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	return head[:n], nil
}

// libraries brings the closure of a program or library.
func (g *gatherer) libraries(o *object, named bool) error {
	if o.interp != "" && named {
		_, err := g.l.program(g.t, o)
		return err
	}
	set := g.l.set()
	missing := set.resolve(o)
	if named && len(missing) > 0 {
		return errors.New(missing[0] + ": install it, or name its folder in LD_LIBRARY_PATH")
	}
	if !named && slices.ContainsFunc(set.loaded, func(lib *object) bool { return unwanted(filepath.Base(lib.path)) }) {
		return nil
	}
	if o.interp != "" {
		// Should it not be there, the program runs here as little as there.
		g.t.add(o.interp)
	}
	set.plugins(g.t)
	return set.addTo(g.t)
}

// interpreters brings what runs a script. A program that env is to find is looked
// for where the guest's env will.
func (g *gatherer) interpreters(script string, named bool) error {
	names, err := interpreters(script, lookGuest)
	if err == nil {
		for _, name := range names {
			// Only env and the like lead to a second one; a script that interprets
			// itself is caught by being in the tree already.
			real, info, werr := g.t.walk(name)
			if werr != nil {
				err = fmt.Errorf("%s wants to be run by %s, which is not on this machine: install it", script, name)
				break
			}
			if _, in := g.t[real]; in || !info.Mode().IsRegular() {
				continue
			}
			if err = g.file(real, info, named); err != nil {
				break
			}
		}
	}
	if !named {
		return nil
	}
	return err
}

// folder brings everything below a folder. What lies behind a link out of it
// comes along if it can: /usr/lib/jvm keeps its configuration in /etc, for
// instance. Sockets and devices are passed over.
func (g *gatherer) folder(real string) error {
	if within(real, g.folders...) {
		return nil
	}
	g.folders = append(g.folders, real)
	var links []string
	err := filepath.WalkDir(real, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (g.anew(path) || g.skip != nil && g.skip(path)) {
			return fs.SkipDir
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // went away meanwhile
		}
		if err != nil {
			return err
		}
		switch mode := info.Mode(); {
		case mode.IsDir():
			g.t[path] = newFile(path, info)
		case mode&fs.ModeSymlink != 0:
			links = append(links, path)
		case mode.IsRegular():
			return g.file(path, info, false)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, link := range links {
		if err := g.follow(link); err != nil {
			return err
		}
	}
	return nil
}

// follow brings a link of a folder and what it leads to. The link alone is
// brought if that is not there, lies where a guest makes its own, is not for
// everybody to read (behind links there are private keys that nobody named), or
// is a folder so far up that it was hardly meant.
func (g *gatherer) follow(link string) error {
	real, info, err := g.t.walk(link)
	if err != nil || g.anew(real) || info.Mode().Perm()&0o004 == 0 {
		return nil
	}
	if _, in := g.t[real]; in {
		return nil
	}
	switch {
	case info.Mode().IsRegular():
		return g.file(real, info, false)
	case !info.IsDir() || len(split(real)) < 2:
		return nil
	case slices.ContainsFunc(g.folders, func(f string) bool { return within(f, real) }):
		return nil
	}
	return g.folder(real)
}

// anew tells if a guest makes its own of what is at path.
func (g *gatherer) anew(path string) bool { return within(path, anew...) && !within(path, g.shared...) }

// need brings what a command was seen to need (Command.Needs): programs, files and
// folders with all that they need in their turn. Nobody named them, so what is
// broken, or wants a display, stays out. Of what lies in a shared folder, which
// comes over the share, only what it needs elsewhere is brought.
func (g *gatherer) need(path string, shared []string) {
	trial := &gatherer{l: g.l, t: tree{}, folders: g.folders, shared: shared, skip: pythonBallast}
	info, err := os.Stat(path)
	if err != nil || trial.add(path) != nil {
		return
	}
	if !info.IsDir() {
		for p := range trial.t {
			if unwanted(filepath.Base(p)) {
				return
			}
		}
	}
	g.folders = trial.folders
	for p, f := range trial.t {
		if !within(p, shared...) {
			g.t[p] = f
		}
	}
}

// within tells if path is one of the folders or lies below one.
func within(path string, folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool {
		return path == f || strings.HasPrefix(path, strings.TrimSuffix(f, "/")+"/")
	})
}
