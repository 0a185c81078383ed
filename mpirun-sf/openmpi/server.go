package openmpi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// Clone is where one of Open MPI's daemons runs.
type Clone struct {
	Name  string
	IP    netip.Addr // on the private network
	Slots int        // ranks
	// SSH begins a conversation with the clone's SSH server.
	SSH func(ctx context.Context, c agent.SSH) (net.Conn, error)
}

// Job is what one launcher of Open MPI needs of clones.
type Job struct {
	Clones  []Clone
	Network netip.Prefix // of the clones
	Login   agent.Login  // of daemons, and so of ranks
	// Listener is where clones reach this process; a connection's remote address
	// is its clone's. It is the server's from Serve on.
	Listener net.Listener
	// Limit is how long a daemon may take to connect.
	Limit time.Duration
}

const (
	// helloLimit is how long an agent may take to say what it is for.
	helloLimit = 30 * time.Second
	// sshLimit is how long a clone may take to begin a conversation.
	sshLimit = 60 * time.Second
	// dialLimit is how long the launcher, on this machine, may take to accept.
	dialLimit = 10 * time.Second
	// closeLimit is how long ended connections may take to be gone.
	closeLimit = 5 * time.Second
	// maxConnections is how many connections a clone may have at a time. A daemon
	// has one, and another while it tries again.
	maxConnections = 4
)

// Server serves remote shell agents, and the daemons that they have started.
type Server struct {
	job    Job
	keys   keys
	secret Secret
	ctx    context.Context
	cancel context.CancelFunc
	agents net.Listener
	work   sync.WaitGroup

	mu       sync.Mutex // guards all below
	launcher netip.AddrPort
	open     map[netip.Addr]int  // connections under way, by clone
	met      map[netip.Addr]bool // clones whose daemon has connected
	all      chan struct{}       // closed when all have
	late     chan error
}

// Serve begins to serve. ctx is the server's life.
func (j Job) Serve(ctx context.Context) (*Server, error) {
	k, err := newKeys()
	if err != nil {
		return nil, fmt.Errorf("serve Open MPI's agents: %w", err)
	}
	s := &Server{
		job: j, keys: k, secret: Secret{Name: "mpirun-sf-ompi-" + rand.Text(), Token: rand.Text()},
		open: map[netip.Addr]int{}, met: map[netip.Addr]bool{}, all: make(chan struct{}),
		late: make(chan error, len(j.Clones)),
	}
	// A name that has no file vanishes with this process, however it ends.
	if s.agents, err = net.Listen("unix", "@"+s.secret.Name); err != nil {
		return nil, fmt.Errorf("serve Open MPI's agents: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	context.AfterFunc(s.ctx, func() { s.agents.Close(); s.job.Listener.Close() })
	s.work.Go(func() { s.accept(s.agents, s.serveAgent) })
	s.work.Go(func() { s.accept(s.job.Listener, s.serveDaemon) })
	return s, nil
}

// Secret is what agents must have in their environment.
func (s *Server) Secret() Secret { return s.secret }

// All is closed when the daemons of all clones have connected.
func (s *Server) All() <-chan struct{} { return s.all }

// Late delivers that a daemon was started and has not connected in time.
func (s *Server) Late() <-chan error { return s.late }

func (s *Server) notConnected(names []string) error {
	return fmt.Errorf("%s: Open MPI's daemon did not connect in %v; is this machine overloaded? --start-timeout gives more time", strings.Join(names, ", "), s.job.Limit)
}

// missing are the names of clones whose daemon has not connected yet.
func (s *Server) missing() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.job.Clones {
		if !s.met[c.IP] {
			names = append(names, c.Name)
		}
	}
	return names
}

// Close ends all connections: to the launcher, all of its daemons are gone.
func (s *Server) Close() {
	s.cancel()
	done := make(chan struct{})
	go func() { s.work.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(closeLimit): // what is left ends with this process
	}
}

// accept gives each connection to serve, which closes it.
func (s *Server) accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		switch {
		case s.ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // there are no descriptors, or it was gone already
			select {
			case <-time.After(10 * time.Millisecond):
			case <-s.ctx.Done():
			}
			continue
		}
		s.work.Go(func() {
			stop := context.AfterFunc(s.ctx, func() { hangUp(conn) })
			defer stop()
			defer conn.Close()
			serve(conn)
		})
	}
}

// serveAgent leads a remote shell agent to its clone.
func (s *Server) serveAgent(conn net.Conn) {
	if err := checkPeer(conn.(*net.UnixConn), s.job.Login.User.UID); err != nil {
		return // whoever it is learns nothing
	}
	conn.SetDeadline(time.Now().Add(helloLimit))
	h, err := readHello(conn)
	if err != nil || !s.secret.admits(h.Token) {
		return
	}
	guest, a, err := s.lead(h)
	if err != nil {
		writeLine(conn, answer{Error: err.Error()})
		return
	}
	defer guest.Close()
	stop := context.AfterFunc(s.ctx, func() { hangUp(guest) })
	defer stop()
	if writeLine(conn, a) != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	late := time.AfterFunc(s.job.Limit, func() {
		if slices.Contains(s.missing(), h.Host) {
			select {
			case s.late <- s.notConnected([]string{h.Host}):
			default:
			}
		}
	})
	defer late.Stop()
	join(conn, guest)
}

