package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// fakeHost is the host's end of a session, which answers what its handler says.
type fakeHost struct {
	handler api.HandlerFunc
	arrived chan string // the names of calls, as they come

	mu    sync.Mutex
	conns []net.Conn
}

func newFakeHost(h api.HandlerFunc) *fakeHost {
	return &fakeHost{handler: h, arrived: make(chan string, 100)}
}

// open is a stream to it.
func (h *fakeHost) open() (net.Conn, error) {
	host, guest := net.Pipe()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, host)
	go func() {
		name, err := ReadCallName(host)
		if err != nil {
			host.Close()
			return
		}
		h.arrived <- name
		api.ServeConn(context.Background(), host, h.handler)
	}()
	return guest, nil
}

// hangUp breaks the session.
func (h *fakeHost) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		c.Close()
	}
}

// next is the name of the call that arrives next.
func (h *fakeHost) next(t *testing.T) string {
	t.Helper()
	select {
	case name := <-h.arrived:
		return name
	case <-soon(t).Done():
		t.Fatal("waited 20 s for a call to arrive at the host")
		return ""
	}
}

// silent is a host that never answers.
func silent(ctx context.Context, _ api.Request) api.Reply {
	<-ctx.Done()
	return api.FailWith(ctx.Err())
}

// testCalls are the calls of a VM that is no clone, with a host behind it.
func testCalls(h *fakeHost) *calls {
	c := &calls{pending: map[*pendingCall]bool{}}
	c.become(testIdentity(0, "", Fork{}), h.open)
	return c
}

func testIdentity(clone int, ticket string, fork Fork) Identity {
	plan := network.NewPlan("a job")
	return Identity{
		Clone: clone, Ticket: ticket, Member: clone + 10, Name: plan.Name(clone + 10), Host: "here", VCPUs: 2,
		Network: plan.Guest(clone+10, nil), Fork: fork,
	}
}

// under makes a call in the background.
func under(ctx context.Context, c *calls, call string, args ...string) <-chan api.Reply {
	reply := make(chan api.Reply, 1)
	go func() { reply <- c.Call(ctx, api.NewRequest(call, args...)) }()
	return reply
}

func line(r api.Reply) string {
	b, err := r.Line()
	if err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(string(b), "\n")
}

// answered waits for a reply.
func answered(t *testing.T, reply <-chan api.Reply) string {
	t.Helper()
	select {
	case r := <-reply:
		return line(r)
	case <-soon(t).Done():
		t.Fatal("waited 20 s for a reply")
		return ""
	}
}

// waiting waits until so many calls are under way.
func waiting(t *testing.T, c *calls, n int) {
	t.Helper()
	for ; ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		got := len(c.pending)
		c.mu.Unlock()
		if got == n {
			return
		}
		if soon(t).Err() != nil {
			t.Fatalf("%d calls are under way, want %d", got, n)
		}
	}
}

func TestWhoami(t *testing.T) {
	h := newFakeHost(func(_ context.Context, r api.Request) api.Reply { return api.OK("asked", r.Value("vm")) })
	c := testCalls(h)
	const self = "ok id=0 member=10 name=clone-10 ip=" // the agent knows
	for _, args := range [][]string{nil, {"vm", "clone-10"}} {
		if got := line(c.Call(soon(t), api.NewRequest(api.Whoami, args...))); !strings.HasPrefix(got, self) || !strings.HasSuffix(got, " vcpus=2 host=here") {
			t.Errorf("whoami %v: %s", args, got)
		}
	}
	if len(h.arrived) > 0 {
		t.Error("the host was asked")
	}
	if got := line(c.Call(soon(t), api.NewRequest(api.Whoami, "vm", "clone-2"))); got != "ok asked=clone-2" {
		t.Errorf("of another VM: %s", got)
	}
}

