package share

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

func TestOpenFilesGoOn(t *testing.T) {
	s := newService(t, false)
	write(t, s.path("read"), "0123456789")
	c, r := s.relayed()
	reader := c.open(ninep.OpenReadOnly, "read")
	appender := c.create("log", ninep.OpenWriteOnly|ninep.OpenAppend|ninep.OpenCreate)
	c.write(appender, 0, "one ")
	cut := c.create("cut", ninep.OpenReadWrite|ninep.OpenCreate|ninep.OpenExclusive|ninep.OpenTruncate)
	c.write(cut, 0, "kept")
	for range 3 { // a clone, and clones of clones
		fork(t, s, r)
	}
	if got := c.read1(reader, 4, 3); got != "456" {
		t.Errorf("read %q", got)
	}
	c.write(appender, 0, "two")
	check(t, s.path("log"), "one two")
	if got := c.read1(cut, 0, 10); got != "kept" {
		t.Errorf("a file that was cut when it was opened holds %q", got)
	}
	c.clunk(cut)
	c.fails(unix.EBADF, &ninep.Tread{FID: cut, Count: 1})
}

func TestDirectoriesGoOn(t *testing.T) {
	s := newService(t, false)
	deep := make([]string, 40)
	for i := range deep {
		deep[i] = fmt.Sprintf("%02d", i)
	}
	if err := os.MkdirAll(s.path(filepath.Join(deep...)), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		write(t, s.path(fmt.Sprintf("00/file%03d", i)), "")
	}
	c, r := s.relayed()
	at := c.walk(root, deep[:16]...)
	at = c.walk(at, deep[16:32]...)
	at = c.walk(at, deep[32:]...)
	up := c.walk(at, "..", "..", deep[38])
	top := c.walk(root, "..", "..", "00")
	list := c.open(ninep.OpenDirectory, "00")
	for i := range 300 {
		c.walk(root, "00", fmt.Sprintf("file%03d", i))
	}
	before := must[*ninep.Rreaddir](c, &ninep.Treaddir{FID: list, Count: 4096})
	entries, err := ninep.ParseDirents(before.Data)
	if err != nil {
		t.Fatal(err)
	}
	half := entries[len(entries)/2].Offset
	rest := must[*ninep.Rreaddir](c, &ninep.Treaddir{FID: list, Offset: half, Count: 1000}).Data
	fork(t, s, r)
	must[*ninep.Rlcreate](c, &ninep.Tlcreate{FID: c.walk(at), Name: "made", Mode: 0o644})
	if _, err := os.Stat(s.path(filepath.Join(append(deep, "made")...))); err != nil {
		t.Error(err)
	}
	c.walk(up, deep[39])
	c.walk(top, "file299")
	if got := must[*ninep.Rreaddir](c, &ninep.Treaddir{FID: list, Offset: half, Count: 1000}).Data; string(got) != string(rest) {
		t.Error("a listing does not go on where it was")
	}
}

// stale is a fid that a clone does not have; to close it works.
func stale(c *client, fid uint32) {
	c.t.Helper()
	c.fails(unix.ESTALE, &ninep.Tgetattr{FID: fid})
	c.fails(unix.ESTALE, &ninep.Tread{FID: fid, Count: 1})
	c.fails(unix.ESTALE, &ninep.Tlink{DirFID: root, FID: fid, Name: "link"})
	c.clunk(fid)
	c.fails(unix.EBADF, &ninep.Tgetattr{FID: fid})
}

