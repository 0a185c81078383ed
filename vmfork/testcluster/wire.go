package testcluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxDelay bounds what a wire has to keep.
const maxDelay = 10 * time.Second

// A wire is the process that is a link with a delay. The host's eth0 and the switch's port each have another end in the
// switch's namespace; there it takes what comes out of one, and puts it into the other later. What the kernel would leave to a
// network card, checksums and segments, it leaves so: nothing is added to a frame and nothing taken away.
type wire struct {
	cmd   *exec.Cmd
	leash *os.File // the process ends when it is closed
	close sync.Once
}

// socketMemory is how many bytes the kernel keeps for a wire that has not been given the processor yet.
const socketMemory = 32 << 20

// layWire lays a cable with a delay between two interfaces of the switch's namespace.
func (c *Cluster) layWire(ends [2]netlink.Link, delay time.Duration) (*wire, error) {
	var sockets []*os.File
	defer func() {
		for _, s := range sockets {
			s.Close()
		}
	}()
	for _, end := range ends {
		err := inside(c.namespace, func() error {
			s, err := frameSocket(end.Attrs().Index)
			if err == nil {
				sockets = append(sockets, s)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("open %s for its frames: %w", end.Attrs().Name, err)
		}
	}
	input, leash, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer input.Close()
	w := &wire{leash: leash, cmd: &exec.Cmd{
		Path: self, Args: []string{wireName, strconv.FormatInt(int64(delay), 10)}, Env: os.Environ(), Dir: "/",
		Stdin: input, Stderr: os.Stderr, ExtraFiles: sockets, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}}
	if err := w.cmd.Start(); err != nil {
		leash.Close()
		return nil, fmt.Errorf("start wire: %w", err)
	}
	return w, nil
}

// Close ends the wire.
func (w *wire) Close() {
	w.close.Do(func() {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
		w.leash.Close()
	})
}

// frameSocket is a socket for all frames of an interface of the calling thread's namespace, each with what the kernel
// knows about it: a header as network cards of virtual machines have it, and when it came.
func frameSocket(index int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // nothing comes before it is bound
	if err != nil {
		return nil, err
	}
	for _, option := range []struct{ level, name, value int }{
		{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketMemory},
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketMemory},
	} {
		if err := unix.SetsockoptInt(fd, option.level, option.name, option.value); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set socket option %d: %w", option.name, err)
		}
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: %w", err)
	}
	return os.NewFile(uintptr(fd), "frames"), nil
}

// beWire is the process of a wire. Its sockets are the first files behind the standard ones.
func beWire(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("there are %d arguments instead of the delay", len(args))
	}
	nanoseconds, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return fmt.Errorf("read delay: %w", err)
	}
	debug.SetGCPercent(-1) // all that it needs is there before the first frame
	runtime.GOMAXPROCS(8)  // so that no thread that comes back from the kernel waits for another one
	const host, port = 3, 4
	ended := make(chan error, 3)
	for _, way := range [][2]int{{host, port}, {port, host}} {
		line := newLine(way[0], way[1], time.Duration(nanoseconds))
		go func() {
			runtime.LockOSThread()
			hurry()
			ended <- line.carry()
		}()
	}
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	return <-ended
}

// hurry puts the calling thread before all that are not in a hurry, and lets its timers be exact. Where that is not allowed
// the wire works, but less exactly.
func hurry() {
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
}

const (
	// maxFrame is the longest that there is: its header, Ethernet's, and an IP packet of many segments.
	maxFrame = 10 + 18 + 65536
	// lineMemory is what one direction can hold: 100 ms at 5 Gbit/s. What does not fit waits in front.
	lineMemory = 64 << 20
	// batch is how many frames are taken before it is looked again whether one has to leave.
	batch = 16
	// maxLead bounds how long it is waited without sleeping.
	maxLead = 100 * time.Microsecond
)

// A line is one direction of a wire.
type line struct {
	from, to int
	delay    time.Duration
	memory   []byte

	frames      []frame // a ring: in it are those that are on their way
	first, many int
	write       int // where in memory the next frame goes

	// lead is how much too late the thread is woken, usually, so that it asks to be woken as much earlier.
	lead time.Duration

	message unix.Msghdr
	vector  unix.Iovec
	control [64]byte
}

