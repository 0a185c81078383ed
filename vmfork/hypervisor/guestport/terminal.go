package guestport

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Use opens a port that stays open when its machine goes on in another. A virtio port does so by itself: it is the
// file. A terminal is taken away from who has it open when its driver meets another host, and has to be
// opened again. What the host has heard before is not lost by that, nor what it says ([Ready]).
//
// Reads and writes block in the kernel, without Go's poller.
func Use(device string) (io.ReadWriteCloser, error) { return use(device, false) }

// port is a port's end. Deadlines are for one that was opened for them.
type port interface {
	io.ReadWriteCloser
	SetReadDeadline(t time.Time) error
}

// use is Use. With deadlines, Go's poller waits, and reads end by one.
func use(device string, deadlines bool) (port, error) {
	file, err := openFile(device, deadlines)
	if err != nil {
		return nil, err
	}
	// Not by Fd, which has reads block.
	terminal := false
	if raw, err := file.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { terminal = term.IsTerminal(int(fd)) })
	}
	if !terminal {
		return file, nil
	}
	p := &terminalPort{device: device, deadlines: deadlines, now: &attached{file: file}}
	p.unused.L = &p.mu
	return p, nil
}

func openFile(device string, deadlines bool) (*os.File, error) {
	fd, err := open(device)
	if err == nil && deadlines {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// terminalPort is a port that is a terminal. It may be read, written and closed by different goroutines at once.
type terminalPort struct {
	device    string
	deadlines bool

	mu     sync.Mutex // guards now and what it points to
	now    *attached
	unused sync.Cond // some terminal has no users any more
}

// attached is a terminal that a port is, or was.
type attached struct {
	file  *os.File
	users int // reads and writes under way
}

// Read implements io.Reader.
func (p *terminalPort) Read(b []byte) (n int, err error) {
	for len(b) > 0 {
		var at *attached
		if at, n, err = p.try((*os.File).Read, b); n > 0 || !taken(err) {
			return n, err
		}
		if err := p.again(at); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// Write implements io.Writer.
func (p *terminalPort) Write(b []byte) (n int, err error) {
	for {
		at, some, err := p.try((*os.File).Write, b[n:])
		if n += some; !taken(err) {
			return n, err
		}
		if err := p.again(at); err != nil {
			return n, err
		}
	}
}

func (p *terminalPort) try(do func(*os.File, []byte) (int, error), b []byte) (at *attached, n int, err error) {
	p.mu.Lock()
	at = p.now
	at.users++
	p.mu.Unlock()
	n, err = do(at.file, b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if at.users--; at.users == 0 {
		p.unused.Broadcast()
	}
	return at, n, err
}

// taken says whether an error is that of a terminal that was taken away.
func taken(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) }

// again opens the terminal instead of one that was taken away. Who else uses that notices as well, and is waited for: the kernel
// has no new terminal while somebody has the old one open.
func (p *terminalPort) again(old *attached) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.now == old && old.users > 0 {
		p.unused.Wait()
	}
	if p.now != old { // another was here first, and may use the new one already
		return nil
	}
	old.file.Close()
	released()
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		file, err := openFile(p.device, p.deadlines)
		if err == nil {
			p.now = &attached{file: file}
			p.unused.Broadcast()
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %v for a serial port that was taken away: %w", limit, err)
		}
	}
}

// SetReadDeadline ends a read that waits for what comes, but not one that opens the terminal again.
func (p *terminalPort) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now.file.SetReadDeadline(t)
}

// unsent is how many bytes that were written the kernel has not passed on.
func (p *terminalPort) unsent() (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	raw, err := p.now.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	return n, errors.Join(cerr, err)
}

// Close implements io.Closer.
func (p *terminalPort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now.file.Close()
}
