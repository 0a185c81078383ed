package share

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

func TestWalk(t *testing.T) {
	s := newService(t, false)
	if err := os.MkdirAll(s.path("a/b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("a/f"), "")
	c := s.dial()
	b := c.walk(root, "a", "b")
	if got, want := c.stat(c.walk(b, "..", "b", "c", "..")).QID, c.stat(b).QID; got != want {
		t.Errorf("around and back: %v, want %v", got, want)
	}
	if _, reply, err := c.tryWalk(root, "a", "f", "x"); err != nil || len(reply.QIDs) != 2 {
		t.Errorf("as far as it goes: %+v, %v", reply, err)
	}
	for _, test := range []struct {
		names []string
		want  error
	}{
		{[]string{"x"}, unix.ENOENT},
		{[]string{""}, unix.EINVAL},
		{[]string{"."}, unix.EINVAL},
		{[]string{"a/b"}, unix.EINVAL},
		{[]string{"/"}, unix.EINVAL},
		{[]string{"a\x00"}, unix.EINVAL},
		{[]string{strings.Repeat("x", 256)}, unix.ENAMETOOLONG},
		{[]string{strings.Repeat("x", 60000)}, unix.ENAMETOOLONG},
	} {
		if _, reply, err := c.tryWalk(root, test.names...); !errors.Is(err, test.want) {
			t.Errorf("walk %.20q: %+v, %v", test.names, reply, err)
		}
	}
	if _, _, err := c.tryWalk(c.walk(root, "a", "f"), "x"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("from a file: %v", err)
	}
	if _, _, err := c.tryWalk(c.walk(root, "a", "f"), ".."); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("up from a file: %v", err)
	}
}

func TestWalkHasAnEnd(t *testing.T) {
	c := newService(t, false).dial()
	at := c.walk(root)
	name := strings.Repeat("d", 200)
	for depth := 0; ; depth++ {
		must[*ninep.Rmkdir](c, &ninep.Tmkdir{DirFID: at, Name: name, Mode: 0o755})
		if _, err := c.call(&ninep.Twalk{FID: at, NewFID: at, Names: []string{name}}); err != nil {
			if !errors.Is(err, unix.ENAMETOOLONG) || depth < 10 {
				t.Errorf("at depth %d: %v", depth, err)
			}
			return
		}
		if depth > 30 {
			t.Fatal("no end")
		}
	}
}

func TestDotDotStaysInside(t *testing.T) {
	s := newService(t, false)
	if err := os.MkdirAll(s.path("a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := s.dial()
	want := c.stat(root).QID
	for _, names := range [][]string{{".."}, {"..", ".."}, {"a", "..", ".."}, {"a", "b", "..", "..", "..", "..", ".."}} {
		if got := c.stat(c.walk(root, names...)).QID; got != want {
			t.Errorf("%v leads to %v, not to the root %v", names, got, want)
		}
	}

	// A directory that is moved out of the folder does not take its fid's parent along.
	b := c.walk(root, "a", "b")
	outside := filepath.Join(filepath.Dir(s.folder), "b")
	if err := os.Rename(s.path("a/b"), outside); err != nil {
		t.Fatal(err)
	}
	if _, reply, err := c.tryWalk(b, ".."); !errors.Is(err, unix.ESTALE) {
		t.Errorf("up from a directory that left: %+v, %v", reply, err)
	}
	if _, reply, err := c.tryWalk(b, "..", "secret"); !errors.Is(err, unix.ESTALE) {
		t.Errorf("beside a directory that left: %+v, %v", reply, err)
	}
	// Nor does one whose former parents were replaced by links.
	if err := os.Mkdir(s.path("a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	b = c.walk(root, "a", "b")
	if err := os.Rename(s.path("a"), s.path("away")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..", s.path("a")); err != nil {
		t.Fatal(err)
	}
	if _, reply, err := c.tryWalk(b, ".."); err == nil {
		t.Errorf("up through a link: %+v", reply)
	}
	c.fails(unix.ENOTDIR, &ninep.Tremove{FID: b})
}

func TestLinksAreNotFollowed(t *testing.T) {
	s := newService(t, false)
	secret := filepath.Join(filepath.Dir(s.folder), "secret")
	links := map[string]string{"absolute": secret, "relative": "../secret", "dir": "/", "up": "..", "self": "."}
	for name, target := range links {
		if err := os.Symlink(target, s.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	c := s.dial()
	for name, target := range links {
		f := c.walk(root, name)
		if got := c.stat(f); got.QID.Type != ninep.TypeSymlink || got.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%s: %+v", name, got)
		}
		if got := must[*ninep.Rreadlink](c, &ninep.Treadlink{FID: f}).Target; got != target {
			t.Errorf("%s points to %q, not %q", name, got, target)
		}
		if _, reply, err := c.tryWalk(root, name, "secret"); err != nil || len(reply.QIDs) != 1 {
			t.Errorf("through %s: %+v, %v", name, reply, err)
		}
		if _, _, err := c.tryWalk(f, ".."); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("up from %s: %v", name, err)
		}
		c.fails(unix.ELOOP, &ninep.Tlopen{FID: f, Flags: ninep.OpenReadWrite})
		c.fails(unix.ELOOP, &ninep.Tlcreate{FID: c.walk(root), Name: name, Flags: ninep.OpenReadWrite | ninep.OpenTruncate})
		c.fails(unix.ENOTDIR, &ninep.Tmkdir{DirFID: f, Name: "new", Mode: 0o755})
		c.fails(unix.ENOTDIR, &ninep.Tunlinkat{DirFID: f, Name: "secret"})
	}
	// A hard link to a link is a link.
	must[*ninep.Rlink](c, &ninep.Tlink{DirFID: root, FID: c.walk(root, "absolute"), Name: "hard"})
	if got := c.stat(c.walk(root, "hard")); got.QID.Type != ninep.TypeSymlink || got.NLink != 2 {
		t.Errorf("%+v", got)
	}
	check(t, secret, "secret")
}

// While a client walks, somebody swaps a directory for a link to the neighbourhood, as fast as can be.
func TestSwappedLinkIsNotFollowed(t *testing.T) {
	s := newService(t, false)
	for _, dir := range []string{"a", "a/b"} {
		if err := os.Mkdir(s.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, s.path("a/b/secret"), "harmless")
	if err := os.Symlink("../..", s.path("a/link")); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, s.path("a/b"), unix.AT_FDCWD, s.path("a/link"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	c := s.dial()
	through := 0
	for range 2000 {
		f, reply, err := c.tryWalk(root, "a", "b", "secret")
		if err != nil || len(reply.QIDs) < 3 {
			continue
		}
		if _, err := c.call(&ninep.Tlopen{FID: f}); err == nil {
			through++
			if got := c.read1(f, 0, 100); got != "harmless" {
				t.Fatalf("read %q", got)
			}
		}
		c.clunk(f)
		must[*ninep.Rwalk](c, &ninep.Twalk{FID: root, NewFID: f, Names: nil})
		_, _ = c.call(&ninep.Tunlinkat{DirFID: f, Name: "nothing"})
		c.clunk(f)
	}
	close(stop)
	<-stopped
	if through == 0 || through == 2000 {
		t.Errorf("%d of 2000 walks got through: the race was not run", through)
	}
	check(t, filepath.Join(filepath.Dir(s.folder), "secret"), "secret")
}

func TestNamesAreChecked(t *testing.T) {
	s := newService(t, false)
	write(t, s.path("f"), "")
	c := s.dial()
	f := c.walk(root, "f")
	for name, want := range map[string]error{
		"": unix.EINVAL, ".": unix.EINVAL, "..": unix.EINVAL, "/": unix.EINVAL, "a/b": unix.EINVAL,
		"../x": unix.EINVAL, "x\x00y": unix.EINVAL, strings.Repeat("x", 256): unix.ENAMETOOLONG,
	} {
		for _, m := range []ninep.Message{
			&ninep.Tlcreate{FID: root, Name: name, Flags: ninep.OpenReadWrite},
			&ninep.Tmkdir{DirFID: root, Name: name},
			&ninep.Tsymlink{DirFID: root, Name: name, Target: "x"},
			&ninep.Tmknod{DirFID: root, Name: name},
			&ninep.Tlink{DirFID: root, FID: f, Name: name},
			&ninep.Trename{FID: f, DirFID: root, Name: name},
			&ninep.Trenameat{OldDirFID: root, OldName: "f", NewDirFID: root, NewName: name},
			&ninep.Trenameat{OldDirFID: root, OldName: name, NewDirFID: root, NewName: "g"},
			&ninep.Tunlinkat{DirFID: root, Name: name},
			&ninep.Tunlinkat{DirFID: root, Name: name, Flags: ninep.UnlinkDir},
		} {
			c.fails(want, m)
		}
	}
	c.fails(unix.EINVAL, &ninep.Tsymlink{DirFID: root, Name: "link", Target: "x\x00y"})
	c.fails(unix.ENAMETOOLONG, &ninep.Tsymlink{DirFID: root, Name: "link", Target: strings.Repeat("x", 5000)})
	c.fails(unix.ENOTDIR, &ninep.Tmkdir{DirFID: f, Name: "d"})
	for _, name := range []string{strings.Repeat("x", 255), "...", " ", "\n", "ü", "\xff"} {
		must[*ninep.Rmkdir](c, &ninep.Tmkdir{DirFID: root, Name: name, Mode: 0o700})
	}
}

func TestTree(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	made := must[*ninep.Rmkdir](c, &ninep.Tmkdir{DirFID: root, Name: "d", Mode: 0o1750})
	d := c.walk(root, "d")
	if got := c.stat(d); got.QID != made.QID || got.Mode != unix.S_IFDIR|0o1750 {
		t.Errorf("mkdir made %v, and it is %+v", made, got)
	}
	c.fails(unix.EEXIST, &ninep.Tmkdir{DirFID: root, Name: "d"})

	link := must[*ninep.Rsymlink](c, &ninep.Tsymlink{DirFID: d, Name: "link", Target: "/any/where"})
	if got := c.stat(c.walk(d, "link")).QID; got != link.QID || got.Type != ninep.TypeSymlink {
		t.Errorf("symlink made %v, and it is %v", link.QID, got)
	}
	for _, mode := range []uint32{unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK} {
		must[*ninep.Rmknod](c, &ninep.Tmknod{DirFID: d, Name: "node", Mode: mode | 0o640})
		if got := c.stat(c.walk(d, "node")).Mode; got != mode|0o640 {
			t.Errorf("mknod made %o, not %o", got, mode|0o640)
		}
		must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: d, Name: "node"})
	}
	for _, mode := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFDIR, unix.S_IFLNK, 0o170000} {
		c.fails(unix.EPERM, &ninep.Tmknod{DirFID: d, Name: "node", Mode: mode | 0o666, Major: 1, Minor: 3})
	}
	c.fails(unix.EINVAL, &ninep.Treadlink{FID: d})

	f := c.create("f", ninep.OpenReadWrite)
	c.write(f, 0, "text")
	must[*ninep.Rlink](c, &ninep.Tlink{DirFID: d, FID: f, Name: "hard"})
	check(t, s.path("d/hard"), "text")
	must[*ninep.Rrenameat](c, &ninep.Trenameat{OldDirFID: root, OldName: "f", NewDirFID: d, NewName: "g"})
	check(t, s.path("d/g"), "text")
	write(t, s.path("h"), "over")
	must[*ninep.Rrenameat](c, &ninep.Trenameat{OldDirFID: root, OldName: "h", NewDirFID: d, NewName: "g"})
	check(t, s.path("d/g"), "over")
	check(t, s.path("d/hard"), "text")

	c.fails(unix.EISDIR, &ninep.Tunlinkat{DirFID: root, Name: "d"})
	c.fails(unix.ENOTEMPTY, &ninep.Tunlinkat{DirFID: root, Name: "d", Flags: ninep.UnlinkDir})
	c.fails(unix.ENOTDIR, &ninep.Tunlinkat{DirFID: d, Name: "g", Flags: ninep.UnlinkDir})
	for _, name := range []string{"g", "hard", "link"} {
		must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: d, Name: name})
	}
	must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: root, Name: "d", Flags: ninep.UnlinkDir})
	if left, err := os.ReadDir(s.folder); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRenameAndRemoveByFID(t *testing.T) {
	s := newService(t, false)
	for _, dir := range []string{"a", "b", "b/empty"} {
		if err := os.Mkdir(s.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, s.path("a/f"), "text")
	c := s.dial()
	f, b := c.walk(root, "a", "f"), c.walk(root, "b")
	must[*ninep.Rrename](c, &ninep.Trename{FID: f, DirFID: b, Name: "g"})
	check(t, s.path("b/g"), "text")
	must[*ninep.Rrename](c, &ninep.Trename{FID: f, DirFID: root, Name: "h"}) // it knows its new name
	check(t, s.path("h"), "text")
	open := c.open(ninep.OpenReadOnly, "h")
	must[*ninep.Rrename](c, &ninep.Trename{FID: open, DirFID: b, Name: "g"})
	check(t, s.path("b/g"), "text")

	c.fails(unix.ENOENT, &ninep.Tremove{FID: f}) // somebody else took its name
	c.fails(unix.EBADF, &ninep.Tclunk{FID: f})   // and the fid went all the same
	write(t, s.path("b/x"), "")
	x := c.walk(b, "x")
	write(t, s.path("b/y"), "another")
	if err := os.Rename(s.path("b/y"), s.path("b/x")); err != nil {
		t.Fatal(err)
	}
	c.fails(unix.ESTALE, &ninep.Tremove{FID: x}) // it is another file now
	check(t, s.path("b/x"), "another")

	must[*ninep.Rremove](c, &ninep.Tremove{FID: c.walk(b, "x")})
	must[*ninep.Rremove](c, &ninep.Tremove{FID: c.walk(b, "empty")})
	c.fails(unix.ENOTEMPTY, &ninep.Tremove{FID: c.walk(root, "b")})
	c.fails(unix.EBUSY, &ninep.Tremove{FID: c.walk(root)})
	c.fails(unix.EBUSY, &ninep.Trename{FID: root, DirFID: b, Name: "root"})
}

func TestReadOnly(t *testing.T) {
	s := newService(t, true)
	if err := os.Mkdir(s.path("d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("f"), "text")
	c := s.dial()
	f := c.open(ninep.OpenReadOnly, "f")
	if got := c.read1(f, 0, 100); got != "text" {
		t.Errorf("read %q", got)
	}
	must[*ninep.Rfsync](c, &ninep.Tfsync{FID: f})
	path := c.walk(root, "f")
	for _, m := range []ninep.Message{
		&ninep.Tlopen{FID: path, Flags: ninep.OpenWriteOnly},
		&ninep.Tlopen{FID: path, Flags: ninep.OpenReadWrite},
		&ninep.Tlopen{FID: path, Flags: ninep.OpenReadOnly | ninep.OpenTruncate},
		&ninep.Tlcreate{FID: root, Name: "new", Flags: ninep.OpenReadWrite},
		&ninep.Tlcreate{FID: root, Name: "f", Flags: ninep.OpenReadOnly},
		&ninep.Twrite{FID: f, Data: []byte("x")},
		&ninep.Tsetattr{FID: path, Valid: ninep.SetMode, Mode: 0o777},
		&ninep.Tsetattr{FID: path, Valid: ninep.SetMtime},
		&ninep.Tmkdir{DirFID: root, Name: "new"},
		&ninep.Tsymlink{DirFID: root, Name: "new", Target: "f"},
		&ninep.Tmknod{DirFID: root, Name: "new"},
		&ninep.Tlink{DirFID: root, FID: path, Name: "new"},
		&ninep.Trename{FID: path, DirFID: root, Name: "new"},
		&ninep.Trenameat{OldDirFID: root, OldName: "f", NewDirFID: root, NewName: "new"},
		&ninep.Tunlinkat{DirFID: root, Name: "f"},
		&ninep.Tunlinkat{DirFID: root, Name: "d", Flags: ninep.UnlinkDir},
		&ninep.Tremove{FID: c.walk(root, "f")},
	} {
		c.fails(unix.EROFS, m)
	}
	check(t, s.path("f"), "text")
	if left, err := os.ReadDir(s.folder); err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}
