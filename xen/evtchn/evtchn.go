// Package evtchn is this domain's end of event channels, through
// /dev/xen/evtchn: one bit each, by which two domains wake each other.
//
// An event that has been read is masked until it is unmasked by a write, so that
// a domain that floods another with events wakes it once. [Channel.Wait] does both:
// who has been woken looks at the shared memory, and then waits again.
//
// Locking: one goroutine waits on a Channel; anyone may call Notify and Close.
package evtchn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Device is where event channels are had.
const Device = "/dev/xen/evtchn"

const (
	ioctlBindInterdomain = 8<<16 | 'E'<<8 | 1
	ioctlNotify          = 4<<16 | 'E'<<8 | 4
)

// Channel is one event channel.
type Channel struct {
	device io.ReadWriteCloser
	notify func() error
	expire func(time.Time) error // a deadline for Wait
}

// Bind makes the other end of a channel that a domain has offered to this one under
// the number port. It is this process's until Close.
func Bind(domain uint16, port uint32) (*Channel, error) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, hypervisor.Lacksf("there are no event channels here (%v); load the module xen-evtchn", err)
	}
	if err != nil {
		return nil, err
	}
	arg := [2]uint32{uint32(domain), port}
	local, err := ioctl(f, ioctlBindInterdomain, unsafe.Pointer(&arg))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("bind event channel %d of domain %d: %w", port, domain, err)
	}
	number := uint32(local)
	return &Channel{
		device: f, expire: f.SetReadDeadline,
		notify: func() error {
			_, err := ioctl(f, ioctlNotify, unsafe.Pointer(&number))
			return err
		},
	}, nil
}

// ioctl leaves the file as it is, not blocking, so that a Wait can be ended.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) (r uintptr, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) { r, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)) })
	if err == nil && errno != 0 {
		err = errno
	}
	return r, err
}

// Wait waits for an event, and unmasks the channel. There may have been more than
// one.
func (c *Channel) Wait(ctx context.Context) error {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { c.expire(time.Unix(1, 0)); close(expired) })
	defer func() {
		if !stop() {
			<-expired
			c.expire(time.Time{})
		}
	}()
	var number [4]byte
	if _, err := io.ReadFull(c.device, number[:]); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("wait for an event: %w", err)
	}
	if _, err := c.device.Write(number[:]); err != nil {
		return fmt.Errorf("unmask event channel %d: %w", binary.NativeEndian.Uint32(number[:]), err)
	}
	return nil
}

// Notify wakes the other end.
func (c *Channel) Notify() error {
	if err := c.notify(); err != nil {
		return fmt.Errorf("notify a domain: %w", err)
	}
	return nil
}

// Close gives the channel up, and ends a Wait.
func (c *Channel) Close() error { return c.device.Close() }

// Pair makes two ends of a channel inside this process, for tests of what uses one.
func Pair() (*Channel, *Channel, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	end := func(fd int) *Channel {
		f := os.NewFile(uintptr(fd), "event channel")
		return &Channel{device: reader{f}, expire: f.SetReadDeadline, notify: func() error {
			conn, err := f.SyscallConn()
			if err != nil {
				return err
			}
			var failed error
			err = conn.Control(func(fd uintptr) { _, failed = unix.Write(int(fd), make([]byte, 4)) })
			if errors.Is(failed, unix.EAGAIN) {
				failed = nil // as many events as that are as good as one more
			}
			return errors.Join(err, failed)
		}}
	}
	return end(fds[0]), end(fds[1]), nil
}

// reader is one whose unmasking needs nothing.
type reader struct{ *os.File }

func (r reader) Write(b []byte) (int, error) { return len(b), nil }
