package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// Session is the host's side of a conversation with the agent in one VM.
type Session struct {
	open func() (net.Conn, error)
	mux  *yamux.Session // nil when the session is somebody else's
}

// Dial begins a session with a VM that has its identity. conn is the session's
// from now on.
func Dial(conn io.ReadWriteCloser) (*Session, error) {
	mux, err := yamux.Client(conn, MuxConfig())
	if err != nil {
		return nil, fmt.Errorf("begin a session with the guest's agent: %w", err)
	}
	return &Session{mux.Open, mux}, nil
}

// Over uses a session that another process has, which relays streams: open
// opens one.
func Over(open func() (net.Conn, error)) *Session { return &Session{open, nil} }

// Open opens a stream to the agent, for whoever relays it.
func (s *Session) Open() (net.Conn, error) { return s.open() }

// Accept waits for a stream that the agent opens: a call of the VM fork
// protocol. It fails when the session is over.
func (s *Session) Accept() (net.Conn, error) { return s.mux.Accept() }

// MuxConfig is yamux's for a connection that cannot be lost without being seen
// to be: a socket pair, or a clone's channel, breaks when its other end goes, and
// only then. Who is merely slow must not be taken for dead.
func MuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = time.Hour
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Hour
	return c
}

// Close ends the session, if it is one of this process. The VM's processes are
// not touched.
func (s *Session) Close() error {
	if s.mux == nil {
		return nil
	}
	return s.mux.Close()
}

// stream is a stream after its first exchange.
type stream struct {
	net.Conn
	in *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *Session) ask(ctx context.Context, r request) (*stream, error) {
	conn, err := s.open()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	st := &stream{conn, bufio.NewReader(conn)}
	var a answer
	if err = writeLine(conn, r); err == nil {
		err = readLine(st.in, &a)
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, io.EOF):
		err = errors.New("the clone is gone")
	case err == nil:
		err = a.err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return st, nil
}

// Mount makes a shared folder appear in the clone.
func (s *Session) Mount(ctx context.Context, m share.Mounting) error {
	st, err := s.ask(ctx, request{Mount: &m})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	return st.Close()
}

// Place makes a file of the clone appear at another path.
func (s *Session) Place(ctx context.Context, p Place) error {
	st, err := s.ask(ctx, request{Place: &p})
	if err != nil {
		return fmt.Errorf("place %s: %w", p.At, err)
	}
	return st.Close()
}

// PMI starts the clone's PMI proxy and returns its upstream.
func (s *Session) PMI(ctx context.Context, p PMI) (io.ReadWriteCloser, error) {
	st, err := s.ask(ctx, request{PMI: &p})
	if err != nil {
		return nil, fmt.Errorf("start the PMI proxy: %w", err)
	}
	return st, nil
}

// Stdio opens a standard stream for a process that [Session.Start] will
// start. For stream 0 Close is the end of the process's input.
func (s *Session) Stdio(ctx context.Context, id, fd int) (io.ReadWriteCloser, error) {
	st, err := s.ask(ctx, request{Stdio: &Stdio{id, fd}})
	if err != nil {
		return nil, fmt.Errorf("open stream %d of process %d: %w", fd, id, err)
	}
	return st, nil
}

// SSH begins a conversation with an SSH server in the VM.
func (s *Session) SSH(ctx context.Context, c SSH) (net.Conn, error) {
	st, err := s.ask(ctx, request{SSH: &c})
	if err != nil {
		return nil, fmt.Errorf("start an SSH server: %w", err)
	}
	return st, nil
}

// Process is a process in a clone.
type Process struct {
	st   *stream
	exit chan Exit
}

// Start starts a process.
func (s *Session) Start(ctx context.Context, c Command) (*Process, error) {
	st, err := s.ask(ctx, request{Run: &c})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(c.Argv[:min(1, len(c.Argv))], ""), err)
	}
	p := &Process{st, make(chan Exit, 1)}
	go func() {
		var e Exit
		if err := readLine(st.in, &e); err != nil {
			e = Exit{Error: "the clone is gone"}
			if !errors.Is(err, io.EOF) && !errors.Is(err, yamux.ErrSessionShutdown) && !errors.Is(err, yamux.ErrStreamClosed) {
				e.Error = err.Error()
			}
		}
		p.exit <- e
		st.Close()
	}()
	return p, nil
}

// Signal sends a signal to the process's group.
func (p *Process) Signal(n int) error { return writeLine(p.st, control{Signal: n}) }

// Resize tells the process's terminal its new size.
func (p *Process) Resize(size Size) error { return writeLine(p.st, control{Resize: &size}) }

// Exit delivers, once, how the process ended.
func (p *Process) Exit() <-chan Exit { return p.exit }