// Every call goes to the host, with a name if it can fork this VM.
func TestForwarding(t *testing.T) {
	h := newFakeHost(func(_ context.Context, r api.Request) api.Reply {
		if r.Call == api.Kill {
			return api.LostReply([]int{2}, map[int]int{1: 3}, "no")
		}
		return api.OK("call", r.Call, "ticket", r.Value("ticket"))
	})
	c := testCalls(h)
	names := map[string]bool{}
	for _, call := range []struct {
		call  string
		args  []string
		named bool
		want  string
	}{
		{api.Clone, []string{"ticket", "t1"}, true, "ok call=clone ticket=t1"},
		{api.Clone, []string{"ticket", "t1"}, true, ""},
		{api.Clone, []string{"ticket", "t1", "vm", "clone-10"}, true, ""}, // which is this one
		{api.Clone, []string{"ticket", "t1", "vm", "clone-3"}, false, ""},
		{api.CheckpointParent, nil, true, "ok call=checkpoint-parent ticket="},
		{api.CreateClones, []string{"checkpoint", "c1", "ticket", "t1"}, false, "ok call=create-clones ticket=t1"},
		{api.RequestTicket, []string{"clones", "3"}, false, "ok call=request-ticket ticket="},
		{api.Join, []string{"ticket", "t1"}, false, "ok call=join ticket=t1"},
		{api.List, nil, false, "ok call=list ticket="},
		{api.Kill, []string{"ticket", "t1"}, false, "error kind=lost text=no clone=2 status=1:3"},
	} {
		got := line(c.Call(soon(t), api.NewRequest(call.call, call.args...)))
		if call.want != "" && got != call.want {
			t.Errorf("%s %v: %s, want %s", call.call, call.args, got, call.want)
		}
		name := h.next(t)
		if (name != "") != call.named || call.named && names[name] {
			t.Errorf("%s %v has the name %q", call.call, call.args, name)
		}
		names[name] = true
	}
	waiting(t, c, 0)
}

func TestNobodyBehindIt(t *testing.T) {
	c := &calls{pending: map[*pendingCall]bool{}}
	if got := c.Call(soon(t), api.NewRequest(api.Whoami)); got.Err == nil || got.Err.Kind != api.KindUnavailable {
		t.Errorf("before there is a session: %s", line(got))
	}
	c.become(testIdentity(0, "", Fork{}), func() (net.Conn, error) { return nil, errors.New("it is over") })
	if got := line(c.Call(soon(t), api.NewRequest(api.List))); got != "error kind=unavailable text=the%20host%20daemon%20does%20not%20answer:%20it%20is%20over" {
		t.Errorf("a session that is over: %s", got)
	}
	h := newFakeHost(silent)
	c = testCalls(h)
	reply := under(t.Context(), c, api.List)
	h.next(t)
	h.hangUp()
	if got := answered(t, reply); !strings.HasPrefix(got, "error kind=unavailable text=the%20host%20daemon%20does%20not%20answer") {
		t.Errorf("a host that hung up: %s", got)
	}
	waiting(t, c, 0)
}

