package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/pmi"
)

// children waits for this guest's processes.
var children = sync.OnceValue(newReaper)

// Serve answers what the host asks of a clone, until the channel breaks, which
// is its error. It waits for all children of the process: it is for a process
// that has no others, as a guest's init.
func Serve(channel io.ReadWriteCloser) error {
	c, err := newClone(channel)
	if err != nil {
		return err
	}
	return c.serve()
}

func newClone(channel io.ReadWriteCloser) (*clone, error) {
	mux, err := yamux.Server(channel, MuxConfig())
	if err != nil {
		return nil, fmt.Errorf("begin a session with the host: %w", err)
	}
	return &clone{mux: mux, stdio: map[stdioKey]*stream{}, groups: map[string]localGroup{}}, nil
}

func (c *clone) serve() error {
	for {
		conn, err := c.mux.AcceptStream()
		if err != nil {
			return fmt.Errorf("serve the host: %w", err)
		}
		go c.handle(&stream{conn, bufio.NewReader(conn)})
	}
}

// clone is the state of the agent in a clone.
type clone struct {
	mux *yamux.Session

	mu     sync.Mutex // guards all below
	stdio  map[stdioKey]*stream
	groups map[string]localGroup // by KVS name
}

type stdioKey struct{ id, fd int }

// localGroup is what of a process group is in this clone.
type localGroup struct {
	proxy *pmi.Proxy
	PMI
}

// handle serves one stream. Whoever takes the stream over closes it.
func (c *clone) handle(st *stream) {
	var r request
	if err := readLine(st.in, &r); err != nil {
		st.Close()
		return
	}
	var err error
	switch {
	case r.Mount != nil:
		err = shares.mount(*r.Mount)
	case r.Place != nil:
		err = place(*r.Place)
	case r.Stdio != nil:
		if err = c.keepStdio(*r.Stdio, st); err == nil {
			writeLine(st, answer{})
			return
		}
	case r.PMI != nil:
		if err = r.PMI.Group.Validate(); err == nil {
			p := pmi.NewProxy(r.PMI.Group, st, r.PMI.Ranks)
			// Before the answer, for the host may start ranks after it.
			c.mu.Lock()
			c.groups[r.PMI.Group.KVSName] = localGroup{p, *r.PMI}
			c.mu.Unlock()
			writeLine(st, answer{})
			p.Run(context.Background())
			c.mu.Lock()
			if c.groups[r.PMI.Group.KVSName].proxy == p {
				delete(c.groups, r.PMI.Group.KVSName)
			}
			c.mu.Unlock()
			return
		}
	case r.SSH != nil:
		if err = c.ssh(st, *r.SSH); err == nil {
			return
		}
	case r.Run != nil:
		if err = c.run(st, *r.Run); err == nil {
			return
		}
	default:
		err = fmt.Errorf("the agent was asked for nothing that it knows")
	}
	var a answer
	if err != nil {
		a.Error = err.Error()
	}
	writeLine(st, a)
	st.Close()
}

// keepStdio keeps a standard stream for a process to come.
func (c *clone) keepStdio(s Stdio, st *stream) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := stdioKey{s.ID, s.FD}
	switch {
	case s.FD < 0 || s.FD > 2:
		return fmt.Errorf("%d is not a standard stream", s.FD)
	case c.stdio[key] != nil:
		return fmt.Errorf("it is open already")
	}
	c.stdio[key] = st
	return nil
}

func place(p Place) error {
	if err := os.MkdirAll(filepath.Dir(p.At), 0o755); err != nil {
		return err
	}
	in, err := os.Open(p.From)
	if err != nil {
		return err
	}
	defer in.Close()
	copied, err := os.CreateTemp(stateDir, "program-")
	if err != nil {
		return err
	}
	defer copied.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{copied}, struct{ io.Reader }{in}, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("copy %s into memory: %w", p.From, err)
	}
	if err := copied.Chmod(0o755); err != nil {
		return err
	}
	if p.At != p.From {
		f, err := os.OpenFile(p.At, os.O_CREATE, 0o755)
		if err != nil {
			return err
		}
		f.Close()
	}
	return unix.Mount(copied.Name(), p.At, "", unix.MS_BIND, "")
}

var _ net.Conn = (*stream)(nil)