type frame struct {
	due          time.Duration // since begin
	offset, size int
}

var begin = time.Now()

func newLine(from, to int, delay time.Duration) *line {
	// The shortest frame takes 70 bytes here.
	l := &line{from: from, to: to, delay: delay, memory: make([]byte, lineMemory), frames: make([]frame, lineMemory/64)}
	l.message.Iov, l.message.Iovlen, l.message.Control = &l.vector, 1, &l.control[0]
	return l
}

// carry carries frames until an interface is gone.
func (l *line) carry() error {
	poll := []unix.PollFd{{Fd: int32(l.from)}}
	for {
		wait, err := l.deliver()
		if err != nil {
			return err
		}
		poll[0].Events = 0
		if l.room() {
			poll[0].Events = unix.POLLIN
		}
		var timeout *unix.Timespec
		var alarm time.Duration
		if l.many > 0 {
			sleep := max(wait-l.lead, 0) // and what is left of the wait is spent in deliver
			t := unix.NsecToTimespec(int64(sleep))
			timeout, alarm = &t, time.Since(begin)+sleep
		}
		n, err := unix.Ppoll(poll, timeout, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for frames: %w", err)
		case n == 0:
			l.lead += (min(time.Since(begin)-alarm, maxLead) - l.lead) / 8
			continue
		}
		for range batch {
			if more, err := l.take(); err != nil {
				return err
			} else if !more {
				break
			}
		}
	}
}

// deliver sends what is due, or nearly, and says when the next frame is.
func (l *line) deliver() (time.Duration, error) {
	for l.many > 0 {
		f := l.frames[l.first]
		wait := f.due - time.Since(begin)
		if wait > l.lead {
			return wait, nil
		}
		for wait > 0 {
			wait = f.due - time.Since(begin)
		}
		// What the kernel does not take (the interface is down) is lost.
		if _, err := unix.Write(l.to, l.memory[f.offset:f.offset+f.size]); errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			return 0, fmt.Errorf("send frame: %w", err)
		}
		l.first = (l.first + 1) % len(l.frames)
		l.many--
	}
	return 0, nil
}

// room finds a place for one more frame, the longest.
func (l *line) room() bool {
	if l.many == 0 {
		l.write = 0
		return true
	}
	if l.many == len(l.frames) {
		return false
	}
	oldest := l.frames[l.first].offset
	if l.write > oldest {
		if len(l.memory)-l.write >= maxFrame {
			return true
		}
		if oldest > maxFrame { // not equal: then full would look like empty
			l.write = 0
			return true
		}
		return false
	}
	return oldest-l.write > maxFrame
}

// take takes one frame, if there are one and room. It has been on its way since the kernel had it.
func (l *line) take() (bool, error) {
	if !l.room() {
		return false, nil
	}
	l.vector.Base = &l.memory[l.write]
	l.vector.SetLen(maxFrame)
	l.message.SetControllen(len(l.control))
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(l.from), uintptr(unsafe.Pointer(&l.message)), 0)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR, unix.ENETDOWN: // of an interface that is not up yet
		return false, nil
	default:
		return false, fmt.Errorf("take frame: %w", errno)
	}
	now := time.Now()
	age := now.Sub(l.came(now))
	if age < 0 || age > maxDelay {
		age = 0 // somebody has set the clock
	}
	l.frames[(l.first+l.many)%len(l.frames)] = frame{due: now.Sub(begin) - age + l.delay, offset: l.write, size: int(n)}
	l.many++
	l.write += int(n)
	return true, nil
}

// came is when the kernel had the frame that was just taken, or now if it does not say.
func (l *line) came(now time.Time) time.Time {
	control := l.control[:l.message.Controllen]
	if len(control) < unix.CmsgSpace(int(unsafe.Sizeof(unix.Timespec{}))) {
		return now
	}
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	if header.Level != unix.SOL_SOCKET || header.Type != unix.SO_TIMESTAMPNS {
		return now
	}
	stamp := (*unix.Timespec)(unsafe.Pointer(&control[unix.CmsgLen(0)]))
	return time.Unix(stamp.Unix())
}
