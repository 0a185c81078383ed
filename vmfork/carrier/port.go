package carrier

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// port is the host's end of a serial port, and the machine's, kept for a
// successor of its process.
type port struct {
	net.Conn
	machine hypervisor.Port
	gate    sync.RWMutex  // held for writing while nothing may be written to the machine
	sent    atomic.Uint64 // bytes that were written to it
}

func newPort(name string) (*port, error) {
	conn, p, err := hypervisor.NewPort(name)
	if err != nil {
		return nil, err
	}
	return &port{Conn: conn, machine: p}, nil
}

// Write implements net.Conn.
func (p *port) Write(b []byte) (int, error) {
	p.gate.RLock()
	defer p.gate.RUnlock()
	n, err := p.Conn.Write(b)
	p.sent.Add(uint64(n))
	return n, err
}

// Close closes both ends.
func (p *port) Close() error {
	return errors.Join(p.Conn.Close(), p.machine.File.Close())
}

// hold keeps the session from writing to the machine, and says how many bytes it has written: what the agent
// has not read when the machine is suspended, it may never read.
func (p *port) hold(ctx context.Context) (sent uint64, release func(), err error) {
	held := make(chan struct{})
	go func() { p.gate.Lock(); close(held) }()
	ctx, cancel := context.WithTimeout(ctx, holdLimit)
	defer cancel()
	select {
	case <-held:
		return p.sent.Load(), p.gate.Unlock, nil
	case <-ctx.Done():
		go func() { <-held; p.gate.Unlock() }()
		return 0, nil, fmt.Errorf("wait for the guest to make room for what it is being sent: %w", ctx.Err())
	}
}

// holdLimit is how long that may take.
const holdLimit = 10 * time.Second

// dialAfter begins a session behind the mark that the agent has written.
func dialAfter(ctx context.Context, p *port, mark []byte) (*agent.Session, error) {
	stop := context.AfterFunc(ctx, func() { p.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReader(p)
	var last []byte // as many bytes as the mark has
	for !bytes.Equal(last, mark) {
		b, err := in.ReadByte()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("wait for its session: %w", err)
		}
		if last = append(last, b); len(last) > len(mark) {
			last = last[1:]
		}
	}
	return agent.Dial(struct {
		io.Reader
		io.WriteCloser
	}{in, p})
}
