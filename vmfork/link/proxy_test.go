package link_test

import (
	"net"
	"sync"
	"testing"
)

// proxy is a network between two hosts that can be cut: while it is, nothing goes through, and nobody is told. What was on its
// way goes on when it is healed, as TCP would send it again.
type proxy struct {
	to string
	l  net.Listener

	mu      sync.Mutex
	healed  *sync.Cond
	cut     bool
	refuses bool
	conns   []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{to: to, l: l}
	p.healed = sync.NewCond(&p.mu)
	t.Cleanup(func() {
		l.Close()
		p.Heal()
		p.Break()
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			refuses := p.refuses
			p.mu.Unlock()
			if refuses {
				conn.Close()
				continue
			}
			onward, err := net.Dial("tcp", p.to)
			if err != nil {
				conn.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, conn, onward)
			p.mu.Unlock()
			go p.carry(conn, onward)
			go p.carry(onward, conn)
		}
	}()
	return p
}

func (p *proxy) carry(from, to net.Conn) {
	defer to.Close()
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		for p.cut {
			p.healed.Wait()
		}
		p.mu.Unlock()
		if _, bad := to.Write(b[:n]); err != nil || bad != nil {
			return
		}
	}
}

func (p *proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
}

func (p *proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
	p.healed.Broadcast()
}

// Refuse lets nobody new through.
func (p *proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = true
}

// Break closes all connections, as the kernels of dead processes do.
func (p *proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}
