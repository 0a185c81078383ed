package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// calls are the VM fork API's calls of this VM's processes that are under way.
type calls struct {
	mu      sync.Mutex // guards all below
	self    api.Identity
	open    func() (net.Conn, error) // a stream to the host, nil before there is a session
	paused  bool                     // this is a clone, and does not know yet which
	pending map[*pendingCall]bool
}

// pendingCall is a call whose process waits.
type pendingCall struct {
	api.Request
	fork     string // its name, if it may fork this VM: see [Identity].Fork
	returned chan api.Reply
}

// ReadCallName reads the name of the call that a stream from an agent begins
// with: "" for a call that cannot fork the VM that it comes from.
func ReadCallName(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", fmt.Errorf("read a call's name: %w", err)
	}
	name := make([]byte, n[0])
	if _, err := io.ReadFull(r, name); err != nil {
		return "", fmt.Errorf("read a call's name: %w", err)
	}
	return string(name), nil
}

// maxCallers bounds the connections of this VM's processes: each has buffers in
// the memory of init, which must not run out. Who comes later waits.
const maxCallers = 256

// serveCalls answers the processes of this VM on the socket.
func serveCalls(path string) (*calls, error) {
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for calls: %w", err)
	}
	// Every process of a VM may fork it: whom it lets in is the guest's own
	// affair.
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, fmt.Errorf("listen for calls: %w", err)
	}
	c := &calls{pending: map[*pendingCall]bool{}}
	go func() {
		free := make(chan struct{}, maxCallers)
		for {
			free <- struct{}{}
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				api.ServeConn(context.Background(), conn, c)
				<-free
			}()
		}
	}()
	return c, nil
}

// Call implements [api.Handler].
func (c *calls) Call(ctx context.Context, r api.Request) api.Reply {
	p := &pendingCall{Request: r, returned: make(chan api.Reply, 1)}
	c.mu.Lock()
	self, open := c.self, c.open
	if c.paused {
		c.mu.Unlock()
		return api.Fail(api.KindCloned, "this is a clone, made while the call was on its way: the call is the parent's")
	}
	if open == nil {
		c.mu.Unlock()
		return api.Fail(api.KindUnavailable, "this VM has no host daemon behind it yet")
	}
	other := r.Value("vm") != "" && r.Value("vm") != self.Name
	if r.Call == api.Whoami && !other {
		c.mu.Unlock()
		return self.Reply()
	}
	if !other && (r.Call == api.Clone || r.Call == api.CheckpointParent) {
		p.fork = rand.Text()
	}
	c.pending[p] = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, p)
		c.mu.Unlock()
	}()
	if r.Call != api.AwaitFork {
		go func() {
			reply := forward(ctx, open, p)
			// In a clone the session of the parent breaks off before this
			// copy of the call is answered: it is answered by become.
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.pending[p] {
				select {
				case p.returned <- reply:
				default:
				}
			}
		}()
	}
	select {
	case reply := <-p.returned:
		return reply
	case <-ctx.Done():
		return api.Fail(api.KindTimeout, "%v", context.Cause(ctx))
	}
}

// forward asks the host.
func forward(ctx context.Context, open func() (net.Conn, error), p *pendingCall) api.Reply {
	conn, err := open()
	if err != nil {
		return api.Fail(api.KindUnavailable, "the host daemon does not answer: %v", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// The stream begins with the call's name: its length in one byte, and it.
	if _, err := conn.Write(append([]byte{byte(len(p.fork))}, p.fork...)); err != nil {
		return api.Fail(api.KindUnavailable, "the host daemon does not answer: %v", err)
	}
	reply, err := api.NewConn(conn).Do(ctx, p.Request)
	var failed *api.Error
	switch {
	case reply.Err != nil:
		return reply
	case errors.As(err, &failed):
		return api.Fail(failed.Kind, "the host daemon does not answer: %s", failed.Text)
	case err != nil:
		return api.Fail(api.KindUnavailable, "the host daemon does not answer: %v", err)
	}
	return reply
}

// pause keeps calls from being answered by what breaks them: the session that
// ends because this is a clone now.
func (c *calls) pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open, c.paused = nil, true
	for p := range c.pending {
		c.pending[p] = false
	}
}

// become answers the calls that were under way when this VM was copied, each
// of which has a copy here, and takes new ones.
func (c *calls) become(id Identity, open func() (net.Conn, error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open, c.paused = open, false
	c.self = api.Identity{
		ID: id.Clone, Member: id.Member, Name: id.Name, IP: id.Network.Address.Addr(),
		VCPUs: id.VCPUs, Host: id.Host, Ticket: id.Ticket,
	}
	for p := range c.pending {
		var reply api.Reply
		switch {
		case p.Call == api.AwaitFork:
			reply = api.ForkReply(id.Clone, id.Ticket)
		case p.fork == "" || p.fork != id.Fork.Call:
			reply = api.Fail(api.KindCloned, "this is clone %d, made by another process's fork: the call is the parent's", id.Clone)
		case p.Call == api.CheckpointParent:
			reply = api.CheckpointReply(id.Fork.Checkpoint, id.Clone, id.Ticket)
		default:
			reply = api.IDReply(id.Clone)
		}
		select {
		case p.returned <- reply:
		default: // it had been answered just before the copy was made
		}
	}
}