func TestRemovedFilesAreStale(t *testing.T) {
	s := newService(t, false)
	for _, name := range []string{"unlinked", "removed", "replaced", "by", "elsewhere", "other"} {
		write(t, s.path(name), name)
	}
	for _, dir := range []string{"dir/in", "gone"} {
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c, r := s.relayed()
	unlinked := c.open(ninep.OpenReadWrite, "unlinked")
	removed := c.open(ninep.OpenReadOnly, "removed")
	replaced := c.open(ninep.OpenReadOnly, "replaced")
	elsewhere := c.open(ninep.OpenReadOnly, "elsewhere")
	other := c.open(ninep.OpenReadOnly, "other")
	by := c.open(ninep.OpenReadOnly, "by")
	gone := c.walk(root, "gone")
	must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: root, Name: "unlinked"})
	must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: root, Name: "gone", Flags: ninep.UnlinkDir})
	must[*ninep.Rremove](c, &ninep.Tremove{FID: c.walk(root, "removed")})
	must[*ninep.Rrenameat](c, &ninep.Trenameat{OldDirFID: root, OldName: "by", NewDirFID: root, NewName: "replaced"})
	// As somebody else would.
	if err := os.Remove(s.path("elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path("other"), s.path("moved")); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("other"), "another")
	// New files with the old names, and perhaps the old inode numbers.
	write(t, s.path("unlinked"), "new")
	write(t, s.path("removed"), "new")
	fork(t, s, r)
	if got := c.read1(by, 0, 10); got != "by" {
		t.Errorf("a renamed file holds %q", got)
	}
	for _, fid := range []uint32{unlinked, removed, replaced, elsewhere, other} {
		fork(t, s, r) // stale is stale in clones of clones
		stale(c, fid)
	}
	c.fails(unix.ESTALE, &ninep.Trenameat{OldDirFID: root, OldName: "by", NewDirFID: gone, NewName: "x"})
	c.fails(unix.ESTALE, &ninep.Tremove{FID: gone})
	c.fails(unix.EBADF, &ninep.Tgetattr{FID: gone})
}

func TestRenamedDirectoriesGoOn(t *testing.T) {
	s := newService(t, false)
	for _, dir := range []string{"a/b/c", "ab", "target"} {
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, s.path("a/b/c/file"), "text")
	write(t, s.path("ab/file"), "near")
	c, r := s.relayed()
	file := c.open(ninep.OpenReadOnly, "a", "b", "c", "file")
	near := c.open(ninep.OpenReadOnly, "ab", "file")
	b := c.walk(root, "a", "b")
	target := c.walk(root, "target")
	must[*ninep.Rrename](c, &ninep.Trename{FID: b, DirFID: root, Name: "b"})
	must[*ninep.Rrenameat](c, &ninep.Trenameat{OldDirFID: root, OldName: "a", NewDirFID: target, NewName: "moved"})
	fork(t, s, r)
	if got := c.read1(file, 0, 10); got != "text" {
		t.Errorf("a file in a renamed directory holds %q", got)
	}
	if got := c.read1(near, 0, 10); got != "near" {
		t.Errorf("a file in a directory with a similar name holds %q", got)
	}
	c.walk(b, "c", "file")
	c.walk(target, "moved")
}

// TestWaitingRequestsGoOn is about a lock, the one request that waits long, and
// about giving it up.
func TestWaitingRequestsGoOn(t *testing.T) {
	s := newService(t, false)
	write(t, s.path("file"), "")
	holder := s.dial()
	held := holder.open(ninep.OpenReadWrite, "file")
	lock := func(kind uint8, fid uint32) *ninep.Tlock {
		return &ninep.Tlock{FID: fid, Kind: kind, Flags: ninep.LockBlock, ProcID: 1, ClientID: "x"}
	}
	must[*ninep.Rlock](holder, lock(ninep.LockWrite, held))
	c, r := s.relayed()
	f := c.open(ninep.OpenReadWrite, "file")
	// The parent waits as well, and both can have it.
	_, waiting := c.send(lock(ninep.LockRead, f))
	fork(t, s, r)
	select {
	case m := <-waiting:
		t.Fatalf("a taken lock was given: %v", m)
	case <-time.After(100 * time.Millisecond):
	}
	holder.clunk(held)
	if m, err := await(waiting); err != nil || m.(*ninep.Rlock).Status != ninep.LockSuccess {
		t.Errorf("%v, %v", m, err)
	}
}

// TestGivenUpRequestsAreNotSentAgain copies a machine between a Tflush and its
// reply, with a server that answers nothing.
func TestGivenUpRequestsAreNotSentAgain(t *testing.T) {
	near, far := sockets(t)
	server, theirs := sockets(t)
	r := begin(t, far, server)
	go func() {
		for _, m := range []ninep.Message{&ninep.Tread{}, &ninep.Tflush{OldTag: 1}, &ninep.Tgetattr{}} {
			tag := map[ninep.Type]uint16{116: 1, 108: 2, 24: 3}[m.Type()]
			_, _ = near.Write(encode(tag, m))
		}
	}()
	for range 3 {
		if _, _, err := readMessage(theirs); err != nil {
			t.Fatal(err)
		}
	}
	server2, theirs2 := sockets(t)
	defer theirs2.Close()
	asked := make(chan ninep.Message, 1)
	go func() {
		_, m, _ := readMessage(theirs2)
		asked <- m
		_, _ = theirs2.Write(encode(3, &ninep.Rlerror{Errno: uint32(unix.EBADF)}))
	}()
	if err := r.reconnect(t.Context(), func(context.Context) (net.Conn, error) { return server2, nil }); err != nil {
		t.Fatal(err)
	}
	_ = near.SetReadDeadline(time.Now().Add(20 * time.Second))
	for _, want := range []uint16{2, 3} {
		if tag, m, err := readMessage(near); err != nil || tag != want {
			t.Fatalf("reply %d, %v, %v; want %d", tag, m, err, want)
		}
	}
	if _, ok := (<-asked).(*ninep.Tgetattr); !ok {
		t.Error("another request than the one that somebody waits for was sent again")
	}
}

// TestRelayProcess is a mount as far as it goes without a kernel's client.
func TestRelayProcess(t *testing.T) {
	s := newService(t, false)
	write(t, s.path("file"), "text")
	m := Mounting{Server: mustAddr(t, s.addr), Token: s.token, Target: t.TempDir(), Survives: true}
	p, kernel, err := startRelay(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	mounted.Store(m.Target, &connection{file: kernel, relay: p})
	defer mounted.Delete(m.Target)
	conn, err := net.FileConn(kernel)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.hello(mountMessage)
	f := c.open(ninep.OpenReadOnly, "file")
	for range 2 {
		if err := Reconnect(t.Context(), m.Target); err != nil {
			t.Fatal(err)
		}
		if got := c.read1(f, 0, 10); got != "text" {
			t.Errorf("read %q", got)
		}
	}
	if err := Reconnect(t.Context(), "/none"); err == nil {
		t.Error("what is not mounted was reconnected")
	}
	p.end() // which its process notices a moment later
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := c.call(&ninep.Tgetattr{FID: root})
		if errors.Is(err, errEnded) {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("after its end the relay answers %v", err)
		}
	}
	if err := Reconnect(t.Context(), m.Target); err == nil {
		t.Error("a relay that has ended was reconnected")
	}
}

func TestRelayProcessDoesNotStartWithoutServer(t *testing.T) {
	s := newService(t, false)
	_, _, err := startRelay(t.Context(), Mounting{Server: mustAddr(t, s.addr), Token: NewToken()})
	if err == nil || !strings.Contains(err.Error(), "refused the token") {
		t.Errorf("%v", err)
	}
}