// lead begins a conversation with the clone that an agent wants.
func (s *Server) lead(h hello) (net.Conn, answer, error) {
	fail := func(err error) (net.Conn, answer, error) { return nil, answer{}, err }
	clone := s.clone(func(c Clone) bool { return c.Name == h.Host })
	if clone == nil {
		return fail(fmt.Errorf("%s is no clone of this job: Open MPI's daemons run in its clones alone", h.Host))
	}
	d, u, err := daemonOf(h.Command)
	if err != nil {
		return fail(err)
	}
	if err := s.meetLauncher(u); err != nil {
		return fail(err)
	}
	at, err := netip.ParseAddrPort(s.job.Listener.Addr().String())
	if err != nil {
		return fail(fmt.Errorf("tell Open MPI's daemon where its launcher is: %w", err))
	}
	network := s.job.Network.String()
	option := "-mca"
	if d.parameter != "--mca" {
		option = d.parameter
	}
	c := h.Command.set(option, d.uri, u.at(at, s.job.Network)).set(option, d.networks, network)
	// Daemons start no others, and an agent that they do not find ends them.
	c = c.without("plm").without(d.agent)
	if !c.gives("tmpdir_base") {
		// TMPDIR may name a folder that clones do not have.
		c = c.set(option, d.folder, "/tmp")
	}
	if d.parameter == "--mca" {
		// Daemons pass it on to their ranks, in case that the launcher does not.
		c = c.set(option, "btl_tcp_if_include", network)
	}
	limit, cancel := context.WithTimeout(s.ctx, sshLimit)
	defer cancel()
	guest, err := clone.SSH(limit, agent.SSH{HostKey: s.keys.host, AuthorizedKeys: []string{s.keys.userPublic}, Login: &s.job.Login})
	if err != nil {
		if limit.Err() != nil && s.ctx.Err() == nil {
			err = fmt.Errorf("its agent did not answer in %v", sshLimit)
		}
		return fail(fmt.Errorf("%s: %w", clone.Name, err))
	}
	return guest, answer{Key: s.keys.user, HostKey: s.keys.hostPublic, Command: c.text()}, nil
}

func (s *Server) clone(is func(Clone) bool) *Clone {
	for i, c := range s.job.Clones {
		if is(c) {
			return &s.job.Clones[i]
		}
	}
	return nil
}

// meetLauncher takes the place where the launcher listens, which is on this
// machine: daemons will be connected to nothing else.
func (s *Server) meetLauncher(u uri) error {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("find Open MPI's launcher: %w", err)
	}
	here := func(a netip.Addr) bool {
		for _, o := range own {
			if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap() == a {
				return true
			}
		}
		return a.IsLoopback()
	}
	for _, a := range u.addresses {
		if !here(a) {
			continue
		}
		at := netip.AddrPortFrom(a, u.port)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.launcher.IsValid() && s.launcher != at {
			return fmt.Errorf("these clones are those of the launcher at %v, and not of that at %v", s.launcher, at)
		}
		s.launcher = at
		return nil
	}
	return fmt.Errorf("find Open MPI's launcher: %v are no addresses of this machine, on which it has to run", u.addresses)
}

// serveDaemon connects a clone's daemon to the launcher.
func (s *Server) serveDaemon(conn net.Conn) {
	from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return
	}
	ip := from.Addr().Unmap()
	clone := s.clone(func(c Clone) bool { return c.IP == ip })
	s.mu.Lock()
	launcher := s.launcher
	if clone == nil || !launcher.IsValid() || s.open[ip] == maxConnections {
		s.mu.Unlock()
		return
	}
	s.open[ip]++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.open[ip]--
		s.mu.Unlock()
	}()
	limit, cancel := context.WithTimeout(s.ctx, dialLimit)
	defer cancel()
	var dialer net.Dialer
	there, err := dialer.DialContext(limit, "tcp4", launcher.String())
	if err != nil {
		return // the daemon sees its end, and tries again or gives up
	}
	defer there.Close()
	stop := context.AfterFunc(s.ctx, func() { hangUp(there) })
	defer stop()
	s.mu.Lock()
	if !s.met[ip] {
		s.met[ip] = true
		if len(s.met) == len(s.job.Clones) {
			close(s.all)
		}
	}
	s.mu.Unlock()
	join(conn, there)
}

// join carries both directions of a connection, until one is at its end: neither
// SSH nor Open MPI's daemons go on with half of one.
func join(a, b net.Conn) {
	over := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			io.Copy(way[0], way[1])
			over <- struct{}{}
		}()
	}
	<-over
	hangUp(a)
	hangUp(b)
	<-over
}

// hangUp ends a connection for who reads from it here, too: a stream of a session
// that is closed can be read from until its other end, which may be a lost clone,
// has closed it.
func hangUp(conn net.Conn) {
	conn.SetDeadline(time.Unix(1, 0))
	conn.Close()
}
