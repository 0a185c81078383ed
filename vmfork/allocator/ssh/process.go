package ssh

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// stopLimit is how long a host has to end a process by force.
const stopLimit = 5 * time.Second

// process is a program on a host, in a session of a connection of its own.
type process struct {
	host    string
	c       *connection
	session *ssh.Session
	in      io.WriteCloser
	out     *bufio.Reader
	tail    *allocator.Tail
	pid     int
	root    bool // whether it runs as who logged in

	ended chan struct{}
	err   error // of Wait, once ended

	reading sync.Mutex // bufio.Reader is for one at a time
	writing sync.Mutex // and the channel does not end while it is written to
	shut    atomic.Bool
	closing sync.Once
}

var _ allocator.Process = (*process)(nil)

// await sets how it ended.
func (p *process) await(forget func()) {
	defer close(p.ended)
	err := p.session.Wait()
	var exit *ssh.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		e := &allocator.ExitError{Status: exit.ExitStatus(), Signal: exit.Signal(), Stderr: p.tail.String()}
		if e.Signal != "" {
			e.Status = 0
		}
		p.err = &allocator.HostError{Host: p.host, Err: e}
	default:
		select {
		case <-p.c.gone:
		case <-time.After(time.Second): // the session has ended, and not the connection
		}
		if lost := p.c.lost.get(); lost != nil {
			err = lost
		}
		err = fmt.Errorf("%w: %w", allocator.ErrLost, err)
		if said := p.tail.String(); said != "" {
			err = fmt.Errorf("%w; it said before: %s", err, oneLine(said))
		}
		p.err = &allocator.HostError{Host: p.host, Err: err}
	}
	// What it printed is with us; nothing more comes.
	p.c.Client.Close()
	forget()
}

func (p *process) Read(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	return p.out.Read(b)
}

// writePart bounds how much Close has to wait for.
const writePart = 16 << 10

func (p *process) Write(b []byte) (int, error) {
	n, err := 0, error(nil)
	for ok := true; ok; ok = err == nil && n < len(b) {
		var part int
		part, err = p.writeSome(b[n:min(len(b), n+writePart)])
		n += part
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrClosedPipe
	}
	if err != nil {
		err = fmt.Errorf("write to %s: %w", p.host, err)
	}
	return n, err
}

func (p *process) writeSome(b []byte) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.shut.Load() {
		return 0, io.ErrClosedPipe
	}
	return p.in.Write(b)
}

// endInput waits for a write that the process has not taken yet.
func (p *process) endInput() {
	p.shut.Store(true)
	p.writing.Lock()
	defer p.writing.Unlock()
	p.in.Close()
}

func (p *process) Wait() error {
	<-p.ended
	return p.err
}

func (p *process) Close() error {
	p.closing.Do(func() {
		go p.endInput()
		// It ends in its own way only if it can write what it has to.
		go io.Copy(io.Discard, readerFunc(p.Read))
		select {
		case <-p.ended:
			return
		case <-time.After(allocator.CloseLimit):
		}
		p.c.lost.set(fmt.Errorf("its input had ended, and it did not end in %v; it was ended by force", allocator.CloseLimit))
		stop := time.AfterFunc(stopLimit, func() { p.c.Client.Close() })
		defer stop.Stop()
		if session, err := p.c.NewSession(); err == nil {
			command := "exec /bin/sh -c " + quote(stopper+fmt.Sprint(p.pid))
			if !p.root {
				command = "exec sudo -n /bin/sh -c " + quote(stopper+fmt.Sprint(p.pid))
			}
			session.Run(command)
			session.Close()
			select {
			case <-p.ended:
			case <-time.After(stopLimit):
			}
		}
		p.c.Client.Close()
	})
	<-p.ended
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
