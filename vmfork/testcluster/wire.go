package testcluster

import (
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

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxDelay bounds what a wire has to keep.
const maxDelay = 10 * time.Second

// A wire is the process that is a link with a delay: it holds two taps, the host's eth0 and the switch's port, and gives
// each what the other has sent, later.
type wire struct {
	cmd   *exec.Cmd
	leash *os.File // the process ends when it is closed
	close sync.Once
}

// wireQueue is how many frames the kernel keeps for a wire that has not been given the processor yet.
const wireQueue = 4096

func (c *Cluster) layWire(h *Host, delay time.Duration) (*wire, error) {
	var taps []*os.File
	defer func() {
		for _, tap := range taps {
			tap.Close()
		}
	}()
	for _, end := range []struct {
		namespace *os.File
		handle    *netlink.Handle
		name      string
	}{{h.namespace, h.handle, "eth0"}, {c.namespace, c.handle, portName(h.Number)}} {
		err := inside(end.namespace, func() error {
			tap, err := openTap(end.name)
			if err == nil {
				taps = append(taps, tap)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		link, err := end.handle.LinkByName(end.name)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", end.name, err)
		}
		if err := end.handle.LinkSetMTU(link, c.options.MTU); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", end.name, err)
		}
		if err := end.handle.LinkSetTxQLen(link, wireQueue); err != nil {
			return nil, fmt.Errorf("make the queue of %s longer: %w", end.name, err)
		}
	}
	input, leash, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer input.Close()
	w := &wire{leash: leash, cmd: &exec.Cmd{
		Path: self, Args: []string{wireName, strconv.FormatInt(int64(delay), 10)}, Env: os.Environ(), Dir: "/",
		Stdin: input, Stderr: os.Stderr, ExtraFiles: taps, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}}
	if err := w.cmd.Start(); err != nil {
		leash.Close()
		return nil, fmt.Errorf("start wire: %w", err)
	}
	return w, nil
}

// Close ends the wire, and its taps with it.
func (w *wire) Close() {
	w.close.Do(func() {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
		w.leash.Close()
	})
}

// openTap makes a tap device in the calling thread's namespace, not persistent, that gives and takes what the kernel
// would give to a network card that does checksums and cuts frames into segments: nothing of that has to be done on the way.
func openTap(name string) (*os.File, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) != nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp) // before Linux 6.2
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// beWire is the process of a wire. Its taps are the first files behind the standard ones.
func beWire(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("there are %d arguments instead of the delay", len(args))
	}
	nanoseconds, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return fmt.Errorf("read delay: %w", err)
	}
	debug.SetGCPercent(-1) // all that it needs is there before the first frame
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
	// maxFrame is the longest that a tap gives: its header, Ethernet's, and an IP packet of many segments.
	maxFrame = 10 + 18 + 65536
	// lineMemory is what one direction can hold: 100 ms at 5 Gbit/s. What does not fit waits in front.
	lineMemory = 64 << 20
	// batch is how many frames are read before it is looked again whether one has to leave.
	batch = 16
)

// A line is one direction of a wire.
type line struct {
	from, to int
	delay    time.Duration
	memory   []byte

	frames      []frame // a ring: in it are those that are on their way
	first, many int
	write       int // where in memory the next frame goes
}

type frame struct {
	due          time.Duration // since begin
	offset, size int
}

var begin = time.Now()

func newLine(from, to int, delay time.Duration) *line {
	// The shortest frame takes 70 bytes here.
	return &line{from: from, to: to, delay: delay, memory: make([]byte, lineMemory), frames: make([]frame, lineMemory/64)}
}

// carry carries frames until a tap is gone.
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
		if l.many > 0 {
			t := unix.NsecToTimespec(int64(max(wait, 0)))
			timeout = &t
		}
		n, err := unix.Ppoll(poll, timeout, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for frames: %w", err)
		case n == 0:
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

// deliver sends what is due, and says when the next frame is.
func (l *line) deliver() (time.Duration, error) {
	for l.many > 0 {
		f := l.frames[l.first]
		if wait := f.due - time.Since(begin); wait > 0 {
			return wait, nil
		}
		// What the kernel does not take (the interface is down) is lost.
		if _, err := unix.Write(l.to, l.memory[f.offset:f.offset+f.size]); errors.Is(err, unix.EBADFD) {
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

// take reads one frame, if there are one and room.
func (l *line) take() (bool, error) {
	if !l.room() {
		return false, nil
	}
	size, err := unix.Read(l.from, l.memory[l.write:l.write+maxFrame])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read frame: %w", err)
	}
	l.frames[(l.first+l.many)%len(l.frames)] = frame{due: time.Since(begin) + l.delay, offset: l.write, size: size}
	l.many++
	l.write += size
	return true, nil
}
