package share

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

func TestReadAndWrite(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	f := c.create("out.3", ninep.OpenReadWrite)
	c.write(f, 0, "hello, world")
	c.write(f, 7, "there")
	check(t, s.path("out.3"), "hello, there")
	if got := c.read1(f, 7, 100); got != "there" {
		t.Errorf("read %q", got)
	}
	if got := c.read1(f, 100, 100); got != "" {
		t.Errorf("after the end, read %q", got)
	}
	must[*ninep.Rfsync](c, &ninep.Tfsync{FID: f})
	must[*ninep.Rfsync](c, &ninep.Tfsync{FID: f, DataOnly: 1})
	c.fails(unix.EINVAL, &ninep.Tread{FID: f, Offset: 1 << 63, Count: 1})
	c.fails(unix.EINVAL, &ninep.Twrite{FID: f, Offset: 1 << 63})

	reader := c.open(ninep.OpenReadOnly, "out.3")
	c.fails(unix.EBADF, &ninep.Twrite{FID: reader, Data: []byte("x")})
	writer := c.open(ninep.OpenWriteOnly, "out.3")
	c.fails(unix.EBADF, &ninep.Tread{FID: writer, Count: 1})
	c.open(ninep.OpenWriteOnly|ninep.OpenTruncate, "out.3")
	check(t, s.path("out.3"), "")
	c.fails(unix.EINVAL, &ninep.Tlopen{FID: c.walk(root, "out.3"), Flags: 3})
	c.fails(unix.ENOTDIR, &ninep.Tlopen{FID: c.walk(root, "out.3"), Flags: ninep.OpenDirectory})
}

func TestCreate(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	c.write(c.create("f", ninep.OpenWriteOnly), 0, "old")
	if got := c.read1(c.create("f", ninep.OpenReadOnly), 0, 10); got != "old" {
		t.Errorf("a file that is there: %q", got)
	}
	c.fails(unix.EEXIST, &ninep.Tlcreate{FID: c.walk(root), Name: "f", Flags: ninep.OpenExclusive | ninep.OpenReadWrite})
	c.create("f", ninep.OpenReadWrite|ninep.OpenTruncate)
	check(t, s.path("f"), "")

	// The mode is for the others, not for the one who makes the file.
	f := c.walk(root)
	must[*ninep.Rlcreate](c, &ninep.Tlcreate{FID: f, Name: "ro", Flags: ninep.OpenReadWrite, Mode: 0o444})
	c.write(f, 0, "once")
	check(t, s.path("ro"), "once")
	if got := c.stat(f).Mode; got != unix.S_IFREG|0o444 {
		t.Errorf("mode %o", got)
	}
}

func TestAppendersDoNotOverwrite(t *testing.T) {
	s := newService(t, false)
	a, b := s.dial(), s.dial()
	f := a.create("log", ninep.OpenWriteOnly|ninep.OpenAppend)
	g := b.open(ninep.OpenWriteOnly|ninep.OpenAppend, "log")
	// Each believes that the file ends where it last wrote.
	a.write(f, 0, "one ")
	b.write(g, 0, "two ")
	a.write(f, 4, "three")
	check(t, s.path("log"), "one two three")
}

func TestBigFile(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	want := make([]byte, 10<<20+123)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	const most = MaxMessage - ninep.DataOverhead
	f := c.create("big", ninep.OpenReadWrite)
	for at := 0; at < len(want); at += most {
		c.write(f, at, string(want[at:min(at+most, len(want))]))
	}
	check(t, s.path("big"), string(want))
	var got []byte
	for {
		part := c.read1(f, len(got), 1<<31)
		if len(part) > most {
			t.Fatalf("%d bytes in a message of %d", len(part), MaxMessage)
		}
		if part == "" {
			break
		}
		got = append(got, part...)
	}
	if !bytes.Equal(got, want) {
		t.Error("read something else than was written")
	}
	if size := c.stat(f).Size; size != uint64(len(want)) {
		t.Errorf("size %d", size)
	}
	// Far out, there is room too.
	c.write(f, 1<<40, "end")
	if size := c.stat(f).Size; size != 1<<40+3 {
		t.Errorf("size %d", size)
	}
}

