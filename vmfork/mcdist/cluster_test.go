package mcdist

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// cluster is several nodes in one process, over TCP on the loopback.
type cluster struct {
	t     testing.TB
	nodes []*Node
	lines chan string

	mu       sync.Mutex
	cut      map[[2]int]bool // by the hosts' numbers, in order
	conns    map[net.Conn][2]int
	dials    atomic.Int64
	throttle func(from, to int, conn net.Conn) net.Conn // wraps what was dialed; may be nil
}

func newCluster(t testing.TB, hosts int, change func(*Config)) *cluster {
	t.Helper()
	c := &cluster{t: t, cut: make(map[[2]int]bool), conns: make(map[net.Conn][2]int), lines: make(chan string, 100)}
	var list []Host
	listeners := make([]net.Listener, hosts)
	for i := range hosts {
		list = append(list, Host{Name: fmt.Sprintf("h%d", i), Address: netip.MustParseAddr("127.0.0.1")})
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		listeners[i] = l
	}
	for i := range hosts {
		config := Config{Self: i, Hosts: list, Mode: Unicast, Key: [32]byte{1}, Notice: func(line string) {
			select {
			case c.lines <- line:
			default:
			}
		}}
		config.Dial = func(ctx context.Context, to int) (net.Conn, error) { return c.dial(ctx, i, to, listeners[to].Addr()) }
		if change != nil {
			change(&config)
		}
		node, err := New(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, node)
		go c.accept(listeners[i], node)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.Close()
		}
	})
	return c
}

func pair(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

func (c *cluster) dial(ctx context.Context, from, to int, addr net.Addr) (net.Conn, error) {
	c.dials.Add(1)
	c.mu.Lock()
	cut := c.cut[pair(from, to)]
	c.mu.Unlock()
	if cut {
		return nil, errors.New("no route to host")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", addr.String())
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{byte(from)}); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.conns[conn] = pair(from, to)
	c.mu.Unlock()
	if c.throttle != nil {
		return c.throttle(from, to, conn), nil
	}
	return conn, nil
}

func (c *cluster) accept(l net.Listener, node *Node) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		var from [1]byte
		if _, err := conn.Read(from[:]); err != nil {
			conn.Close()
			continue
		}
		node.Accept(conn, int(from[0]))
	}
}

// sever breaks all connections between two hosts, and keeps new ones from being made until heal.
func (c *cluster) sever(a, b int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[pair(a, b)] = true
	for conn, p := range c.conns {
		if p == pair(a, b) {
			conn.Close()
			delete(c.conns, conn)
		}
	}
}

func (c *cluster) heal(a, b int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cut, pair(a, b))
}

// testID is an id that no other test has.
func testID() (id ID) {
	rand.Read(id[:])
	return id
}

// memory is a source whose blocks tell their numbers, and half of which can be compressed.
type memory struct {
	data   []byte
	reads  atomic.Int64
	before func(first int64) error
	inside atomic.Int64
}

func newMemory(blocks int) *memory {
	m := &memory{data: make([]byte, blocks*slice.BlockSize)}
	r := mathrand.NewChaCha8([32]byte{7})
	r.Read(m.data)
	for b := range blocks {
		block := m.data[b*slice.BlockSize:][:slice.BlockSize]
		if b/4%2 == 0 {
			copy(block, bytes.Repeat([]byte("of a guest's memory "), slice.BlockSize/20))
		}
		binary.LittleEndian.PutUint64(block, uint64(b)+1)
	}
	return m
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadBlocks(dst []byte, first int64) error {
	m.inside.Add(1)
	defer m.inside.Add(-1)
	m.reads.Add(int64(len(dst)) / slice.BlockSize)
	if m.before != nil {
		if err := m.before(first); err != nil {
			return err
		}
	}
	if first < 0 || first*slice.BlockSize+int64(len(dst)) > m.Size() {
		return fmt.Errorf("read of %d bytes from block %d", len(dst), first)
	}
	copy(dst, m.data[first*slice.BlockSize:])
	return nil
}

// copyOf is a sink, and the source of a relay.
type copyOf struct {
	t      testing.TB
	of     *memory
	before func(first, n int64) error

	mu    sync.Mutex
	data  []byte
	came  map[int64]int
	order []int64
}

func newCopy(t testing.TB, of *memory) *copyOf {
	return &copyOf{t: t, of: of, data: make([]byte, len(of.data)), came: make(map[int64]int)}
}

func (s *copyOf) Size() int64 { return int64(len(s.data)) }

func (s *copyOf) ReadBlocks(dst []byte, first int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := first; b < first+int64(len(dst))/slice.BlockSize; b++ {
		if s.came[b] == 0 {
			return fmt.Errorf("block %d has not come", b)
		}
	}
	copy(dst, s.data[first*slice.BlockSize:])
	return nil
}

func (s *copyOf) Arrive(p []byte, first int64) error {
	if s.before != nil {
		if err := s.before(first, int64(len(p))/slice.BlockSize); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := int64(0); i < int64(len(p))/slice.BlockSize; i++ {
		s.came[first+i]++
		s.order = append(s.order, first+i)
	}
	copy(s.data[first*slice.BlockSize:], p)
	return nil
}

// has fails if these blocks have not come, or have another content.
func (s *copyOf) has(first, n int64) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := first; b < first+n; b++ {
		if s.came[b] == 0 {
			s.t.Fatalf("block %d has not come", b)
		}
	}
	lo, hi := first*slice.BlockSize, (first+n)*slice.BlockSize
	if !bytes.Equal(s.data[lo:hi], s.of.data[lo:hi]) {
		s.t.Fatalf("blocks %d to %d have come with another content", first, first+n)
	}
}

func (s *copyOf) count() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.came))
}

// open serves a memory at an origin and opens it at another host.
func (c *cluster) open(host, origin int, id ID, of *memory) (*Fetch, *copyOf) {
	c.t.Helper()
	to := newCopy(c.t, of)
	f, err := c.nodes[host].Open(origin, id, of.Size(), to)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(f.Close)
	return f, to
}

func (c *cluster) serve(origin int, of Source) ID {
	c.t.Helper()
	id := testID()
	if err := c.nodes[origin].Serve(id, of); err != nil {
		c.t.Fatal(err)
	}
	return id
}

// within is a context that no test is meant to use up.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func blocksFrom(first, n int64) func(yield func(int64) bool) {
	return func(yield func(int64) bool) {
		for b := first; b < first+n; b++ {
			if !yield(b) {
				return
			}
		}
	}
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
