package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Watch tells of changes of a path and below it.
type Watch struct {
	c           *Client
	path, token string
	changed     chan struct{} // has room for one
}

// Two paths that are none: they change when a domain comes and when one goes.
const (
	IntroduceDomain = "@introduceDomain"
	ReleaseDomain   = "@releaseDomain"
)

// Watch begins to watch a path. It changes once to begin with.
func (c *Client) Watch(ctx context.Context, path string) (*Watch, error) {
	c.mu.Lock()
	c.last++
	w := &Watch{c: c, path: path, token: fmt.Sprint(c.last), changed: make(chan struct{}, 1)}
	c.watches[w.token] = w
	c.mu.Unlock()
	if _, err := c.request(ctx, "watch", kindWatch, path, w.token, "\x00"); err != nil {
		w.forget()
		return nil, err
	}
	return w, nil
}

// Changed has something in it when the path may have changed since it was last
// taken out. It is never closed: see [Client.Ended].
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Close ends the watch.
func (w *Watch) Close(ctx context.Context) error {
	w.forget()
	_, err := w.c.request(ctx, "stop to watch", kindUnwatch, w.path, w.token, "\x00")
	return err
}

func (w *Watch) forget() {
	w.c.mu.Lock()
	delete(w.c.watches, w.token)
	w.c.mu.Unlock()
}

// Ended is closed when the connection has ended.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Await waits until the value of a path, "" while there is none, is what it
// should be, and returns it. what names what is waited for, for the error.
func (c *Client) Await(ctx context.Context, path, what string, good func(value string) bool) (string, error) {
	w, err := c.Watch(ctx, path)
	if err != nil {
		return "", err
	}
	defer func() {
		over, cancel := context.WithTimeout(context.WithoutCancel(ctx), unwatchLimit)
		defer cancel()
		w.Close(over)
	}()
	for {
		select {
		case <-w.Changed():
		case <-c.Ended():
			return "", fmt.Errorf("wait for %s: %w", what, c.reason())
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
		value, err := c.value(ctx, path)
		if err != nil {
			return "", fmt.Errorf("wait for %s: %w", what, err)
		}
		if good(value) {
			return value, nil
		}
	}
}

// unwatchLimit is how long XenStore may take to forget a watch.
const unwatchLimit = 5 * time.Second

func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// value is Read, but that nothing is an empty value.
func (c *Client) value(ctx context.Context, path string) (string, error) {
	v, err := c.Read(ctx, path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return v, err
}
