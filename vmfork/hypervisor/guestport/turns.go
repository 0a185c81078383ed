package guestport

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Shared is a port that one user has after another. It stays open as long as the guest lives.
type Shared struct {
	port port
	turn *Turn // the last that began
}

// Share opens a port as [Use] does.
func Share(device string) (*Shared, error) {
	p, err := use(device, true)
	if err != nil {
		return nil, err
	}
	return &Shared{port: p}, nil
}

// Begin ends the turn before, and begins the next.
func (s *Shared) Begin() *Turn {
	if s.turn != nil {
		s.turn.Close()
	}
	s.turn = &Turn{port: s.port}
	return s.turn
}

// Turn is a user's time with a port. One may read it, several may write it and one may close it at once.
type Turn struct {
	port    port
	reading sync.Mutex // held by who reads

	mu      sync.Mutex    // guards all below
	read    uint64        // bytes that were read
	writers int           // writes under way
	held    chan struct{} // closed when writes go on; nil while they do
	over    bool
}

// Read implements io.Reader. It fails with os.ErrClosed when the turn is over.
func (t *Turn) Read(b []byte) (int, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	for {
		t.mu.Lock()
		over := t.over
		t.mu.Unlock()
		if over {
			return 0, os.ErrClosed
		}
		n, err := t.port.Read(b)
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) { // by Close
			continue
		}
		t.mu.Lock()
		t.read += uint64(n)
		t.mu.Unlock()
		return n, err
	}
}

// Write implements io.Writer. It waits while the turn is held, and fails with os.ErrClosed when it is over.
func (t *Turn) Write(b []byte) (int, error) {
	t.mu.Lock()
	for t.held != nil && !t.over {
		held := t.held
		t.mu.Unlock()
		<-held
		t.mu.Lock()
	}
	if t.over {
		t.mu.Unlock()
		return 0, os.ErrClosed
	}
	t.writers++
	t.mu.Unlock()
	n, err := t.port.Write(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writers--
	return n, err
}

// Hold keeps the turn from writing, until [Turn.Release], and waits until nothing is on its way: what was
// written has been passed to the hypervisor, and of what the host has sent in this turn, which is so many bytes,
// all has been read. A machine that goes on in another loses what a terminal of the old one has.
//
// With an error, which names what it waited for until the limit, nothing is held.
func (t *Turn) Hold(sent uint64, limit time.Duration) error {
	t.mu.Lock()
	if t.held == nil {
		t.held = make(chan struct{})
	}
	t.mu.Unlock()
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		waits, err := t.onItsWay(sent)
		if err == nil && waits == "" {
			return nil
		}
		if err == nil && time.Now().After(end) {
			err = fmt.Errorf("waited %v for %s", limit, waits)
		}
		if err != nil {
			t.Release()
			return fmt.Errorf("have the port stand still: %w", err)
		}
	}
}

// onItsWay says what is, "" for nothing.
func (t *Turn) onItsWay(sent uint64) (what string, err error) {
	t.mu.Lock()
	read, writers := t.read, t.writers
	t.mu.Unlock()
	switch {
	case read < sent:
		return fmt.Sprintf("%d of %d bytes that the host has sent", sent-read, sent), nil
	case writers > 0:
		return "the host to read what is being written", nil
	}
	if p, ok := t.port.(*terminalPort); ok {
		n, err := p.unsent()
		if n > 0 {
			what = fmt.Sprintf("the host to read %d bytes more", n)
		}
		return what, err
	}
	return "", nil
}

// Release lets writes go on.
func (t *Turn) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held != nil {
		close(t.held)
		t.held = nil
	}
}

// Close ends the turn: a read that waits, and writes that are held. The port stays open.
func (t *Turn) Close() error {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.Release()
	err := t.port.SetReadDeadline(time.Unix(1, 0))
	t.reading.Lock() // the next turn has its own reader
	defer t.reading.Unlock()
	return errors.Join(err, t.port.SetReadDeadline(time.Time{}))
}
