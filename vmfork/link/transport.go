package link

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// transport is a link's own connection. It knows whether anything came lately, and remembers what broke it.
type transport struct {
	tls   *tls.Conn
	heard atomic.Bool // something came since somebody looked

	readOver chan struct{} // closed when a read has failed
	once     sync.Once
	readErr  error // of the first read that failed; once readOver is closed
	writeErr atomic.Pointer[error]
}

func newTransport(c *tls.Conn) *transport { return &transport{tls: c, readOver: make(chan struct{})} }

func (t *transport) Read(p []byte) (int, error) {
	n, err := t.tls.Read(p)
	if n > 0 {
		t.heard.Store(true)
	}
	if err != nil {
		t.once.Do(func() {
			t.readErr = err
			close(t.readOver)
		})
	}
	return n, err
}

// Write fails only some time after what is written can no longer be read: a connection whose other end is gone refuses what is
// written to it, and only a read tells how it went. There may be a farewell to be read.
func (t *transport) Write(p []byte) (int, error) {
	n, err := t.tls.Write(p)
	if err != nil {
		select {
		case <-t.readOver:
		case <-time.After(time.Second):
		}
		t.writeErr.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (t *transport) Close() error { return t.tls.Close() }

// broken is what ended the connection.
func (t *transport) broken() error {
	select {
	case <-t.readOver:
		return t.readErr
	default:
	}
	if err := t.writeErr.Load(); err != nil {
		return *err
	}
	return nil
}

// prepare sets up a link's TCP connection. The kernel gives up on it at the time when the link would: data that nobody
// acknowledges is kept no longer.
func prepare(c *net.TCPConn, silence time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failed
}

// keepAlive has the kernel look whether the other end of a quiet connection is there. It sets no limit for data that the
// other end acknowledges but has no room for: who reads slowly may.
func keepAlive(silence time.Duration) net.KeepAliveConfig {
	probe := max(silence/8, time.Second).Round(time.Second)
	return net.KeepAliveConfig{Enable: true, Idle: max(silence/2, time.Second).Round(time.Second), Interval: probe, Count: 4}
}
