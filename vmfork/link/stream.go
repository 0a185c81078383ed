package link

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// stream is one of a link's. Of yamux's it differs in three things: its end is never taken for the end of what the peer
// wrote when it is the link that ended; Close ends reading, too; and CloseWrite is what yamux calls Close.
type stream struct {
	*yamux.Stream
	link *Link

	reading sync.Mutex // held by who reads
	closed  atomic.Bool
}

func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.Stream.Read(p)
	switch {
	case err == nil:
	case s.closed.Load():
		err = net.ErrClosed
	case errors.Is(err, yamux.ErrTimeout):
		err = os.ErrDeadlineExceeded
	default:
		err = s.link.reason(err)
	}
	return n, err
}

func (s *stream) Write(p []byte) (int, error) {
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := s.Stream.Write(p)
	switch {
	case err == nil:
	case s.closed.Load() || errors.Is(err, yamux.ErrStreamClosed):
		err = s.link.reason(net.ErrClosed)
	case errors.Is(err, yamux.ErrTimeout):
		err = os.ErrDeadlineExceeded
	default:
		err = s.link.reason(err)
	}
	return n, err
}

// CloseWrite says that nothing more will be written. What the peer writes can be read on.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends the stream. What the peer still writes is dropped; it learns of the end by reading.
func (s *stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.Stream.SetWriteDeadline(time.Unix(1, 0))
	s.Stream.SetReadDeadline(time.Unix(1, 0))
	// Saying so to the peer waits for room in the connection, and the caller need not.
	go func() {
		s.Stream.Close()
		s.reading.Lock() // until who reads has gone; whoever comes later finds it closed, and must not wait for the peer
		s.Stream.SetReadDeadline(time.Time{})
		s.reading.Unlock()
		io.Copy(io.Discard, s.Stream)
	}()
	return nil
}
