package agent

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ends are all streams of processes, at the ends that are not the processes'.
var ends = endSet{live: map[*end]struct{}{}}

type endSet struct {
	mu   sync.Mutex // guards live
	live map[*end]struct{}
}

// drainLimit is how long abandon waits for what has come before the fork.
const drainLimit = time.Second

// abandon cuts all streams of processes off from who is at their other ends.
// It is called in a clone before the session that its parent had is closed
// there: the copies of the parent's processes go on undisturbed. What they
// write is read and goes nowhere. What had been sent to them before the fork
// reaches them, and then, unless the end of their input had come as well, it is
// open and silent.
func abandon() {
	ends.mu.Lock()
	defer ends.mu.Unlock()
	var drained sync.WaitGroup
	for e := range ends.live {
		e.abandoned.Store(true)
		if e.input && e.deadline() != nil {
			// It ends a read under way, and those that follow find what has come.
			e.deadline().SetReadDeadline(time.Unix(1, 0))
			drained.Go(func() {
				e.mu.Lock()
				defer e.mu.Unlock()
				e.drain()
			})
		}
	}
	done := make(chan struct{})
	go func() { drained.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainLimit):
		// A read tells the host of the space that it makes, and that waits for a
		// host that does not listen. It ends with the session.
		for e := range ends.live {
			e.late.Store(true)
		}
	}
	clear(ends.live)
}

// errAbandoned ends the copy to a process whose input stays open.
var errAbandoned = errors.New("the stream belongs to the virtual machine that was cloned")

// end is one direction of a process's stream, at the end that is not the
// process's.
type end struct {
	stream          io.ReadWriteCloser
	input           bool // of the process
	abandoned, late atomic.Bool

	mu      sync.Mutex // held while reading; guards all below
	drained bool
	rest    []byte // what has come before the fork
	ended   bool   // and after it the input's end
}

func newEnd(stream io.ReadWriteCloser, input bool) *end {
	e := &end{stream: stream, input: input}
	ends.mu.Lock()
	ends.live[e] = struct{}{}
	ends.mu.Unlock()
	return e
}

// close is the end of copying.
func (e *end) close() {
	ends.mu.Lock()
	delete(ends.live, e)
	ends.mu.Unlock()
	e.stream.Close()
}

// deadline is the stream if a read of it can be ended so that the next one
// finds what has come already. A stream of yamux is like that.
func (e *end) deadline() interface{ SetReadDeadline(time.Time) error } {
	d, _ := e.stream.(interface{ SetReadDeadline(time.Time) error })
	return d
}

// drain takes out of an abandoned stream, whose session is not closed yet,
// what has come. With the deadline over, an end that has come differs from one
// that has not.
func (e *end) drain() {
	if e.drained {
		return
	}
	e.drained = true
	if e.deadline() == nil {
		return
	}
	var err error
	e.rest, err = io.ReadAll(e.stream)
	e.ended = err == nil && !e.late.Load()
}

func (e *end) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.abandoned.Load() {
		n, err := e.stream.Read(p)
		if n > 0 || !e.abandoned.Load() {
			return n, err
		}
	}
	e.drain()
	if n := copy(p, e.rest); n > 0 {
		e.rest = e.rest[n:]
		return n, nil
	}
	if e.ended {
		return 0, io.EOF
	}
	return 0, errAbandoned
}

// feed copies a stream into a process's input, and closes that.
func (e *end) feed(w *os.File) {
	if _, err := io.Copy(w, e); errors.Is(err, errAbandoned) {
		awaitUnread(w)
	}
	w.Close()
	e.close()
}

// carry copies what processes write into a stream until none of them can
// write any more, or the stream's other end is gone: then the next write ends
// its writer, except in a clone.
func (e *end) carry(r *os.File) {
	io.Copy(e.stream, r)
	if e.abandoned.Load() {
		io.Copy(io.Discard, r)
	}
	r.Close()
	e.close()
}

// awaitUnread returns when no process can read the pipe any more.
func awaitUnread(w *os.File) {
	conn, err := w.SyscallConn()
	if err != nil {
		return
	}
	// Called first, and then when the kernel has something to say of the pipe.
	conn.Write(func(fd uintptr) (done bool) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, _ := unix.Poll(fds, 0)
		return n > 0 && fds[0].Revents&unix.POLLERR != 0
	})
}
