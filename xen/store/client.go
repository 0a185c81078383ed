package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// Where XenStore is: its own socket in the domain that it runs in, else the
// kernel's device, which every privileged domain has.
const (
	Socket = "/run/xenstored/socket"
	Device = "/dev/xen/xenbus"
)

// ErrClosed is the error of a client that was closed.
var ErrClosed = errors.New("the connection to XenStore was closed")

// Client is a connection to XenStore.
type Client struct {
	conn    io.ReadWriteCloser
	writing sync.Mutex
	ended   chan struct{} // closed when nothing is read any more

	mu      sync.Mutex // guards all below
	last    uint32     // number of the last request
	waiting map[uint32]chan message
	watches map[string]*Watch // by token
	err     error             // why ended is closed
}

// Open connects to this machine's XenStore.
func Open(ctx context.Context) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", Socket)
	if err == nil {
		return New(conn), nil
	}
	device, deviceErr := os.OpenFile(Device, os.O_RDWR, 0)
	if deviceErr != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("connect to XenStore: %w", ctx.Err())
		}
		return nil, hypervisor.Lacksf("there is no XenStore here (%v; %v); start xenstored in Xen's domain 0", err, deviceErr)
	}
	return New(device), nil
}

// New is a client over a connection, which is its own from now on.
func New(conn io.ReadWriteCloser) *Client {
	c := &Client{
		conn: conn, ended: make(chan struct{}),
		waiting: map[uint32]chan message{}, watches: map[string]*Watch{},
	}
	go c.read()
	return c
}

// Close ends the connection, its watches, and whoever waits.
func (c *Client) Close() error {
	c.end(ErrClosed)
	<-c.ended
	return nil
}

// end says why the connection ends, and ends it.
func (c *Client) end(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

func (c *Client) read() {
	defer close(c.ended)
	for {
		m, err := readMessage(c.conn)
		if err == nil && m.kind == kindWatchEvent {
			err = c.event(m.body)
		} else if err == nil {
			c.mu.Lock()
			answer, ok := c.waiting[m.number]
			delete(c.waiting, m.number)
			c.mu.Unlock()
			if ok {
				answer <- m // it has room for one
			}
		}
		if err != nil {
			c.end(fmt.Errorf("the connection to XenStore ended: %w", err))
			return
		}
	}
}

// event wakes the watch that it is for; one that has just ended may have none.
func (c *Client) event(body []byte) error {
	path, rest, ok := bytes.Cut(body, []byte{0})
	token, _, ok2 := bytes.Cut(rest, []byte{0})
	if !ok || !ok2 || len(path) == 0 {
		return fmt.Errorf("%w: an event of %d bytes", errProtocol, len(body))
	}
	c.mu.Lock()
	w := c.watches[string(token)]
	c.mu.Unlock()
	if w != nil {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	return nil
}

// do sends a request and waits for its answer.
func (c *Client) do(ctx context.Context, k kind, body []byte) ([]byte, error) {
	if len(body) > bodyLimit {
		return nil, fmt.Errorf("a request of %d bytes is longer than %d", len(body), bodyLimit)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	for taken := true; taken; {
		c.last++
		_, taken = c.waiting[c.last]
	}
	number := c.last
	c.waiting[number] = answer
	c.mu.Unlock()
	c.writing.Lock()
	_, err := c.conn.Write(message{kind: k, number: number, body: body}.append(nil))
	c.writing.Unlock()
	if err != nil {
		c.end(fmt.Errorf("write to XenStore: %w", err)) // half a message may be there
	}
	var m message
	select {
	case m = <-answer:
	case <-c.ended:
		c.mu.Lock()
		defer c.mu.Unlock()
		return nil, c.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for XenStore: %w", ctx.Err())
	}
	switch m.kind {
	case k:
		return m.body, nil
	case kindError:
		return nil, parseError(m.body)
	}
	err = fmt.Errorf("%w: an answer of type %d to a request of type %d", errProtocol, m.kind, k)
	c.end(err)
	return nil, err
}

// request is do for a path, and what errors say.
func (c *Client) request(ctx context.Context, verb string, k kind, path string, rest ...string) ([]byte, error) {
	if path == "" || len(path) > pathLimit || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("%s %.60q in XenStore: that is no path", verb, path)
	}
	body, err := c.do(ctx, k, []byte(path+"\x00"+strings.Join(rest, "")))
	if err != nil {
		return nil, fmt.Errorf("%s %s in XenStore: %w", verb, path, err)
	}
	return body, nil
}

// Read returns the value of a path. Where there is none, the error matches
// [os.ErrNotExist].
func (c *Client) Read(ctx context.Context, path string) (string, error) {
	b, err := c.request(ctx, "read", kindRead, path)
	return string(b), err
}

// Write gives a path a value, and makes it and those above it where they are not.
func (c *Client) Write(ctx context.Context, path, value string) error {
	_, err := c.request(ctx, "write", kindWrite, path, value)
	return err
}

// Mkdir makes a path that has no value; one that is there stays as it is.
func (c *Client) Mkdir(ctx context.Context, path string) error {
	_, err := c.request(ctx, "make", kindMkdir, path)
	return err
}

// Remove removes a path and all below it; one that is not there is no error.
func (c *Client) Remove(ctx context.Context, path string) error {
	_, err := c.request(ctx, "remove", kindRemove, path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// List returns the names below a path.
func (c *Client) List(ctx context.Context, path string) ([]string, error) {
	b, err := c.request(ctx, "list", kindDirectory, path)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(string(trimNul(b)), "\x00"), nil
}

// Permission is what one domain may do with a path.
type Permission struct {
	Access Access
	Domain uint16
}

// Access is the right that goes with a path.
type Access byte

// The rights, as XenStore writes them.
const (
	None      Access = 'n'
	ReadOnly  Access = 'r'
	WriteOnly Access = 'w'
	ReadWrite Access = 'b'
)

// SetPermissions sets a path's permissions. The first one's domain is its owner,
// who may do all; its access is that of domains that are not in the list.
func (c *Client) SetPermissions(ctx context.Context, path string, permissions ...Permission) error {
	var list strings.Builder
	for _, p := range permissions {
		fmt.Fprintf(&list, "%c%d\x00", p.Access, p.Domain)
	}
	_, err := c.request(ctx, "set the permissions of", kindSetPermissions, path, list.String())
	return err
}
