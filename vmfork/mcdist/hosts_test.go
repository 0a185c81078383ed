package mcdist

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// Some tests have a process for each host, in a network of its own. The process is this program again; it is
// told what to do by a line on its input, and answers with a line.

const hostVariable = "MCDIST_TEST_HOST"

func TestMain(m *testing.M) {
	if text := os.Getenv(hostVariable); text != "" {
		if err := beHost(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// setting is what a host's process is told first.
type setting struct {
	Self      int
	Addresses []netip.Addr
	Mode      Mode
}

// command is a line.
type command struct {
	Do     string
	ID     string
	Blocks int64         // of the slice
	First  int64         // the first block
	N      int64         // blocks: all of a prefetch, of one Bring
	Count  int           // Brings
	Stride int64         // blocks between them
	Pause  time.Duration // between them
	To     []int
}

// result is the answer.
type result struct {
	Err      string
	Took     time.Duration
	Each     []time.Duration // how long each Bring took
	Line     string
	Counters Counters
}

const testPort = 7077

func beHost(text string) error {
	var s setting
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	l, err := net.Listen("tcp4", netip.AddrPortFrom(s.Addresses[s.Self], testPort).String())
	if err != nil {
		return err
	}
	lines := make(chan string, 100)
	config := Config{Self: s.Self, Mode: s.Mode, Key: [32]byte{3}, Notice: func(line string) { lines <- line }}
	for i, a := range s.Addresses {
		config.Hosts = append(config.Hosts, Host{fmt.Sprintf("host%d", i), a})
	}
	config.Dial = func(ctx context.Context, to int) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(s.Addresses[to], testPort).String())
		if err == nil {
			_, err = conn.Write([]byte{byte(s.Self)})
		}
		return conn, err
	}
	node, err := New(context.Background(), config)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var from [1]byte
			if _, err := conn.Read(from[:]); err == nil {
				node.Accept(conn, int(from[0]))
			}
		}
	}()
	h := &testHost{node: node, lines: lines, fetches: map[string]*Fetch{}}
	in := json.NewDecoder(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	var mu sync.Mutex
	for {
		var numbered struct {
			Number int
			command
		}
		if err := in.Decode(&numbered); err != nil {
			return nil // the test ends
		}
		go func() {
			start := time.Now()
			r := result{}
			if err := h.do(numbered.command, &r); err != nil {
				r.Err = err.Error()
			}
			r.Took = time.Since(start)
			r.Counters = node.Counters()
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(struct {
				Number int
				result
			}{numbered.Number, r})
		}()
	}
}

type testHost struct {
	node  *Node
	lines chan string

	mu      sync.Mutex
	fetches map[string]*Fetch
}

// checked is a sink that compares what comes with what should.
type checked struct{ of *repeated }

func (c checked) Arrive(p []byte, first int64) error {
	want := make([]byte, len(p))
	if err := c.of.ReadBlocks(want, first); err != nil {
		return err
	}
	if !slices.Equal(p, want) {
		return fmt.Errorf("block %d has another content", first)
	}
	return nil
}

// ReadBlocks and Size make it a source for relays.
func (c checked) ReadBlocks(dst []byte, first int64) error { return c.of.ReadBlocks(dst, first) }
func (c checked) Size() int64                              { return c.of.Size() }

func (h *testHost) do(c command, r *result) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var id ID
	if _, err := hex.Decode(id[:], []byte(c.ID)); err != nil {
		return err
	}
	h.mu.Lock()
	f := h.fetches[c.ID]
	h.mu.Unlock()
	if f == nil && (c.Do == "bring" || c.Do == "prefetch" || c.Do == "await" || c.Do == "listen") {
		return errors.New("it is not open")
	}
	switch c.Do {
	case "serve":
		return h.node.Serve(id, &repeated{newMemory(4096), c.Blocks})
	case "open":
		f, err := h.node.Open(0, id, c.Blocks*slice.BlockSize, checked{&repeated{newMemory(4096), c.Blocks}})
		h.mu.Lock()
		h.fetches[c.ID] = f
		h.mu.Unlock()
		return err
	case "listen":
		for f.cast.Load() == nil {
			time.Sleep(time.Millisecond)
		}
	case "bring":
		for i := range int64(c.Count) {
			start := time.Now()
			if err := f.Bring(ctx, c.First+i*c.Stride, c.N); err != nil {
				return err
			}
			r.Each = append(r.Each, time.Since(start))
			time.Sleep(c.Pause)
		}
	case "prefetch":
		return f.Prefetch(ctx, blocksFrom(c.First, c.N))
	case "publish":
		return h.node.Publish(id, newMemory(int(c.N)).data, c.To)
	case "receive":
		data, err := h.node.Receive(ctx, 0, id)
		if err == nil && !slices.Equal(data, newMemory(int(c.N)).data) {
			err = errors.New("the object has another content")
		}
		return err
	case "await":
		for !f.arrived(c.N) {
			time.Sleep(time.Millisecond)
		}
	case "push":
		return h.node.Push(id, c.To, slices.Collect(blocksFrom(c.First, c.N)))
	case "line":
		select {
		case r.Line = <-h.lines:
		case <-ctx.Done():
			return errors.New("no notice came")
		}
	case "count":
	default:
		return fmt.Errorf("unknown command %s", c.Do)
	}
	return nil
}

