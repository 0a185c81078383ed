// Package apitest has a server of the VM fork protocol that forks nothing, for
// tests of those who speak it.
package apitest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// A Server answers at Socket as a daemon would whose clones all exit at once.
// It is safe for concurrent use.
type Server struct {
	Socket string

	mu       sync.Mutex
	self     api.Identity
	tickets  map[string]*ticket.Ticket
	cloned   map[string]bool
	points   map[string]bool // checkpoints
	statuses map[int]int
	handlers map[string]api.HandlerFunc
	calls    []string
	next     int
}

// Start starts a server for a test. Until it is told otherwise it is in the
// first machine of a job, and every clone exits with 0.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		Socket:   filepath.Join(t.TempDir(), "sf.sock"),
		self:     api.Identity{Name: "parent", IP: netip.MustParseAddr("10.7.0.1"), VCPUs: 1, Host: "host"},
		tickets:  map[string]*ticket.Ticket{},
		cloned:   map[string]bool{},
		points:   map[string]bool{},
		statuses: map[int]int{},
		handlers: map[string]api.HandlerFunc{},
	}
	l, err := net.Listen("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			connections.Go(func() {
				if err := api.ServeConn(ctx, conn, s); err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("serve a connection: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		connections.Wait()
	})
	return s
}

// Be makes the server answer as one in a clone would: i.ID is what a call of
// clone returns.
func (s *Server) Be(i api.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self = i
}

// Exits says with which status clone id will have exited.
func (s *Server) Exits(id, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.statuses[id] = status
}

// On answers a call with h from now on.
func (s *Server) On(call string, h api.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[call] = h
}

// Calls are the lines of all calls so far.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// Call implements [api.Handler].
func (s *Server) Call(ctx context.Context, r api.Request) api.Reply {
	s.mu.Lock()
	line, _ := r.Line()
	s.calls = append(s.calls, strings.TrimSuffix(string(line), "\n"))
	if h := s.handlers[r.Call]; h != nil {
		s.mu.Unlock()
		return h(ctx, r)
	}
	// A fork that never comes, and a call that is not answered.
	if r.Call == api.AwaitFork && s.self.ID == 0 || r.Call == api.Exit && r.Value("vm") == "" && s.self.ID != 0 {
		s.mu.Unlock()
		<-ctx.Done()
		return api.FailWith(context.Cause(ctx))
	}
	defer s.mu.Unlock()
	return s.answer(r)
}

// answer is called with mu held.
func (s *Server) answer(r api.Request) api.Reply {
	id := r.Value("ticket")
	t := s.tickets[id]
	if id != "" && t == nil {
		return api.Fail(api.KindUnknown, "there is no ticket %s", id)
	}
	point := r.Value("checkpoint")
	if point != "" && !s.points[point] {
		return api.Fail(api.KindUnknown, "there is no checkpoint %s", point)
	}
	switch r.Call {
	case api.Whoami:
		return s.self.Reply()
	case api.RequestTicket:
		return api.TicketReply(*s.grant(r))
	case api.ShowTicket:
		return api.TicketReply(*t)
	case api.Clone, api.CreateClones:
		if s.cloned[id] {
			return api.Fail(api.KindState, "ticket %s has made its clones", id)
		}
		s.cloned[id] = true
		return api.IDReply(s.self.ID)
	case api.CheckpointParent:
		s.next++
		point = fmt.Sprintf("c%d", s.next)
		s.points[point] = true
		return api.CheckpointReply(point, s.self.ID, s.self.Ticket)
	case api.Discard:
		delete(s.points, point)
		return api.OK()
	case api.Exit:
		if r.Value("vm") == "" && s.self.ID == 0 {
			return api.Fail(api.KindRefused, "this machine is no clone")
		}
		return api.OK()
	case api.Join:
		statuses := map[int]int{}
		for _, c := range t.Clones {
			statuses[c.ID] = s.statuses[c.ID]
		}
		delete(s.tickets, id)
		return api.JoinReply(statuses)
	case api.Kill:
		if r.Int("clone", 0) == 0 {
			delete(s.tickets, id)
		}
		return api.OK()
	case api.AwaitFork:
		return api.ForkReply(s.self.ID, s.self.Ticket)
	case api.List:
		return api.ListReply([]api.Machine{{Name: s.self.Name, Member: s.self.Member, IP: s.self.IP, Parent: -1, Ticket: s.self.Ticket, ID: s.self.ID}})
	}
	return api.Fail(api.KindInvalid, "the test's server does not know %s", r.Call)
}

// grant grants all that is asked for. Hierarchical clones have two virtual
// CPUs, but for the last when n is odd.
func (s *Server) grant(r api.Request) *ticket.Ticket {
	s.next++
	n := r.Int("clones", 0)
	each, left := r.Int("vcpus", 1), n*r.Int("vcpus", 1)
	if r.Int("hierarchical", 0) == 1 {
		each, left = r.Int("vcpus", 2), n
	}
	t := &ticket.Ticket{ID: fmt.Sprintf("t%d", s.next), Asked: n}
	ip := s.self.IP
	for id := 1; left > 0; id++ {
		ip = ip.Next()
		vcpus := min(each, left)
		left -= vcpus
		t.Clones = append(t.Clones, ticket.Clone{ID: id, Name: fmt.Sprintf("clone-%d", id), IP: ip, VCPUs: vcpus, Host: "host"})
	}
	s.tickets[t.ID] = t
	return t
}