// await-fork waits here, and never asks the host.
func TestAwaitFork(t *testing.T) {
	h := newFakeHost(silent)
	c := testCalls(h)
	ctx, cancel := context.WithCancel(t.Context())
	reply := under(ctx, c, api.AwaitFork)
	waiting(t, c, 1)
	select {
	case r := <-reply:
		t.Fatalf("await-fork returned %s", line(r))
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if got := answered(t, reply); !strings.HasPrefix(got, "error kind=timeout") {
		t.Errorf("given up, it returned %s", got)
	}
	waiting(t, c, 0)
	if len(h.arrived) > 0 {
		t.Error("the host was asked")
	}
}

// A caller that goes away ends its call at the host.
func TestCallGivenUp(t *testing.T) {
	begun, ended := make(chan bool, 1), make(chan bool, 1)
	h := newFakeHost(func(ctx context.Context, _ api.Request) api.Reply {
		begun <- true
		<-ctx.Done()
		ended <- true
		return api.Reply{}
	})
	c := testCalls(h)
	ctx, cancel := context.WithCancel(t.Context())
	reply := under(ctx, c, api.Join, "ticket", "t1")
	<-begun
	cancel()
	answered(t, reply)
	select {
	case <-ended:
	case <-soon(t).Done():
		t.Error("waited 20 s for the host's call to end")
	}
	waiting(t, c, 0)
}

// What the copies of all kinds of calls return in a clone, whichever process's
// fork made it.
func TestCallsInAClone(t *testing.T) {
	for name, c := range map[string]struct {
		mine       string // the call that made the clone
		checkpoint string
		want       map[string]string
	}{
		"by clone": {api.Clone, "", map[string]string{
			api.Clone: "ok id=3", api.CheckpointParent: "error kind=cloned", api.AwaitFork: "ok id=3 ticket=t9",
			api.Join: "error kind=cloned", api.CreateClones: "error kind=cloned", "another clone": "error kind=cloned",
		}},
		"by checkpoint-parent": {api.CheckpointParent, "c7", map[string]string{
			api.Clone: "error kind=cloned", api.CheckpointParent: "ok checkpoint=c7 id=3 ticket=t9", api.AwaitFork: "ok id=3 ticket=t9",
			api.Join: "error kind=cloned", api.CreateClones: "error kind=cloned", "another clone": "error kind=cloned",
		}},
		"by the host": {"", "", map[string]string{
			api.Clone: "error kind=cloned", api.CheckpointParent: "error kind=cloned", api.AwaitFork: "ok id=3 ticket=t9",
			api.Join: "error kind=cloned", api.CreateClones: "error kind=cloned", "another clone": "error kind=cloned",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHost(silent)
			calls := testCalls(h)
			replies := map[string]<-chan api.Reply{}
			fork := Fork{Checkpoint: c.checkpoint}
			for _, call := range []struct {
				name, call string
				args       []string
			}{
				{api.Clone, api.Clone, []string{"ticket", "t9"}},
				{"another clone", api.Clone, []string{"ticket", "t9"}},
				{api.CheckpointParent, api.CheckpointParent, nil},
				{api.Join, api.Join, []string{"ticket", "t1"}},
				{api.CreateClones, api.CreateClones, []string{"ticket", "t1", "checkpoint", "c1"}},
			} {
				replies[call.name] = under(t.Context(), calls, call.call, call.args...)
				if named := h.next(t); call.name == c.mine {
					fork.Call = named
				}
			}
			replies[api.AwaitFork] = under(t.Context(), calls, api.AwaitFork)
			waiting(t, calls, 6)
			calls.pause()
			h.hangUp() // the session is the parent's
			time.Sleep(20 * time.Millisecond)
			for name, reply := range replies {
				select {
				case r := <-reply:
					t.Errorf("before the clone knows who it is, %s returned %s", name, line(r))
				default:
				}
			}
			if got := calls.Call(soon(t), api.NewRequest(api.Whoami)); got.Err == nil || got.Err.Kind != api.KindCloned {
				t.Errorf("a call that came meanwhile returned %s", line(got))
			}
			next := newFakeHost(func(context.Context, api.Request) api.Reply { return api.OK("host", "next") })
			calls.become(testIdentity(3, "t9", fork), next.open)
			for name, reply := range replies {
				if got := answered(t, reply); !strings.HasPrefix(got, c.want[name]) || c.want[name][:2] == "ok" && got != c.want[name] {
					t.Errorf("%s returned %s, want %s", name, got, c.want[name])
				}
			}
			waiting(t, calls, 0)
			if got := line(calls.Call(soon(t), api.NewRequest(api.List))); got != "ok host=next" {
				t.Errorf("a call of the clone's own: %s", got)
			}
			if got := line(calls.Call(soon(t), api.NewRequest(api.Whoami))); !strings.HasPrefix(got, "ok id=3 member=13 name=clone-13 ") || !strings.HasSuffix(got, " ticket=t9") {
				t.Errorf("the clone is %s", got)
			}
		})
	}
}

// A call that was answered just before the copy was made has that answer.
func TestAnsweredJustBefore(t *testing.T) {
	c := testCalls(newFakeHost(silent))
	p := &pendingCall{Request: api.NewRequest(api.Join, "ticket", "t1"), returned: make(chan api.Reply, 1)}
	c.mu.Lock()
	c.pending[p] = true
	c.mu.Unlock()
	p.returned <- api.OK("just", "before")
	c.pause()
	done := make(chan bool)
	go func() {
		c.become(testIdentity(1, "t1", Fork{}), nil)
		close(done)
	}()
	select {
	case <-done:
	case <-soon(t).Done():
		t.Fatal("waited 20 s for the calls to be answered")
	}
	if got := answered(t, p.returned); got != "ok just=before" {
		t.Errorf("it returned %s", got)
	}
}

// The session breaks while the clone becomes itself: no call is ever answered
// by that.
func TestBreakingSessionAgainstBecome(t *testing.T) {
	for range 100 {
		h := newFakeHost(silent)
		c := testCalls(h)
		var replies []<-chan api.Reply
		for range 4 {
			replies = append(replies, under(t.Context(), c, api.Clone, "ticket", "t1"))
		}
		var mine string
		for range 4 {
			mine = h.next(t)
		}
		c.pause()
		broken := make(chan bool)
		go func() { h.hangUp(); close(broken) }()
		c.become(testIdentity(2, "t1", Fork{Call: mine}), newFakeHost(silent).open)
		<-broken
		var ids, cloned int
		for _, reply := range replies {
			switch got := answered(t, reply); {
			case got == "ok id=2":
				ids++
			case strings.HasPrefix(got, "error kind=cloned"):
				cloned++
			default:
				t.Fatalf("a call returned %s", got)
			}
		}
		if ids != 1 || cloned != 3 {
			t.Fatalf("%d calls returned the id, and %d are the parent's", ids, cloned)
		}
	}
}

// The socket, from a process's side.
func TestCallsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sf.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // an agent's before
		t.Fatal(err)
	}
	c, err := serveCalls(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v (%v)", st.Mode(), err)
	}
	c.become(testIdentity(0, "", Fork{}), newFakeHost(silent).open)
	conn, err := api.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := conn.Do(soon(t), api.NewRequest(api.Whoami))
	if err != nil {
		t.Fatal(err)
	}
	if i, err := r.Identity(); err != nil || i.Name != "clone-10" {
		t.Errorf("the socket's VM is %+v (%v)", i, err)
	}
	if _, err := serveCalls(filepath.Join(t.TempDir(), "no", "such", "folder")); err == nil || !strings.HasPrefix(err.Error(), "listen for calls: ") {
		t.Errorf("in a folder that is not there: %v", err)
	}
}

func TestReadCallName(t *testing.T) {
	for in, want := range map[string]string{"\x00rest": "", "\x03abcrest": "abc", "": "EOF", "\x03ab": "unexpected EOF"} {
		r := strings.NewReader(in)
		got, err := ReadCallName(r)
		if strings.HasSuffix(want, "EOF") {
			if err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%q: %q (%v), want %s", in, got, err, want)
			}
			continue
		}
		if rest, _ := io.ReadAll(r); err != nil || got != want || string(rest) != "rest" {
			t.Errorf("%q: %q (%v), and then %q", in, got, err, rest)
		}
	}
}

func FuzzReadCallName(f *testing.F) {
	f.Add([]byte("\x00clone ticket=x\n"))
	f.Add([]byte("\x03abc"))
	f.Add([]byte("\xffabc"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		name, err := ReadCallName(r)
		if err == nil && (len(name) != int(in[0]) || r.Len() != len(in)-1-len(name)) {
			t.Errorf("%q: %q", in, name)
		}
	})
}
