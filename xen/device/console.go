package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/guestport"
)

// Console is a serial port of a guest.
type Console struct {
	*Device
	port  *net.UnixConn // the machine's end of the port's socket
	woken chan struct{} // has room for one: the guest may have read something

	// Of what runs for it, or has stopped it.
	ring consoleRing // nil before the guest has one
	out  []byte      // what the guest has written and the port not taken

	// The guest greets first (package guestport). What comes to the port waits for that.
	greeted bool
	ready   chan struct{} // closed then

	takeMu sync.Mutex
	copied int // bytes at the head of the socket that are in the ring as well
}

// NewConsole gives a domain that is paused a serial port with a number ≥ 1, and moves
// what is written on either side as soon as the guest knows it. The file stays its owner's.
func (b *Bus) NewConsole(ctx context.Context, domain uint16, number int, name string, port *os.File) (*Console, error) {
	conn, err := net.FileConn(port) // a copy
	if err != nil {
		return nil, fmt.Errorf("take port %s: %w", name, err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("take port %s: it is no socket", name)
	}
	d, err := b.Announce(ctx, domain, "console", number,
		map[string]string{"name": name, "type": typePrefix + "port", "limit": "0", "protocol": "vt100", "output": "chardev"}, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Console{Device: d, port: unixConn, woken: make(chan struct{}, 1), ready: make(chan struct{})}
	c.serve(c.takeRing, c.empty, c.fill)
	return c, nil
}

func (c *Console) takeRing(ctx context.Context) (err error) {
	if c.ring, err = c.mapPage(ctx, "ring-ref"); err != nil {
		return err
	}
	return c.bind(ctx, "port")
}

// empty moves what the guest writes to the port until ctx ends.
func (c *Console) empty(ctx context.Context) error {
	for {
		if err := c.move(ctx); err != nil {
			return err
		}
		if err := c.channel.Wait(ctx); err != nil {
			return err
		}
	}
}

// move moves what the guest has written, and takes from the port what it has read.
func (c *Console) move(ctx context.Context) error {
	if err := c.take(); err != nil {
		return err
	}
	before := len(c.out)
	var err error
	if c.out, err = c.ring.output(c.out); err != nil {
		return err
	}
	if len(c.out) > before { // there is room in the ring
		if err := c.channel.Notify(); err != nil {
			return err
		}
	}
	if len(c.out) == 0 {
		return nil
	}
	if !c.greeted {
		if err := c.answer(); err != nil {
			return err
		}
	}
	defer endWith(ctx, c.port.SetWriteDeadline)()
	n, err := c.port.Write(c.out)
	c.out = c.out[n:]
	switch {
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		// Nobody listens any more: that a guest minds as little as one at a serial cable.
		c.out = nil
	case ctx.Err() != nil:
		return fmt.Errorf("write what the guest says to its port: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("write what the guest says to its port: %w", err)
	}
	return nil
}

// answer says back what the guest greets with.
func (c *Console) answer() error {
	greeting, said, greeted := bytes.Cut(c.out, []byte{guestport.Ready})
	if _, err := c.ring.input(greeting); err != nil { // what there is no room for, nobody waits to hear
		return err
	}
	if c.out = said; greeted {
		c.greeted = true
		close(c.ready)
	}
	return c.channel.Notify()
}

// endWith makes what waits on the port end with ctx. The result undoes it.
func endWith(ctx context.Context, setDeadline func(time.Time) error) func() {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { setDeadline(time.Unix(1, 0)); close(expired) })
	return func() {
		if !stop() {
			<-expired
			setDeadline(time.Time{})
		}
	}
}

// take takes from the port what the guest has read, and wakes fill: there is room.
func (c *Console) take() error {
	raw, err := c.port.SyscallConn()
	if err != nil {
		return err
	}
	var taken int
	var failed error
	err = raw.Control(func(fd uintptr) { // not Read, in which fill may be
		c.takeMu.Lock()
		defer c.takeMu.Unlock()
		taken, failed = c.takeRead(int(fd))
	})
	if taken > 0 {
		select {
		case c.woken <- struct{}{}:
		default:
		}
	}
	return errors.Join(err, failed)
}

// takeRead is take, with the lock held.
func (c *Console) takeRead(fd int) (taken int, err error) {
	unread, err := c.ring.unread()
	if err != nil {
		return 0, err
	}
	rest := make([]byte, max(0, c.copied-unread))
	for err == nil && len(rest) > 0 {
		var n int
		if n, _, err = unix.Recvfrom(fd, rest, unix.MSG_DONTWAIT); n > 0 {
			rest, taken = rest[n:], taken+n
		} else if err == nil {
			err = io.ErrUnexpectedEOF
		}
	}
	c.copied -= taken
	if err != nil {
		return taken, fmt.Errorf("take what the guest has read from its port: %w", err)
	}
	return taken, nil
}

// fill copies what comes to the port into the guest's ring until ctx ends, or nothing
// more comes.
func (c *Console) fill(ctx context.Context) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer endWith(ctx, c.port.SetReadDeadline)()
	for {
		full, err := c.copy()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			return nil
		case err != nil:
			return fmt.Errorf("read what is written to the guest's port: %w", err)
		case full:
			select {
			case <-c.woken:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// copy waits for bytes in the port that are not in the ring, and copies what of them
// there is room for. full says that there was room for none.
func (c *Console) copy() (full bool, err error) {
	raw, err := c.port.SyscallConn()
	if err != nil {
		return false, err
	}
	head := make([]byte, 2*inSize)
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		c.takeMu.Lock()
		defer c.takeMu.Unlock()
		// First, for else there could be more of what is copied than is looked at.
		if _, failed = c.takeRead(int(fd)); failed != nil {
			return true
		}
		n, _, err := unix.Recvfrom(int(fd), head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN), err == nil && n > 0 && n <= c.copied:
			return false // called again when there is more
		case err == nil && n == 0:
			err = io.EOF
		}
		if err != nil {
			failed = err
			return true
		}
		put, err := c.ring.input(head[c.copied:n])
		c.copied += put
		full, failed = put == 0, err
		if err == nil && put > 0 {
			failed = c.channel.Notify()
		}
		return true
	})
	return full, errors.Join(err, failed)
}

// Drain moves what a guest that does not run any more has written before, and takes
// from the port what it has read. Until Resume, nothing more is moved.
func (c *Console) Drain(ctx context.Context) error {
	if err := c.Device.Drain(ctx); err != nil || c.channel == nil {
		return err
	}
	return c.move(ctx)
}

// Close ends it, without moving anything more.
func (c *Console) Close(ctx context.Context) error { return c.close(ctx, c.port) }