// arrived reports whether so many blocks have come.
func (f *Fetch) arrived(n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(f.have.Count()) >= n
}

// hosts is the test's side.
type hosts struct {
	t       testing.TB
	cluster *testcluster.Cluster
	members []*member
	id      string
	blocks  int64
}

type member struct {
	mu      sync.Mutex
	in      *json.Encoder
	number  int
	waiting map[int]chan result
}

// onHosts starts a node on each host of a cluster; the first serves a slice, which the others open.
func onHosts(t testing.TB, options testcluster.Options, mode Mode, blocks int64) *hosts {
	t.Helper()
	id := testID()
	h := &hosts{t: t, cluster: testcluster.ForTest(t, options), id: hex.EncodeToString(id[:]), blocks: blocks}
	s := setting{Mode: mode}
	for _, host := range h.cluster.Hosts() {
		s.Addresses = append(s.Addresses, host.Address)
	}
	for i, host := range h.cluster.Hosts() {
		s.Self = i
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := host.Command(context.Background(), self)
		cmd.Env = append(host.Environ(), hostVariable+"="+string(text))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			_ = cmd.Wait()
		})
		m := &member{in: json.NewEncoder(in), waiting: map[int]chan result{}}
		h.members = append(h.members, m)
		go m.answers(bufio.NewReader(out))
	}
	h.all(command{Do: "count"}) // they are there
	h.do(0, command{Do: "serve"})
	for i := 1; i < len(h.members); i++ {
		h.do(i, command{Do: "open"})
	}
	return h
}

func (m *member) answers(out *bufio.Reader) {
	d := json.NewDecoder(out)
	for {
		var r struct {
			Number int
			result
		}
		if err := d.Decode(&r); err != nil {
			m.mu.Lock()
			for _, c := range m.waiting {
				c <- result{Err: "the host's process ended"}
			}
			m.waiting = map[int]chan result{}
			m.mu.Unlock()
			return
		}
		m.mu.Lock()
		c := m.waiting[r.Number]
		delete(m.waiting, r.Number)
		m.mu.Unlock()
		c <- r.result
	}
}

// begin gives a host a command, and returns what waits for it.
func (h *hosts) begin(host int, c command) (end func() result) {
	if c.ID == "" {
		c.ID = h.id
	}
	c.Blocks = h.blocks
	m := h.members[host]
	done := make(chan result, 1)
	m.mu.Lock()
	m.number++
	m.waiting[m.number] = done
	err := m.in.Encode(struct {
		Number int
		command
	}{m.number, c})
	m.mu.Unlock()
	if err != nil {
		h.t.Errorf("tell host %d: %v", host, err)
	}
	return func() result {
		h.t.Helper()
		select {
		case r := <-done:
			if r.Err != "" {
				h.t.Errorf("host %d: %s: %s", host, c.Do, r.Err)
			}
			return r
		case <-time.After(3 * time.Minute):
			h.t.Fatalf("host %d does not answer", host)
			return result{}
		}
	}
}

func (h *hosts) do(host int, c command) result {
	h.t.Helper()
	return h.begin(host, c)()
}

// all gives all hosts the same command; the receivers only, if it is one for them.
func (h *hosts) all(c command) (results []result) {
	h.t.Helper()
	var ends []func() result
	for i := range h.members {
		if i > 0 || c.Do == "count" {
			ends = append(ends, h.begin(i, c))
		}
	}
	for _, end := range ends {
		results = append(results, end())
	}
	return results
}
