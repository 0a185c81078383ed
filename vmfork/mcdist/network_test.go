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

// The tests in this file have a process for each host, in a network of its own. The process is this program again; it is
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

func percentile(times []time.Duration, p int) time.Duration {
	times = slices.Sorted(slices.Values(times))
	return times[min(len(times)*p/100, len(times)-1)].Round(10 * time.Microsecond)
}

func TestOverANetwork(t *testing.T) {
	for _, c := range []struct {
		name string
		mode Mode
		deaf bool
		line string
	}{
		{"unicast", Unicast, false, ""},
		{"tree", Tree, false, ""},
		{"multicast", Multicast, false, "multicast reaches 4 of 4 hosts: using multicast"},
		{"auto", Auto, false, "multicast reaches 4 of 4 hosts: using multicast"},
		{"auto without multicast", Auto, true, "multicast reaches 0 of 4 hosts: using tree"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := onHosts(t, testcluster.Options{Hosts: 5, Link: testcluster.Link{Rate: 1e9}, NoMulticast: c.deaf}, c.mode, 20000)
			if c.line != "" {
				if r := h.do(0, command{Do: "line"}); r.Line != c.line {
					t.Errorf("it was found that %q", r.Line)
				}
			}
			// Cut for a second, in the middle of everything.
			var ends []func() result
			for i := 1; i < 5; i++ {
				ends = append(ends, h.begin(i, command{Do: "prefetch", First: 0, N: 8000}))
				ends = append(ends, h.begin(i, command{Do: "bring", First: 10000, N: 8, Count: 100, Stride: 50, Pause: 5 * time.Millisecond}))
			}
			time.Sleep(50 * time.Millisecond)
			if err := h.cluster.Cut(2); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if err := h.cluster.Heal(2); err != nil {
				t.Fatal(err)
			}
			for _, end := range ends {
				end()
			}
			id := testID()
			object := command{Do: "publish", ID: hex.EncodeToString(id[:]), N: 500, To: []int{1, 2, 3, 4}}
			h.do(0, object)
			object.Do = "receive"
			h.all(object)
			for i, r := range h.all(command{Do: "count"}) {
				if i > 0 {
					got := int64(0)
					for _, f := range r.Counters.Received {
						got += f.Urgent.Blocks + f.Bulk.Blocks
					}
					if got < 8800 {
						t.Errorf("host %d counts %d blocks", i, got)
					}
				}
			}
		})
	}
}

// BenchmarkNetwork is five hosts at a switch: faults alone and beside bulk of all, bulk, a push, and an object.
func BenchmarkNetwork(b *testing.B) {
	for _, rate := range []int64{1e8, 1e9} {
		for _, mode := range []Mode{Unicast, Tree, Multicast} {
			b.Run(fmt.Sprintf("%v-%dMbit", mode, rate/1e6), func(b *testing.B) {
				for b.Loop() {
					benchmarkNetwork(b, rate, mode)
				}
			})
		}
	}
}

func benchmarkNetwork(b *testing.B, rate int64, mode Mode) {
	const blocks, bulkBlocks = 60000, 6000
	h := onHosts(b, testcluster.Options{Hosts: 5, Link: testcluster.Link{Rate: rate}}, mode, blocks)
	if mode == Multicast {
		h.all(command{Do: "listen"})
	}
	µs := func(times []time.Duration, p int, what string) {
		b.ReportMetric(float64(percentile(times, p))/1e3, what)
	}
	bring := command{Do: "bring", First: 20000, N: 1, Count: 200, Stride: 7, Pause: time.Millisecond}
	alone := h.do(1, bring).Each
	µs(alone, 50, "fault-p50-µs")
	µs(alone, 99, "fault-p99-µs")

	before := sentBy(h)
	var ends []func() result
	for i := 1; i < 5; i++ {
		ends = append(ends, h.begin(i, command{Do: "prefetch", N: bulkBlocks}))
	}
	bring.First, bring.Count = 30000, 100
	beside := h.do(1, bring).Each
	µs(beside, 50, "beside-p50-µs")
	µs(beside, 90, "beside-p90-µs")
	took := time.Duration(0)
	for _, end := range ends {
		took = max(took, end().Took)
	}
	figures := func(what string, before [2]int64, took time.Duration) {
		after := sentBy(h)
		b.ReportMetric(took.Seconds(), what+"-s")
		b.ReportMetric(float64(after[0]-before[0])/1e6, what+"-origin-MB")
		b.ReportMetric(float64(after[1]-before[1])/1e6, what+"-all-MB")
	}
	figures("bulk", before, took)

	before, start := sentBy(h), time.Now()
	h.do(0, command{Do: "push", First: 40000, N: bulkBlocks, To: []int{1, 2, 3, 4}})
	for i := 2; i < 5; i++ {
		ends[i-1] = h.begin(i, command{Do: "await", N: 2 * bulkBlocks})
	}
	for _, end := range ends[1:] {
		end()
	}
	figures("push", before, time.Since(start))

	id := testID()
	object := command{Do: "publish", ID: hex.EncodeToString(id[:]), N: 1000, To: []int{1, 2, 3, 4}}
	before, start = sentBy(h), time.Now()
	h.do(0, object)
	object.Do = "receive"
	h.all(object)
	figures("object", before, time.Since(start))
}

// sentBy is what the origin has sent, and what all hosts have, in bytes.
func sentBy(h *hosts) (sent [2]int64) {
	for i, host := range h.cluster.Hosts() {
		t, err := host.Traffic()
		if err != nil {
			h.t.Fatal(err)
		}
		if i == 0 {
			sent[0] = t.SentBytes
		}
		sent[1] += t.SentBytes
	}
	return sent
}
