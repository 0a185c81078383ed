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
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// children waits for this guest's processes.
var children = sync.OnceValue(newReaper)

// identityLimit is how long a clone may take to become itself, hooks included.
const identityLimit = 2 * time.Minute

// serve says that the guest is up, and from there on runs in clones only.
func serve(channel *os.File) error {
	if _, err := io.WriteString(channel, ready); err != nil {
		return fmt.Errorf("tell the host that the guest is up: %w", err)
	}
	// Here the checkpoint is taken: the read below returns in a clone.
	var id Identity
	if err := readMessage(channel, &id); err != nil {
		return fmt.Errorf("wait for an identity: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), identityLimit)
	err := assume(ctx, id)
	cancel()
	var a answer
	if err != nil {
		a.Error = err.Error()
	}
	if err := writeMessage(channel, a); err != nil {
		return fmt.Errorf("answer the host: %w", err)
	}
	if err != nil {
		return err
	}
	return Serve(channel)
}

// Serve answers what the host asks of a clone, until the channel breaks, which
// is its error. It waits for all children of the process: it is for a process
// that has no others, as a guest's init.
func Serve(channel io.ReadWriteCloser) error {
	mux, err := yamux.Server(channel, MuxConfig())
	if err != nil {
		return fmt.Errorf("begin a session with the host: %w", err)
	}
	c := &clone{stdio: map[stdioKey]*stream{}}
	for {
		conn, err := mux.AcceptStream()
		if err != nil {
			return fmt.Errorf("serve the host: %w", err)
		}
		go c.handle(&stream{conn, bufio.NewReader(conn)})
	}
}

// clone is the state of the agent in a clone.
type clone struct {
	mu    sync.Mutex // guards all below
	stdio map[stdioKey]*stream
	proxy *pmi.Proxy
	local pmiSetup
}

type stdioKey struct{ id, fd int }

type pmiSetup struct {
	size  int
	ranks []int
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
		err = mount(*r.Mount)
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
			c.proxy, c.local = p, pmiSetup{r.PMI.Group.Size, r.PMI.Ranks}
			c.mu.Unlock()
			writeLine(st, answer{})
			p.Run(context.Background())
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

// mountLimit is how long the host may take to answer a clone's mount.
const mountLimit = 30 * time.Second

func mount(m share.Mounting) error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), mountLimit)
	defer cancel()
	return share.Mount(ctx, m)
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
