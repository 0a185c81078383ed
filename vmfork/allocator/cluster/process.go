package cluster

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// closeMargin is how much longer than [allocator.CloseLimit] the service has to
// say that it has ended the daemon.
const closeMargin = 5 * time.Second

// process is a daemon on a host, with a link of its own to the host's service.
type process struct {
	host    string
	link    *link.Link
	stdio   net.Conn
	control net.Conn
	tail    *allocator.Tail

	ended chan struct{}
	err   error // of Wait, once ended

	closing sync.Once
}

var _ allocator.Process = (*process)(nil)

// await reads what the service tells, until the daemon has ended.
func (p *process) await(in lines) {
	defer close(p.ended)
	// What nobody will read is not waited for.
	defer p.stdio.SetWriteDeadline(time.Unix(1, 0))
	for {
		var e event
		if err := in.receive(&e); err != nil {
			p.err = p.lost(err)
			p.link.Close()
			return
		}
		if e.Stderr != "" {
			io.WriteString(p.tail, e.Stderr+"\n")
		}
		if e.Ended == nil {
			continue
		}
		switch {
		case e.Ended.Lost != "":
			p.err = p.lost(errors.New(e.Ended.Lost))
		case e.Ended.Status != 0 || e.Ended.Signal != "":
			p.err = &allocator.HostError{Host: p.host, Err: &allocator.ExitError{
				Status: e.Ended.Status, Signal: e.Ended.Signal, Stderr: p.tail.String(),
			}}
		}
		return
	}
}

func (p *process) lost(err error) error {
	if errors.Is(err, io.EOF) {
		err = errors.New("its service ended")
	}
	return &allocator.HostError{Host: p.host, Err: fmt.Errorf("%w: %w", allocator.ErrLost, err)}
}

func (p *process) Read(b []byte) (int, error) {
	n, err := p.stdio.Read(b)
	if err == io.EOF {
		// All that there was to be read has been, so the link has served.
		go func() {
			<-p.ended
			p.link.Close()
		}()
	}
	if n == 0 && errors.Is(err, link.ErrClosed) {
		select {
		case <-p.ended:
			err = io.EOF
		default:
		}
	}
	return n, err
}

func (p *process) Write(b []byte) (int, error) {
	n, err := p.stdio.Write(b)
	if err != nil {
		select {
		case <-p.ended:
			err = io.ErrClosedPipe
		default:
		}
		err = fmt.Errorf("write to %s: %w", p.host, err)
	}
	return n, err
}

func (p *process) Wait() error {
	<-p.ended
	return p.err
}

func (p *process) Close() error {
	p.closing.Do(func() {
		go send(p.control, order{Close: true}) // may wait as long as the link lives
		p.stdio.Close()
		select {
		case <-p.ended:
		case <-time.After(allocator.CloseLimit + closeMargin):
			// Its end ends the daemon, too.
		}
		p.link.Close()
	})
	<-p.ended
	return nil
}
