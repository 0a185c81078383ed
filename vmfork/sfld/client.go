package sfld

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// Client is the launcher's side of a daemon that it started.
type Client struct {
	cmd   *exec.Cmd
	mux   *yamux.Session
	rpc   *rpc.Client
	ended chan struct{} // the daemon's process is gone

	closing sync.Once
}

// Start starts a daemon for one job on this machine: program is the mpirun-sf
// binary. notice is called for each of its notices, one at a time.
func Start(ctx context.Context, program string, opts Options, notice func(Notice)) (*Client, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the host daemon: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "daemon"), os.NewFile(uintptr(fds[1]), "launcher")
	defer mine.Close()
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return nil, fmt.Errorf("start the host daemon: %w", err)
	}
	c := &Client{cmd: exec.Command(program, "sfld"), ended: make(chan struct{})}
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stderr = os.Stderr
	isolate(c.cmd)
	if err := c.cmd.Start(); err != nil {
		conn.Close()
		if errors.Is(err, unix.EPERM) {
			return nil, errors.New("starting virtual machines needs root here (namespaces, taps, FUSE); run it with sudo")
		}
		return nil, fmt.Errorf("start the host daemon: %w", err)
	}
	go func() {
		c.cmd.Wait()
		sweep()
		close(c.ended)
	}()
	line, err := json.Marshal(opts)
	if err == nil {
		_, err = conn.Write(line) // no line end: the daemon reads exactly one value
	}
	if err == nil {
		c.mux, err = yamux.Client(conn, agent.MuxConfig())
	}
	var calls, notices net.Conn
	if err == nil {
		calls, err = c.open(streamRPC)
	}
	if err == nil {
		notices, err = c.open(streamNotice)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start the host daemon: %w", err)
	}
	c.rpc = rpc.NewClient(calls)
	go func() {
		in := json.NewDecoder(notices)
		for {
			var n Notice
			if in.Decode(&n) != nil {
				return
			}
			notice(n)
		}
	}()
	return c, nil
}

func (c *Client) open(header ...byte) (net.Conn, error) {
	st, err := c.mux.OpenStream()
	if err != nil {
		return nil, err
	}
	_, err = st.Write(header)
	return st, err
}

// call makes one call. A context that ends gives up on the daemon altogether:
// it has one job, and that is over.
func (c *Client) call(ctx context.Context, method string, args, reply any) error {
	done := c.rpc.Go("SFLD."+method, args, reply, make(chan *rpc.Call, 1)).Done
	select {
	case call := <-done:
		var said rpc.ServerError
		switch {
		case call.Error == nil:
			return nil
		case errors.As(call.Error, &said):
			return errors.New(string(said))
		default:
			return errors.New("the host daemon ended unexpectedly")
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Key is the fingerprint of the key by which other daemons know this job's.
func (c *Client) Key(ctx context.Context) (link.Fingerprint, error) {
	var k KeyReply
	err := c.call(ctx, "Key", 0, &k)
	return k.Fingerprint, err
}

// Join has the job carried by other hosts too, whose daemons wait for it. It
// comes before the first ticket.
func (c *Client) Join(ctx context.Context, args JoinArgs) error {
	return c.call(ctx, "Join", args, new(int))
}

// OpenWay lets machines reach what is outside of the private network. It comes
// after Join, and before the first ticket.
func (c *Client) OpenWay(ctx context.Context, way network.Way) error {
	return c.call(ctx, "OpenWay", way, new(int))
}

// Prepare finds or makes what clones are copies of.
func (c *Client) Prepare(ctx context.Context, args PrepareArgs) (p Prepared, err error) {
	err = c.call(ctx, "Prepare", args, &p)
	return p, err
}

// RequestTicket asks for clones. The ticket may allow fewer.
func (c *Client) RequestTicket(ctx context.Context, args RequestArgs) (g Granted, err error) {
	err = c.call(ctx, "RequestTicket", args, &g)
	return g, err
}

// Clone makes the clones of a ticket and returns when each of them is ready,
// or one failed, or limit is over.
func (c *Client) Clone(ctx context.Context, t ticket.Ticket, limit time.Duration) (r Cloned, err error) {
	err = c.call(ctx, "Clone", CloneArgs{t, limit}, &r)
	return r, err
}

// Kill ends the clones of a ticket.
func (c *Client) Kill(ctx context.Context, t ticket.Ticket) error {
	return c.call(ctx, "Kill", t, new(int))
}

// Share serves a folder to the clones and says how they mount it.
func (c *Client) Share(ctx context.Context, args ShareArgs) (share.Mounting, error) {
	var s Shared
	err := c.call(ctx, "Share", args, &s)
	return s.Mounting, err
}

// Stage serves copies of files, and says how clones mount the folder with them.
func (c *Client) Stage(ctx context.Context, files ...string) (s Staged, err error) {
	err = c.call(ctx, "Stage", StageArgs{files}, &s)
	return s, err
}

// Trace takes the events that all hosts have recorded since the last call, if
// the job is traced.
func (c *Client) Trace(ctx context.Context) (t Traced, err error) {
	err = c.call(ctx, "Trace", 0, &t)
	return t, err
}

// Counters says what the job has moved and used.
func (c *Client) Counters(ctx context.Context) (n Counters, err error) {
	err = c.call(ctx, "Counters", 0, &n)
	return n, err
}

// StartVM makes the job's first VM, a copy of the booted guest. It has the
// number 0.
func (c *Client) StartVM(ctx context.Context, args VMArgs) (v VMStarted, err error) {
	err = c.call(ctx, "StartVM", args, &v)
	return v, err
}

// Attach speaks to the agent of a VM, by its number on the private network.
// The session may be used by many at once, and beside others.
func (c *Client) Attach(member int) *agent.Session {
	return agent.Over(func() (net.Conn, error) { return c.open(streamAttach, byte(member>>8), byte(member)) })
}

// API opens a connection that speaks the VM fork protocol with the host's
// authority over all VMs of the job.
func (c *Client) API() (net.Conn, error) { return c.open(streamAPI) }

// Done is closed when the daemon is gone.
func (c *Client) Done() <-chan struct{} { return c.ended }

// closeLimit is how long a daemon may take to end its job by itself.
const closeLimit = 10 * time.Second

// Close ends the job and waits until nothing of it is left.
func (c *Client) Close() error {
	c.closing.Do(func() { c.mux.Close() })
	select {
	case <-c.ended:
		return nil
	case <-time.After(closeLimit):
		c.cmd.Process.Kill() // and with it everything in its namespaces
		<-c.ended
		return fmt.Errorf("the host daemon did not end its job in %v and was killed", closeLimit)
	}
}

var _ io.Closer = (*Client)(nil)
