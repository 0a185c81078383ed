package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// The control port carries orders, one at a time, and an answer to each. An
// order is its kind in one byte, the length of what follows in four, high
// first, and that. An answer is a length and an error's text; no text is
// success.
//
// Freeze and thaw lie on a parent's pause, right after its memory has become a
// stranger's to the translator: they must be read and done by very little code.
const (
	orderFreeze   = 'f' // stop all processes but the agent; with how many bytes the host has sent on the data port, 8 bytes
	orderThaw     = 't' // let them go on; with the host's clock, nanoseconds since 1970, 8 bytes
	orderIdentity = 'i' // become a clone, while the link is down; with an [Identity]
	orderBegin    = 'b' // the link is up: mount again, run hooks, go on
	orderMembers  = 'm' // others have come; with a list of [network.Member]
)

// maxOrder bounds an order: an identity with thousands of members.
const maxOrder = 4 << 20

func readOrder(r io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxOrder {
		return 0, nil, fmt.Errorf("read an order: %d bytes are too many", n)
	}
	if n == 0 {
		return head[0], nil, nil
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("read an order: %w", unexpected(err))
	}
	return head[0], payload, nil
}

func writeOrder(w io.Writer, kind byte, payload []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload))), payload...))
	return err
}

func readAnswer(r io.Reader) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxOrder {
		return fmt.Errorf("read an answer: %d bytes are too many", n)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return fmt.Errorf("read an answer: %w", unexpected(err))
	}
	if n > 0 {
		return refusal(text)
	}
	return nil
}

// refusal is what the agent says of an order that it could not carry out.
type refusal string

func (r refusal) Error() string { return string(r) }

func writeAnswer(w io.Writer, err error) error {
	var text string
	if err != nil {
		text = err.Error()
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Control is the host's side of a guest's control port. Its methods are called
// one at a time. An order that a context cut off is the last one: what the
// agent says next is still the answer to that.
type Control struct {
	conn   net.Conn
	broken error // why the port is of no use any more
}

// NewControl speaks to the agent behind a control port. conn stays the
// caller's to close.
func NewControl(conn net.Conn) *Control { return &Control{conn: conn} }

// AwaitReady waits until the agent in a booting guest says that it is up.
func (c *Control) AwaitReady(ctx context.Context) error {
	err := c.exchange(ctx, func() error {
		buf := make([]byte, len(ready))
		if _, err := io.ReadFull(c.conn, buf); err != nil {
			return err
		}
		if string(buf) != ready {
			return fmt.Errorf("it speaks another protocol: %q", buf)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for the guest's agent: %w", err)
	}
	return nil
}

// Freeze stops all processes of the guest but the agent, so that none of them
// runs in a clone before the clone knows who it is. Before, the session stands
// still: the agent writes nothing more, and has read all that the host has sent on the
// data port, which is so many bytes, and sends nothing more.
func (c *Control) Freeze(ctx context.Context, sent uint64) error {
	if err := c.order(ctx, orderFreeze, binary.BigEndian.AppendUint64(nil, sent)); err != nil {
		return fmt.Errorf("freeze the guest's processes: %w", err)
	}
	return nil
}

// Thaw lets them and the session go on, and sets the guest's clock, which stood still.
func (c *Control) Thaw(ctx context.Context) error {
	if err := c.order(ctx, orderThaw, binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))); err != nil {
		return fmt.Errorf("thaw the guest's processes: %w", err)
	}
	return nil
}

// Identify gives a fresh clone its identity, and waits until it has taken it
// on. Its link is down meanwhile.
func (c *Control) Identify(ctx context.Context, id Identity) error {
	if err := c.order(ctx, orderIdentity, id.encode()); err != nil {
		return fmt.Errorf("%s could not take its identity: %w", id.Name, err)
	}
	return nil
}

// Begin tells a clone that its link is up: it mounts its shared folders again,
// runs the post-clone hooks, begins a session, and lets its processes go on.
func (c *Control) Begin(ctx context.Context) error {
	return c.order(ctx, orderBegin, nil)
}

// Members tells a guest of others that have come to its network.
func (c *Control) Members(ctx context.Context, members []network.Member) error {
	err := c.order(ctx, orderMembers, encodeMembers(members))
	if err != nil {
		return fmt.Errorf("tell a guest of new members: %w", err)
	}
	return nil
}

func (c *Control) order(ctx context.Context, kind byte, payload []byte) error {
	return c.exchange(ctx, func() error {
		if err := writeOrder(c.conn, kind, payload); err != nil {
			return err
		}
		return readAnswer(c.conn)
	})
}

// exchange runs f, and ends it when the context ends.
func (c *Control) exchange(ctx context.Context, f func() error) error {
	if c.broken != nil {
		return c.broken
	}
	if ctx.Err() != nil {
		return reason(ctx, ctx.Err())
	}
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(cut)
	})
	err := f()
	if !stop() {
		<-cut
		c.conn.SetDeadline(time.Time{}) // it came too late, or is remembered below
	}
	var said refusal
	if err == nil || errors.As(err, &said) {
		return err
	}
	err = reason(ctx, err)
	c.broken = fmt.Errorf("its agent did not finish what it was told before: %v", err)
	return err
}

// reason is why an exchange failed.
func reason(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for its agent: %w", context.Cause(ctx))
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return errors.New("the guest is gone")
	}
	return err
}
