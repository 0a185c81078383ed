package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dialWait bounds a Dial whose context has no earlier deadline.
const dialWait = 30 * time.Second

// A Mounting is one shared folder as a clone's agent mounts it.
type Mounting struct {
	// Server is the address that the folder's server listens on.
	Server netip.AddrPort `json:"server"`
	Token  Token          `json:"token"`
	// Target is where the folder appears in the clone, a directory that is there.
	Target string `json:"target"`
	// ReadOnly makes the mount itself read-only. A read-only server refuses changes either way.
	ReadOnly bool `json:"read_only"`
	// Survives makes the mount one that goes on in a clone of the machine, after [Reconnect]. Each request takes a little
	// longer then; see the package's comment.
	Survives bool `json:"survives,omitempty"`
}

// Dial connects to a server and shows it the token. 9P begins right after.
func Dial(ctx context.Context, server netip.AddrPort, token Token) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, fmt.Errorf("connect to shared folder: %w", err)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	answer := make([]byte, 1)
	if _, err = conn.Write(token[:]); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	switch {
	case errors.Is(err, io.EOF):
		err = errors.New("the server refused the token")
	case err == nil && answer[0] != welcome:
		err = fmt.Errorf("the server answered %q: it is another one", answer)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("authenticate to shared folder: %w", err)
	}
	return conn.(*net.TCPConn), nil
}

// A connection is the way from a mount to its server.
type connection struct {
	file  *os.File      // the kernel's end
	relay *relayProcess // at the other end, or nil if that is the server
}

func connect(ctx context.Context, m Mounting) (*connection, error) {
	if m.Survives {
		relay, file, err := startRelay(ctx, m)
		return &connection{file, relay}, err
	}
	conn, err := Dial(ctx, m.Server, m.Token)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	file, err := conn.File()
	return &connection{file: file}, err
}

// hangUp breaks a connection. It may be called while others use it.
func (c *connection) hangUp() {
	_ = unix.Shutdown(int(c.file.Fd()), unix.SHUT_RDWR)
	if c.relay != nil {
		c.relay.end()
	}
}

// Mount connects to a server and mounts the folder. It needs the modules 9pnet, 9pnet_fd and 9p. The connection is the
// kernel's then; a copy of its descriptor stays here for Unmount. With Survives it starts a process, which is this
// program with the argument "relay"; it belongs outside of whatever is frozen for a fork.
func Mount(ctx context.Context, m Mounting) error {
	c, err := connect(ctx, m)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	// mount(2) speaks 9P with the server before it returns, and waits for it without end.
	stop := context.AfterFunc(ctx, c.hangUp)
	defer stop()
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID)
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	err = unix.Mount("mpirun-sf", m.Target, "9p", flags, mountOptions(c.file))
	if err == nil {
		mounted.Store(m.Target, c)
		return nil
	}
	c.hangUp()
	c.file.Close()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("mount %s: wait for the server of the folder: %w", m.Target, ctx.Err())
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount %s: this kernel has no 9p: load the modules 9pnet_fd and 9p: %w", m.Target, err)
	}
	return fmt.Errorf("mount %s: %w", m.Target, err)
}

// mounted has the connection (*connection) of each target (string) that this process mounted. Like the kernel's table of
// mounts, there is one of it.
var mounted sync.Map

// Unmount takes a folder that this process mounted out of the tree, at once, in whatever state its connection is. That of
// a clone, for one, ended where the parent was copied, and the kernel would wait a quarter of an hour for it.
// What is still open gives errors from then on.
func Unmount(target string) error {
	if c, ok := mounted.LoadAndDelete(target); ok {
		c.(*connection).hangUp()
		defer c.(*connection).file.Close()
	}
	if err := unix.Unmount(target, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// mountMessage is the message size that clones ask for, in bytes. Larger ones are not faster. The guest's kernel takes a
// piece of memory of this size, in one piece, for a request, which the power of two makes easy.
const mountMessage = 256 << 10

// mountOptions are what serves ranks best, as measured with Linux 6.1:
//
//   - cache=mmap reads and writes through, so that what one clone wrote the next one reads, and only mapped pages are
//     cached. With cache=none, files cannot be mapped shared and writable; with cache=loose, clones do not see
//     each other's changes.
//   - access=user keeps the fids of the guest's users apart. With access=any, a shared writable mapping confuses the
//     kernel: from then on, fstat(2) fails on files that were removed while open.
//   - locktimeout is how long to sleep, in seconds, after the server answered that a lock is taken. It does so only to
//     the last of a thousand that wait, but 30, the kernel's own choice, would be a long time.
func mountOptions(conn *os.File) string {
	return fmt.Sprintf("trans=fd,rfdno=%d,wfdno=%[1]d,version=9p2000.L,msize=%d,cache=mmap,access=user,locktimeout=1",
		conn.Fd(), mountMessage)
}