func TestUnlinkedWhileOpen(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	f := c.create("f", ninep.OpenReadWrite)
	path := c.walk(root, "f")
	c.write(f, 0, "text")
	must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: root, Name: "f"})
	c.write(f, 4, " more")
	if got := c.read1(f, 0, 100); got != "text more" {
		t.Errorf("read %q", got)
	}
	must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: f, Valid: ninep.SetSize | ninep.SetMode, Size: 4, Mode: 0o600})
	if got := c.stat(f); got.Size != 4 || got.NLink != 0 || got.Mode != unix.S_IFREG|0o600 {
		t.Errorf("stat %+v", got)
	}
	// It can even be opened again, by one who came before it was unlinked.
	must[*ninep.Rlopen](c, &ninep.Tlopen{FID: path, Flags: ninep.OpenReadOnly})
	if got := c.read1(path, 0, 100); got != "text" {
		t.Errorf("opened again, read %q", got)
	}
}

func TestReaddir(t *testing.T) {
	s := newService(t, false)
	want := map[string]ninep.QIDType{".": ninep.TypeDir, "..": ninep.TypeDir, "dir": ninep.TypeDir, "link": ninep.TypeSymlink}
	if err := os.Mkdir(s.path("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("dir", s.path("link")); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		name := fmt.Sprintf("%0*d", 1+i%200, i)
		if _, there := want[name]; !there {
			write(t, s.path(name), "")
			want[name] = ninep.TypeRegular
		}
	}
	c := s.dial()
	qids := make(map[string]ninep.QID)
	for _, count := range []uint32{400, 4096, 1 << 20} {
		f := c.open(ninep.OpenReadOnly|ninep.OpenDirectory, []string{}...)
		for pass := range 2 { // from 0 again: rewinddir
			got := make(map[string]bool)
			var offset uint64
			for {
				data := must[*ninep.Rreaddir](c, &ninep.Treaddir{FID: f, Offset: offset, Count: count}).Data
				if len(data) == 0 {
					break
				}
				if len(data) > int(count) {
					t.Fatalf("%d bytes, asked for %d", len(data), count)
				}
				entries, err := ninep.ParseDirents(data)
				if err != nil {
					t.Fatal(err)
				}
				for i, entry := range entries {
					kind, there := want[entry.Name]
					if !there || got[entry.Name] || kind != entry.QID.Type {
						t.Errorf("count %d: entry %+v", count, entry)
					}
					got[entry.Name] = true
					qids[entry.Name] = entry.QID
					offset = entry.Offset
					if pass == 1 && i == len(entries)/2 {
						break // the client had no room for the rest, and asks for it again
					}
				}
			}
			if len(got) != len(want) {
				t.Errorf("count %d: %d entries, want %d", count, len(got), len(want))
			}
		}
		c.clunk(f)
	}
	c.fails(unix.EINVAL, &ninep.Treaddir{FID: c.open(ninep.OpenReadOnly), Count: 10})
	c.fails(unix.ENOTDIR, &ninep.Treaddir{FID: c.open(ninep.OpenReadOnly, "002"), Count: 1000})
	for _, name := range []string{"dir", "link", "002"} {
		if got := c.stat(c.walk(root, name)).QID; got.Path != qids[name].Path {
			t.Errorf("%s is %v, and listed as %v", name, got, qids[name])
		}
	}
	if got := c.stat(root).QID.Path; qids[".."].Path != got || qids["."].Path != got {
		t.Errorf("the root is %d, and lists . as %v and .. as %v", got, qids["."], qids[".."])
	}
}

func TestGetattr(t *testing.T) {
	s := newService(t, false)
	write(t, s.path("f"), "12345")
	when := time.Unix(1234567890, 987654321)
	if err := os.Chtimes(s.path("f"), when, when); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(s.path("f"), s.path("hard")); err != nil {
		t.Fatal(err)
	}
	c := s.dial()
	f := c.walk(root, "f")
	got := c.stat(f)
	at := ninep.Time{Sec: 1234567890, Nsec: 987654321}
	if got.Mode != unix.S_IFREG|0o644 || got.Size != 5 || got.NLink != 2 || got.Mtime != at || got.Atime != at ||
		got.UID != uint32(os.Getuid()) || got.GID != uint32(os.Getgid()) || got.Valid&ninep.GetattrBasic != ninep.GetattrBasic {
		t.Errorf("%+v", got)
	}
	if hard := c.stat(c.walk(root, "hard")); hard.QID != got.QID {
		t.Errorf("two links: %v and %v", got.QID, hard.QID)
	}
	c.write(c.open(ninep.OpenWriteOnly, "f"), 0, "changed")
	if after := c.stat(f).QID; after.Path != got.QID.Path || after.Version == got.QID.Version {
		t.Errorf("before a write %v, after it %v", got.QID, after)
	}
	fs := must[*ninep.Rstatfs](c, &ninep.Tstatfs{FID: f})
	if fs.NameLength != 255 || fs.BlockSize == 0 || fs.Blocks < fs.Free {
		t.Errorf("%+v", fs)
	}
}

func TestQIDsOfTwoFileSystemsDiffer(t *testing.T) {
	e := &export{id: fileID{dev: 1, ino: 2}}
	if got := e.qidPath(fileID{1, 77}); got != 77 {
		t.Errorf("on the folder's file system, inode 77 is %d", got)
	}
	if a, b := e.qidPath(fileID{2, 77}), e.qidPath(fileID{3, 77}); a == 77 || b == 77 || a == b {
		t.Errorf("inode 77 elsewhere is %d and %d", a, b)
	}
}

func TestSetattr(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	f := c.create("f", ninep.OpenReadWrite)
	c.write(f, 0, "0123456789")
	for _, number := range []uint32{f, c.walk(root, "f")} {
		must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: number, Valid: ninep.SetMode, Mode: 0o4750})
		if got := c.stat(f).Mode; got != unix.S_IFREG|0o4750 {
			t.Errorf("mode %o", got)
		}
		must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: number, Valid: ninep.SetSize, Size: 5})
		if got := c.stat(f).Size; got != 5 {
			t.Errorf("size %d", got)
		}
		must[*ninep.Rsetattr](c, &ninep.Tsetattr{
			FID: number, Valid: ninep.SetAtime | ninep.SetAtimeSet | ninep.SetMtime | ninep.SetMtimeSet | ninep.SetCtime,
			Atime: ninep.Time{Sec: 1, Nsec: 2}, Mtime: ninep.Time{Sec: 3, Nsec: 4},
		})
		if got := c.stat(f); got.Atime != (ninep.Time{Sec: 1, Nsec: 2}) || got.Mtime != (ninep.Time{Sec: 3, Nsec: 4}) {
			t.Errorf("times %+v", got)
		}
		now := uint64(time.Now().Unix())
		must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: number, Valid: ninep.SetMtime, Mtime: ninep.Time{Sec: 99}})
		if got := c.stat(f); got.Atime.Sec != 1 || got.Mtime.Sec+5 < now {
			t.Errorf("after mtime = now: %+v", got)
		}
		must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: number, Valid: ninep.SetUID | ninep.SetGID, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())})
		must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: number, Valid: ninep.SetCtime})
		c.fails(unix.EINVAL, &ninep.Tsetattr{FID: number, Valid: ninep.SetMtime | ninep.SetMtimeSet, Mtime: ninep.Time{Nsec: 1e9}})
		c.fails(unix.EFBIG, &ninep.Tsetattr{FID: number, Valid: ninep.SetSize, Size: 1 << 63})
	}
	c.fails(unix.EISDIR, &ninep.Tsetattr{FID: root, Valid: ninep.SetSize})

	// What is set on a link is not set on what it points to.
	if err := os.Symlink("f", s.path("link")); err != nil {
		t.Fatal(err)
	}
	link := c.walk(root, "link")
	before := c.stat(f)
	c.fails(unix.EOPNOTSUPP, &ninep.Tsetattr{FID: link, Valid: ninep.SetMode, Mode: 0o777})
	c.fails(unix.EINVAL, &ninep.Tsetattr{FID: link, Valid: ninep.SetSize})
	must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: link, Valid: ninep.SetMtime | ninep.SetMtimeSet, Mtime: ninep.Time{Sec: 7}})
	must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: link, Valid: ninep.SetGID, GID: uint32(os.Getgid())})
	if after := c.stat(f); *after != *before {
		t.Errorf("%+v became %+v", before, after)
	}
	if got := c.stat(link).Mtime.Sec; got != 7 {
		t.Errorf("the link's time is %d", got)
	}
}

