package ssh

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// watchdog closes a stream when its time is over or a context ends, for SSH's
// handshake knows neither.
type watchdog struct {
	conn  io.Closer
	done  func() bool // of the context
	mu    sync.Mutex
	timer *time.Timer
	limit time.Duration
	what  string
	cause error
	ended bool
}

func watch(ctx context.Context, conn io.Closer, limit time.Duration, what string) *watchdog {
	w := &watchdog{conn: conn, limit: limit, what: what}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(limit, w.expire)
	w.done = context.AfterFunc(ctx, func() { w.bite(context.Cause(ctx)) })
	return w
}

func (w *watchdog) expire() {
	w.mu.Lock()
	err := fmt.Errorf("waited %v %s: %w", w.limit, w.what, os.ErrDeadlineExceeded)
	w.mu.Unlock()
	w.bite(err)
}

func (w *watchdog) bite(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.ended, w.cause = true, err
		w.conn.Close()
	}
}

// next begins the time for something else.
func (w *watchdog) next(limit time.Duration, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limit, w.what = limit, what
	if !w.ended {
		w.timer.Reset(limit)
	}
}

// pause stops the clock until what it returns is called.
func (w *watchdog) pause() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	return func() { w.next(w.limit, w.what) }
}

// over is why the stream was closed, if it was.
func (w *watchdog) over() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

// stop ends the watch, and says whether it came in time.
func (w *watchdog) stop() bool {
	w.done()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.ended = true
	return w.cause == nil
}
