package share

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A wire is a stream socket whose reads and writes wait in the kernel and not in
// Go's poller. A relay's two goroutines do little else than to wait, and in a
// guest whose processor is emulated each system call and each wakeup of another
// thread, which the poller has more of, costs as much as a request's own work.
type wire struct {
	file *os.File
	fd   int

	mu     sync.Mutex
	users  int // reads and writes under way, and one more until Close
	closed bool
}

// streamOf takes a connection over.
func streamOf(conn net.Conn) (stream, error) {
	if s, ok := conn.(stream); ok {
		return s, nil
	}
	return newWire(conn)
}

// writePatience is how often a write that waits looks whether it should.
const writePatience = 100 * time.Millisecond

// newWire takes a socket over.
func newWire(conn net.Conn) (*wire, error) {
	defer conn.Close()
	socket, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("a relay needs sockets, and %T is none", conn)
	}
	file, err := socket.File()
	if err != nil {
		return nil, err
	}
	w := &wire{file: file, fd: int(file.Fd()), users: 1}
	patience := unix.NsecToTimeval(int64(writePatience))
	err = unix.SetNonblock(w.fd, false)
	if err == nil {
		err = unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("prepare the relay's sockets: %w", err)
	}
	return w, nil
}

func (w *wire) Read(b []byte) (int, error) {
	if !w.hold() {
		return 0, net.ErrClosed
	}
	defer w.release()
	n, err := retry(func() (int, error) { return unix.Read(w.fd, b) })
	if err != nil {
		return 0, err
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (w *wire) Write(b []byte) (done int, err error) {
	if !w.hold() {
		return 0, net.ErrClosed
	}
	defer w.release()
	for done < len(b) {
		n, err := retry(func() (int, error) { return unix.SendmsgN(w.fd, b[done:], nil, nil, unix.MSG_NOSIGNAL) })
		done += max(n, 0)
		switch {
		case w.isClosed():
			return done, net.ErrClosed
		case err != nil && err != unix.EAGAIN:
			return done, err
		}
	}
	return done, nil
}

func (w *wire) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

func (w *wire) hold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.users++
	}
	return !w.closed
}

func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users--; w.users == 0 {
		w.file.Close()
	}
}

// Close makes reads and writes return.
func (w *wire) Close() error {
	w.end(unix.SHUT_RDWR)
	return nil
}

// abandon is Close for a connection that another machine has too, the one that
// this one is a copy of: not a packet may leave.
func (w *wire) abandon() {
	// Only TCP knows it. A socket in repair goes without telling its peer.
	_ = unix.SetsockoptInt(w.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
	w.end(unix.SHUT_RD) // wakes readers; of this the peer hears nothing
}

func (w *wire) end(how int) {
	w.mu.Lock()
	was := w.closed
	w.closed = true
	w.mu.Unlock()
	if !was {
		_ = unix.Shutdown(w.fd, how)
		w.release()
	}
}
