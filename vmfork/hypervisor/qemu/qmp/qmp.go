// Package qmp is a client of the QEMU Machine Protocol (QEMU's
// docs/interop/qmp-spec.txt): one JSON object a line, commands answered in
// order, events in between.
//
// A [Client] owns its connection. One goroutine reads; a command registers
// where its answer goes, writes, and waits for that answer, the end of the
// connection, or its context. Waiting for an event works the same way, and
// is begun before the command that causes the event, so that none is missed.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// maxLine bounds what one message of QEMU may take; the greeting of QEMU 7.2
// is 200 bytes, the longest answer that this project asks for a few KB.
const maxLine = 1 << 20

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string
	Desc    string
}

func (e *Error) Error() string { return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc) }

// Client speaks to one QEMU process.
type Client struct {
	conn *net.UnixConn

	writing sync.Mutex // one command at a time on the wire

	mu      sync.Mutex // guards all below
	answer  chan message
	events  map[string]chan struct{}
	watched map[string]func()
	err     error
	closed  chan struct{}
	Version string // QEMU's version, from the greeting: "7.2.22"
}

type message struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int }
		}
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// parse reads one line of the protocol.
func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("read QMP message: %w", err)
	}
	if m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return m, errors.New("read QMP message: neither greeting, return, error nor event")
	}
	return m, nil
}

// New waits for QEMU's greeting on conn and leaves negotiation mode.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{conn: conn, events: map[string]chan struct{}{}, watched: map[string]func(){}, closed: make(chan struct{}), answer: make(chan message, 1)}
	go c.read()
	m, err := c.await(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for QEMU's greeting: %w", err)
	}
	if m.QMP == nil {
		return nil, errors.New("wait for QEMU's greeting: got something else")
	}
	v := m.QMP.Version.QEMU
	c.Version = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	return c, c.Do(ctx, "qmp_capabilities", nil, nil)
}

func (c *Client) read() {
	in := bufio.NewScanner(c.conn)
	in.Buffer(make([]byte, 4096), maxLine)
	var err error
	for in.Scan() {
		var m message
		if m, err = parse(in.Bytes()); err != nil {
			break
		}
		c.mu.Lock()
		if m.Event != "" {
			if ch := c.events[m.Event]; ch != nil {
				close(ch)
				delete(c.events, m.Event)
			}
			if f := c.watched[m.Event]; f != nil {
				f()
			}
		} else {
			select {
			case c.answer <- m:
			default: // an answer nobody asked for
			}
		}
		c.mu.Unlock()
	}
	if err == nil {
		err = in.Err()
	}
	if err == nil {
		err = io.EOF
	}
	c.mu.Lock()
	c.err = fmt.Errorf("QEMU closed its monitor: %w", err)
	c.mu.Unlock()
	close(c.closed)
}

// Event returns a channel that is closed at the next event of that name.
func (c *Client) Event(name string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.events[name]
	if ch == nil {
		ch = make(chan struct{})
		c.events[name] = ch
	}
	return ch
}

// Watch has f called at every event of that name from now on, in order with the
// answers to commands. It must not wait, nor call the client.
func (c *Client) Watch(name string, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched[name] = f
}

// Do runs a command and decodes what it returns into result, which may be nil.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	return c.do(ctx, command, args, result, nil)
}

// SendFile gives QEMU a descriptor under a name (QMP getfd), for a later
// command to use. QEMU holds a copy of its own.
func (c *Client) SendFile(ctx context.Context, name string, f *os.File) error {
	return c.do(ctx, "getfd", map[string]any{"fdname": name}, nil, f)
}

func (c *Client) do(ctx context.Context, command string, args, result any, f *os.File) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.write(append(line, '\n'), f); err != nil {
		return fmt.Errorf("send %s: %w", command, err)
	}
	m, err := c.await(ctx)
	if err != nil {
		// The answer may still come and would be taken for the next
		// command's, so this connection is of no more use.
		c.conn.Close()
		return fmt.Errorf("wait for %s: %w", command, err)
	}
	if m.Error != nil {
		return &Error{command, m.Error.Class, m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("read what %s returned: %w", command, err)
	}
	return nil
}

// await waits for what QEMU says next. It may have closed the connection since.
func (c *Client) await(ctx context.Context) (message, error) {
	select {
	case m := <-c.answer:
		return m, nil
	case <-c.closed:
		select {
		case m := <-c.answer:
			return m, nil
		default:
			return message{}, c.err
		}
	case <-ctx.Done():
		return message{}, ctx.Err()
	}
}

// Closed is closed when QEMU has closed the connection.
func (c *Client) Closed() <-chan struct{} { return c.closed }
