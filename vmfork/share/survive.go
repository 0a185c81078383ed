package share

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The relay of a mount is a process of its own, and not a part of the agent.
// The agent starts programs that lie in the folder: from vfork until such a
// program is loaded the Go runtime takes the agent's thread for a running one,
// and can neither give its processor to a relay nor collect garbage. On a
// machine with one CPU the program would never be loaded.

const (
	// relayArg is the argument of this program that makes it a relay.
	relayArg = "relay"
	// The relay's descriptors: orders, and the kernel's client.
	orderFD  = 3
	kernelFD = 4
	// maxOrder bounds an order, in bytes.
	maxOrder = 64 << 10
	// relayWait bounds an order whose context has no earlier deadline.
	relayWait = 30 * time.Second
	// socketBuffer is the size of each direction of the socket between kernel
	// and relay, in bytes: more than one message, so that neither waits for the
	// other in the middle of it.
	socketBuffer = 4 * mountMessage
)

// An order is for the relay to connect: with Mounting to begin, without to
// begin anew in a clone. Its answer is a report.
type order struct {
	Mounting *Mounting     `json:"mounting,omitempty"`
	Wait     time.Duration `json:"wait"`
}

// A relayProcess is the agent's way to a relay.
type relayProcess struct {
	mu     sync.Mutex // held during an order
	orders net.Conn
	in     *bufio.Reader
}

// startRelay runs a relay that is connected with the server, and returns the
// end of its socket that is the kernel's.
func startRelay(ctx context.Context, m Mounting) (p *relayProcess, kernel *os.File, err error) {
	orders, theirOrders, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer orders.Close()
	defer theirOrders.Close()
	kernel, theirKernel, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirKernel.Close()
	defer func() {
		if err != nil {
			kernel.Close()
		}
	}()
	for _, end := range []*os.File{kernel, theirKernel} {
		// Root's, and forced; others get what they may have.
		if unix.SetsockoptInt(int(end.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
			_ = unix.SetsockoptInt(int(end.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
		}
	}
	conn, err := net.FileConn(orders)
	if err != nil {
		return nil, nil, err
	}
	p = &relayProcess{orders: conn, in: bufio.NewReader(conn)}
	command := exec.Command("/proc/self/exe")
	command.Args = []string{"mpirun-sf", relayArg}
	command.Env = []string{}
	command.Dir = "/"
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{theirOrders, theirKernel}
	if err := command.Start(); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("start relay: %w", err)
	}
	go func() { _ = command.Wait() }()
	if err := p.order(ctx, order{Mounting: &m}); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return p, kernel, nil
}

func socketPair() (*os.File, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket for the relay: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

func (p *relayProcess) order(ctx context.Context, o order) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, relayWait)
	defer cancel()
	deadline, _ := ctx.Deadline()
	o.Wait = time.Until(deadline)
	// The relay keeps to the time itself; it gets a second more to say so.
	_ = p.orders.SetDeadline(deadline.Add(time.Second))
	defer context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			_ = p.orders.SetDeadline(time.Unix(1, 0))
		}
	})()
	if err := json.NewEncoder(p.orders).Encode(o); err != nil {
		return fmt.Errorf("ask the relay: %w", err)
	}
	line, err := p.in.ReadSlice('\n')
	var said report
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the relay has ended")
	case err != nil:
		return fmt.Errorf("wait for the relay: %w", errors.Join(ctx.Err(), err))
	case json.Unmarshal(line, &said) != nil:
		return fmt.Errorf("the relay said %.100q", line)
	case said.Error != "":
		return errors.New(said.Error)
	}
	return nil
}

// end ends the relay. The kernel's client gives errors from then on.
func (p *relayProcess) end() { p.orders.Close() }

// Reconnect makes a folder that this process mounted with Survives go on in a
// clone, while no process of the clone runs: what is open there, or is a
// process's working directory, is found again on a new connection by its name.
// What has no name any more, or another file has its name now, gives ESTALE.
// After an error the mount is of no use.
func Reconnect(ctx context.Context, target string) error {
	c, ok := mounted.Load(target)
	if !ok || c.(*connection).relay == nil {
		return fmt.Errorf("reconnect %s: it is not mounted through a relay", target)
	}
	if err := c.(*connection).relay.order(ctx, order{}); err != nil {
		return fmt.Errorf("reconnect %s: %w", target, err)
	}
	return nil
}

// RelayMain is the process of a mount with Survives, which [Mount] runs as this
// program with the argument "relay". It ends with the mount, with the connection to
// the server, or with who began it.
func RelayMain(ctx context.Context) error {
	// Requests leave little garbage; to collect it takes time from them.
	debug.SetGCPercent(400)
	// The kernel needs the relay to free memory.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	orders, err := inherit(orderFD)
	if err != nil {
		return err
	}
	defer orders.Close()
	kernel, err := inherit(kernelFD)
	if err != nil {
		return err
	}
	return relayOrders(ctx, orders, kernel)
}

func inherit(fd uintptr) (net.Conn, error) {
	file := os.NewFile(fd, "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("inherit the relay's sockets: %w", err)
	}
	return conn, nil
}

// relayOrders carries orders out until they or the relay end.
func relayOrders(ctx context.Context, orders, kernel net.Conn) error {
	defer kernel.Close()
	var r *relay
	var mounting Mounting
	dial := func(ctx context.Context) (net.Conn, error) { return Dial(ctx, mounting.Server, mounting.Token) }
	in := bufio.NewReaderSize(orders, maxOrder)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			if r != nil {
				r.close()
			}
			return nil
		}
		var o order
		if err := json.Unmarshal(line, &o); err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, o.Wait)
		switch {
		case (o.Mounting == nil) != (r != nil):
			err = errors.New("the relay is told to begin twice, or not at all")
		case r == nil:
			mounting = *o.Mounting
			var server net.Conn
			if server, err = dial(ctx); err == nil {
				r, err = newRelay(kernel, server)
			}
			if err == nil {
				go func() {
					<-r.ended
					orders.Close()
				}()
			}
		default:
			err = r.reconnect(ctx, dial)
		}
		cancel()
		var said report
		if err != nil {
			said.Error = err.Error()
		}
		if err := json.NewEncoder(orders).Encode(said); err != nil {
			return nil // who ordered has gone, or the relay has ended
		}
	}
}
