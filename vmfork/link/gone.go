package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// ErrKey is what [Dial]'s error is, by errors.Is, if one of the ends has not the key that the other expects.
var ErrKey = errors.New("not the key that was expected")

// DialError is that a daemon was not reached at an address.
type DialError struct {
	Host, Address string
	Err           error
}

func (e *DialError) Error() string {
	return fmt.Sprintf("connect to host %s at %s: %v", e.Host, e.Address, e.Err)
}

// Unwrap is why.
func (e *DialError) Unwrap() error { return e.Err }

// What [Link.Err] is, by errors.Is.
var (
	// ErrSilent: nothing came from the peer any more, so its host is down or cut off, or stands still.
	ErrSilent = errors.New("no answer")
	// ErrEnded: the peer's kernel closed the connection, so its daemon has ended without closing the link.
	ErrEnded = errors.New("daemon ended")
	// ErrClosed: one of the ends called Close.
	ErrClosed = net.ErrClosed
)

// gone says how a link ended, or why it was never made.
type gone struct {
	text string
	why  error
}

func (g *gone) Error() string { return g.text }
func (g *gone) Unwrap() error { return g.why }

func silent(host string, d time.Duration) error {
	return &gone{fmt.Sprintf("host %s has not answered for %v", host, d), ErrSilent}
}

func closedThere(host string) error {
	return &gone{fmt.Sprintf("host %s closed the connection", host), ErrClosed}
}

func closedHere(host string) error {
	return &gone{fmt.Sprintf("the link to host %s was closed here", host), ErrClosed}
}

// explain puts the end of a link's connection into words.
func explain(err error, host string, silence time.Duration) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &gone{fmt.Sprintf("the daemon on host %s ended", host), ErrEnded}
	case errors.Is(err, unix.ETIMEDOUT):
		return silent(host, silence)
	}
	return fmt.Errorf("the connection to host %s failed: %w", host, err)
}
