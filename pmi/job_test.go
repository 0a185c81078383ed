package pmi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// job is a server, a proxy for each clone, and a client for each rank, all in memory.
type job struct {
	t       testing.TB
	group   Group
	server  *Server
	proxies []*Proxy
	ranks   []*client
	up      atomic.Int64 // messages from the proxies to the server
	down    atomic.Int64 // messages the other way, a batch of frames counting once

	spawns chan *SpawnRequest

	mu     sync.Mutex
	events []string

	runs, serves []chan error // of each clone
	ended        []chan error // of each rank
	cancel       context.CancelFunc
}

// counted counts writes, each of which is one message.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) { c.n.Add(1); return c.Conn.Write(b) }

// newJob starts clones of ranksEach ranks.
func newJob(t testing.TB, clones, ranksEach int) *job {
	t.Helper()
	return startJob(t, NewNames(), ranksEach, Group{
		Size: clones * ranksEach, KVSName: "kvs_7", UniverseSize: -1, Mapping: fmt.Sprintf("(vector,(0,%d,%d))", clones, ranksEach),
	})
}

// startJob starts a group on clones of ranksEach ranks.
func startJob(t testing.TB, names *Names, ranksEach int, g Group) *job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	j := &job{t: t, cancel: cancel, group: g, spawns: make(chan *SpawnRequest, g.Size)}
	j.server = NewServer(j.group, names, Events{
		Spawn:    func(r *SpawnRequest) { j.spawns <- r },
		Abort:    func(rank, code int, message string) { j.note("abort %d %d %q", rank, code, message) },
		Protocol: func(rank int, err error) { j.note("protocol %d %v", rank, err) },
		Init:     func(rank int) { j.note("init %d", rank) },
		Finalize: func(rank int) { j.note("finalize %d", rank) },
		Closed:   func(rank int, s State) { j.note("closed %d %s", rank, s) },
	})
	for first := 0; first < g.Size; first += ranksEach {
		var local []int
		for i := first; i < min(first+ranksEach, g.Size); i++ {
			local = append(local, i)
		}
		launcher, agent := net.Pipe()
		proxy := NewProxy(j.group, counted{agent, &j.up}, local)
		run, serve := make(chan error, 1), make(chan error, 1)
		go func() { serve <- j.server.Serve(ctx, counted{launcher, &j.down}, local) }()
		go func() { run <- proxy.Run(ctx) }()
		j.proxies, j.runs, j.serves = append(j.proxies, proxy), append(j.runs, run), append(j.serves, serve)
		for _, rank := range local {
			ours, theirs := net.Pipe()
			ended := make(chan error, 1)
			go func() { ended <- proxy.ServeRank(ctx, rank, theirs) }()
			j.ranks = append(j.ranks, &client{t: t, rank: rank, conn: ours, r: bufio.NewReader(ours)})
			j.ended = append(j.ended, ended)
		}
	}
	return j
}

// spawned waits for a rank's wish for a new group.
func (j *job) spawned() *SpawnRequest {
	j.t.Helper()
	select {
	case r := <-j.spawns:
		return r
	case <-time.After(10 * time.Second):
		j.t.Fatal("nothing was spawned in 10 s")
		return nil
	}
}

func (j *job) note(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, fmt.Sprintf(format, args...))
}

// seen returns the events that begin with prefix.
func (j *job) seen(prefix string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var found []string
	for _, e := range j.events {
		if strings.HasPrefix(e, prefix) {
			found = append(found, e)
		}
	}
	return found
}

// each runs f for every rank at once, as ranks do.
func (j *job) each(f func(c *client)) {
	j.t.Helper()
	var wg sync.WaitGroup
	for _, c := range j.ranks {
		wg.Go(func() { f(c) })
	}
	wg.Wait()
}

// finish expects that the job comes to a good end by itself.
func (j *job) finish() {
	j.t.Helper()
	for i, c := range j.ended {
		if err := within(j.t, c); err != nil {
			j.t.Errorf("rank %d: %v", i, err)
		}
	}
	for i := range j.runs {
		if err := within(j.t, j.runs[i]); err != nil {
			j.t.Errorf("proxy %d: %v", i, err)
		}
		if err := within(j.t, j.serves[i]); err != nil {
			j.t.Errorf("server of proxy %d: %v", i, err)
		}
	}
}

