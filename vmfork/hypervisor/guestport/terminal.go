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
// opened again. What the host has heard before is not lost by that, nor what it says when it has heard the guest again; before,
// what it says may come while the terminal is not yet one that lets bytes pass as they are.
//
// Reads and writes block in the kernel, without Go's poller.
func Use(device string) (io.ReadWriteCloser, error) {
	file, err := open(device)
	if err != nil || !term.IsTerminal(int(file.Fd())) {
		return file, err
	}
	return &terminalPort{device: device, file: file}, nil
}

func open(device string) (*os.File, error) {
	fd, err := Open(device)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// terminalPort is a port that is a terminal. It may be read, written and closed by different goroutines at once.
type terminalPort struct {
	device string

	mu   sync.RWMutex // held for reading while file is used: the kernel has no new terminal while somebody has the old one open
	file *os.File
}

// Read implements io.Reader.
func (p *terminalPort) Read(b []byte) (n int, err error) {
	for len(b) > 0 {
		var file *os.File
		if file, n, err = p.use((*os.File).Read, b); n > 0 || !taken(err) {
			return n, err
		}
		if err := p.again(file); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// Write implements io.Writer.
func (p *terminalPort) Write(b []byte) (n int, err error) {
	for {
		file, some, err := p.use((*os.File).Write, b[n:])
		if n += some; !taken(err) {
			return n, err
		}
		if err := p.again(file); err != nil {
			return n, err
		}
	}
}

func (p *terminalPort) use(do func(*os.File, []byte) (int, error), b []byte) (file *os.File, n int, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	n, err = do(p.file, b)
	return p.file, n, err
}

// taken says whether an error is that of a terminal that was taken away.
func taken(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) }

// again opens the terminal instead of one that was taken away. Who else uses that has noticed as well.
func (p *terminalPort) again(old *os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != old { // another was here first
		return nil
	}
	old.Close()
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		file, err := open(p.device)
		if err == nil {
			p.file = file
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %v for a serial port that was taken away: %w", limit, err)
		}
	}
}

// Close implements io.Closer.
func (p *terminalPort) Close() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.file.Close()
}
