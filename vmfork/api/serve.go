package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// A Handler answers calls. Requests have passed [Request.Check]. ctx ends when
// the client has closed its connection, or the server ends: the call is to be
// given up then, and its reply is not sent. Connections call concurrently,
// each one call at a time.
type Handler interface {
	Call(ctx context.Context, r Request) Reply
}

// HandlerFunc is a function as a [Handler].
type HandlerFunc func(ctx context.Context, r Request) Reply

// Call calls f.
func (f HandlerFunc) Call(ctx context.Context, r Request) Reply { return f(ctx, r) }

// errHungUp is the cause of a call's context when its client has gone.
var errHungUp = errors.New("the client closed the connection")

var errTooManyCalls = fmt.Errorf("more than %d calls or %d bytes wait for an earlier call; read its reply first", maxAhead, 2*MaxLine)

const (
	maxAhead     = 64               // calls that may wait behind the one at work
	writeTimeout = 60 * time.Second // for a client that does not read its reply
)

// queued is a line that was read ahead. With err it is the connection's last:
// what comes after it cannot be told into lines.
type queued struct {
	line []byte
	err  error
}

// ServeConn answers the calls of one connection, one after another, until the
// client closes it (nil), ctx ends, or nothing more can be made of what the
// client writes. A malformed call is answered with [KindInvalid], and the next
// one is taken up. ServeConn closes conn.
//
// Closing is noticed while a call waits, and ends its context. Half-closing
// counts as closing: a client keeps its side open until it has its reply.
func ServeConn(ctx context.Context, conn net.Conn, h Handler) error {
	live, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	// Whatever ends the connection's life also wakes who reads or writes it.
	stop := context.AfterFunc(live, func() { conn.Close() })
	defer stop()

	ahead := make(chan queued, maxAhead+1)
	readerDone := make(chan struct{})
	go func() {
		defer close(readerDone)
		hangUp(readAhead(conn, ahead))
	}()
	defer func() {
		conn.Close()
		<-readerDone
	}()

	for {
		var next queued
		select {
		case next = <-ahead:
		case <-live.Done():
			return ending(ctx, live)
		}
		reply := answer(live, next, h)
		if live.Err() != nil {
			return ending(ctx, live)
		}
		if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return fmt.Errorf("answer a call: %w", err)
		}
		line, err := reply.Line()
		if err != nil {
			line, err = Fail(KindFailed, "%v", err).Line()
		}
		if err == nil {
			_, err = conn.Write(line)
		}
		switch {
		case err != nil && live.Err() != nil:
			return ending(ctx, live)
		case err != nil:
			return fmt.Errorf("answer a call: %w", err)
		case next.err != nil:
			return next.err
		}
	}
}

// ending is why a connection ended: nil if its client wanted it to.
func ending(ctx, live context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := context.Cause(live); !errors.Is(err, errHungUp) {
		return err
	}
	return nil
}

// answer makes the reply to one line.
func answer(ctx context.Context, next queued, h Handler) Reply {
	if next.err != nil {
		return Fail(KindInvalid, "%v", next.err)
	}
	r, err := ParseRequest(next.line)
	if err == nil {
		err = r.Check()
	}
	if err != nil {
		return FailWith(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return h.Call(ctx, r)
}

// readAhead reads calls until the connection ends, and returns why it did. It
// never waits for the queue: what does not fit in is the end.
func readAhead(conn net.Conn, ahead chan<- queued) error {
	r := bufio.NewReader(conn)
	waiting := 0 // bytes of lines since the queue was last seen empty
	for {
		line, err := readLine(r)
		if len(ahead) == 0 {
			waiting = 0
		}
		waiting += len(line)
		if err == nil && (len(ahead) >= maxAhead || waiting > 2*MaxLine) {
			err = errTooManyCalls
		}
		switch {
		case err == nil:
			ahead <- queued{line: line}
		case errors.Is(err, errLongLine), errors.Is(err, errTooManyCalls):
			ahead <- queued{err: err}
			// Calls before it may still wait, and want to know of the end.
			if _, err := io.Copy(io.Discard, r); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				return fmt.Errorf("read a call: %w", err)
			}
			return errHungUp
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return errHungUp
		default:
			return fmt.Errorf("read a call: %w", err)
		}
	}
}