func TestSpecialFilesAreNotOpened(t *testing.T) {
	s := newService(t, false)
	if err := unix.Mkfifo(s.path("fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(s.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", s.path("link")); err != nil {
		t.Fatal(err)
	}
	c := s.dial()
	for name, want := range map[string]error{"fifo": unix.ENXIO, "null": unix.ENXIO, "link": unix.ELOOP} {
		for _, flags := range []uint32{ninep.OpenReadOnly, ninep.OpenWriteOnly, ninep.OpenReadWrite | ninep.OpenTruncate} {
			c.fails(want, &ninep.Tlopen{FID: c.walk(root, name), Flags: flags})
			c.fails(want, &ninep.Tlcreate{FID: c.walk(root), Name: name, Flags: flags})
		}
	}
	must[*ninep.Rmkdir](c, &ninep.Tmkdir{DirFID: root, Name: "d", Mode: 0o755})
	c.fails(unix.EISDIR, &ninep.Tlcreate{FID: c.walk(root), Name: "d", Flags: ninep.OpenReadWrite})
	c.fails(unix.EISDIR, &ninep.Tlopen{FID: c.walk(root, "d"), Flags: ninep.OpenReadWrite})
	c.fails(unix.EISDIR, &ninep.Tread{FID: c.open(ninep.OpenReadOnly, "d"), Count: 1})
}

func TestLocks(t *testing.T) {
	s := newService(t, false)
	a, b := s.dial(), s.dial()
	f := a.create("f", ninep.OpenReadWrite)
	g := b.open(ninep.OpenReadWrite, "f")
	lock := func(c *client, fid uint32, kind uint8, start, length uint64) uint8 {
		t.Helper()
		return must[*ninep.Rlock](c, &ninep.Tlock{FID: fid, Kind: kind, Start: start, Length: length}).Status
	}
	if got := lock(a, f, ninep.LockWrite, 0, 10); got != ninep.LockSuccess {
		t.Fatalf("a free lock: status %d", got)
	}
	if got := lock(b, g, ninep.LockRead, 5, 1); got != ninep.LockBlocked {
		t.Errorf("a taken lock: status %d", got)
	}
	if got := lock(b, g, ninep.LockWrite, 10, 0); got != ninep.LockSuccess {
		t.Errorf("the rest of the file: status %d", got)
	}
	for _, kind := range []uint8{ninep.LockUnlock, ninep.LockWrite, ninep.LockRead} {
		got := must[*ninep.Rgetlock](b, &ninep.Tgetlock{FID: g, Kind: kind, Start: 9, Length: 5})
		if got.Kind != ninep.LockWrite || got.Start != 0 || got.Length != 10 {
			t.Errorf("in the way: %+v", got)
		}
		got = must[*ninep.Rgetlock](a, &ninep.Tgetlock{FID: f, Kind: kind, Start: 0, Length: 10})
		if got.Kind != ninep.LockUnlock {
			t.Errorf("in its own way: %+v", got)
		}
	}

	// Processes of the host are kept out, and keep out.
	host, err := os.OpenFile(s.path("f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	own := &unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, own); err != unix.EAGAIN {
		t.Errorf("the host's lock: %v", err)
	}
	lock(a, f, ninep.LockUnlock, 0, 0)
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, own); err != nil {
		t.Fatal(err)
	}
	_, reply := a.send(&ninep.Tlock{FID: f, Kind: ninep.LockRead, Flags: ninep.LockBlock, Length: 1})
	time.Sleep(10 * time.Millisecond)
	own.Type = unix.F_UNLCK
	if err := unix.FcntlFlock(host.Fd(), unix.F_OFD_SETLK, own); err != nil {
		t.Fatal(err)
	}
	if m, err := await(reply); err != nil || m.(*ninep.Rlock).Status != ninep.LockSuccess {
		t.Errorf("after the host let go: %+v, %v", m, err)
	}

	// A clunk lets go, and what waits gets it.
	_, reply = b.send(&ninep.Tlock{FID: g, Kind: ninep.LockWrite, Flags: ninep.LockBlock})
	a.clunk(f)
	if m, err := await(reply); err != nil || m.(*ninep.Rlock).Status != ninep.LockSuccess {
		t.Errorf("after a clunk: %+v, %v", m, err)
	}

	b.fails(unix.EINVAL, &ninep.Tlock{FID: g, Kind: 3})
	b.fails(unix.EINVAL, &ninep.Tlock{FID: g, Start: 1 << 63})
	b.fails(unix.EINVAL, &ninep.Tgetlock{FID: g, Length: 1<<63 + 1})
	b.fails(unix.EBADF, &ninep.Tlock{FID: root})
	b.fails(unix.EINVAL, &ninep.Tlock{FID: g, Start: 1<<63 - 1, Length: 2})
}