// within returns what c brings, soon.
func within(t testing.TB, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("still running after 10 s")
		return nil
	}
}

// client is a rank's side of PMI_FD.
type client struct {
	t    testing.TB
	rank int
	conn net.Conn
	r    *bufio.Reader
}

func (c *client) send(line string) {
	if _, err := io.WriteString(c.conn, line+"\n"); err != nil {
		c.t.Errorf("rank %d: send %.60q: %v", c.rank, line, err)
	}
}

// hear returns the next answer, "EOF" when the connection is closed.
func (c *client) hear() string {
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := c.r.ReadString('\n')
	if err == io.EOF {
		return "EOF"
	}
	if err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(line, "\n")
}

// packet sends a request in PMI-2's syntax.
func (c *client) packet(body string) {
	if _, err := fmt.Fprintf(c.conn, "%-6d%s", len(body), body); err != nil {
		c.t.Errorf("rank %d: send %.60q: %v", c.rank, body, err)
	}
}

// hearPacket returns the next answer in PMI-2's syntax, without its length.
func (c *client) hearPacket() string {
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	head := make([]byte, lengthSize)
	if _, err := io.ReadFull(c.r, head); err != nil {
		return err.Error()
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(head)))
	if err != nil {
		return err.Error()
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return err.Error()
	}
	return string(body)
}

func (c *client) expectPacket(body, want string) {
	c.t.Helper()
	c.packet(body)
	if got := c.hearPacket(); got != want {
		c.t.Errorf("rank %d: %.80q answered %q, want %q", c.rank, body, got, want)
	}
}

// init2 begins PMI-2.
func (c *client) init2(spawner string) {
	c.t.Helper()
	c.expect("cmd=init pmi_version=2 pmi_subversion=0", "cmd=response_to_init pmi_version=2 pmi_subversion=0 rc=0")
	c.packet(fmt.Sprintf("cmd=fullinit;pmirank=%d;threaded=FALSE;", c.rank))
	want := fmt.Sprintf(";rank=%d;size=", c.rank)
	if got := c.hearPacket(); !strings.Contains(got, want) || !strings.HasPrefix(got, "cmd=fullinit-response;pmi-version=2;pmi-subversion=0;") ||
		!strings.HasSuffix(got, ";rc=0;") || strings.Contains(got, "spawner-jobid="+spawner) != (spawner != "") {
		c.t.Errorf("rank %d: fullinit answered %q", c.rank, got)
	}
}

func (c *client) ask(line string) string { c.send(line); return c.hear() }

func (c *client) expect(line, want string) {
	c.t.Helper()
	if got := c.ask(line); got != want {
		c.t.Errorf("rank %d: %.80q answered %q, want %q", c.rank, line, got, want)
	}
}

const (
	hello        = "cmd=init pmi_version=1 pmi_subversion=1"
	helloBack    = "cmd=response_to_init pmi_version=1 pmi_subversion=2 rc=0"
	putDone      = "cmd=put_result rc=0 msg=success"
	foundPrefix  = "cmd=get_result rc=0 msg=success value="
	missedPrefix = "cmd=get_result rc=-1 msg=key_"
)

func (c *client) init()    { c.t.Helper(); c.expect(hello, helloBack) }
func (c *client) barrier() { c.t.Helper(); c.expect("cmd=barrier_in", "cmd=barrier_out") }
func (c *client) finalize() {
	c.t.Helper()
	c.expect("cmd=finalize", "cmd=finalize_ack")
	c.conn.Close()
}
func (c *client) put(key, value string) {
	c.t.Helper()
	c.expect("cmd=put kvsname=kvs_7 key="+key+" value="+value, putDone)
}
func (c *client) get(key string) string {
	answer := c.ask("cmd=get kvsname=kvs_7 key=" + key)
	if value, ok := strings.CutPrefix(answer, foundPrefix); ok {
		return value
	}
	if answer != missedPrefix+key+"_not_found value=unknown" {
		c.t.Errorf("rank %d: get %s answered %q", c.rank, key, answer)
	}
	return "(none)"
}
