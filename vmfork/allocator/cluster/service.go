package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// DefaultPort is where services listen unless they are told otherwise.
const DefaultPort = 17470

// MaxJobs is how many daemons a host runs at once unless it is told otherwise.
const MaxJobs = 64

// requestLimit is how long a caller has to say what it wants.
const requestLimit = 30 * time.Second

// ServiceConfig is what a service is made of.
type ServiceConfig struct {
	Key     Key
	Program string   // that is started: the service's own
	Args    []string // the arguments that may be asked for, all of them and in this order
	MaxJobs int      // 0: MaxJobs
	Log     zerolog.Logger
	Silence time.Duration // after which a caller is taken for dead, 0: the link's own
}

// Service starts daemons on this host for those who have the cluster's key.
type Service struct {
	ServiceConfig
	listener *link.Listener
	refusals refusals
	command  func(args []string) (*exec.Cmd, error) // that is started when args are asked for
	started  atomic.Int64
	failed   atomic.Int64

	mu    sync.Mutex
	jobs  map[*session]struct{}
	drain bool
	idle  *sync.Cond // of mu: a job has ended
}

// Listen opens the service's port. Nobody is served before Serve.
func Listen(ctx context.Context, address string, c ServiceConfig) (*Service, error) {
	id, err := c.Key.Identity()
	if err != nil {
		return nil, err
	}
	if c.MaxJobs == 0 {
		c.MaxJobs = MaxJobs
	}
	s := &Service{ServiceConfig: c, jobs: map[*session]struct{}{}}
	s.idle = sync.NewCond(&s.mu)
	s.command = s.ownProgram
	s.refusals.log = c.Log
	options := []link.Option{link.Purpose(purpose), link.Refused(s.refusals.tell)}
	if c.Silence > 0 {
		options = append(options, link.Silence(c.Silence))
	}
	s.listener, err = link.Listen(ctx, id, address, options...)
	if err != nil {
		return nil, fmt.Errorf("listen for launchers: %w", err)
	}
	s.listener.Allow(id.Fingerprint())
	return s, nil
}

// Addr is where the service listens.
func (s *Service) Addr() net.Addr { return net.TCPAddrFromAddrPort(s.listener.Addr()) }

// Serve starts daemons until the listener's context ends, or Drain.
func (s *Service) Serve() {
	for {
		l, err := s.listener.AcceptLink()
		if err != nil {
			return
		}
		go s.session(l)
	}
}

// Drain takes no new jobs, and returns when those that run have ended, or with
// ctx.
func (s *Service) Drain(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain = true
	s.listener.Close()
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle.Broadcast()
	})()
	for len(s.jobs) > 0 && ctx.Err() == nil {
		s.idle.Wait()
	}
}

// Close takes no new jobs, ends those that run, and returns when they have
// ended.
func (s *Service) Close() {
	s.mu.Lock()
	s.drain = true
	s.listener.Close()
	running := s.sessions()
	s.mu.Unlock()
	for _, one := range running {
		one.link.Close()
	}
	s.Drain(context.Background())
}

func (s *Service) sessions() []*session {
	all := make([]*session, 0, len(s.jobs))
	for one := range s.jobs {
		all = append(all, one)
	}
	return all
}

// State is what a service does.
type State struct {
	Jobs, MaxJobs   int
	Draining        bool
	Started, Failed int64 // since the service began: daemons that were started, and requests that came to nothing
	Refused         int64 // connections that were refused
}

// State tells it.
func (s *Service) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return State{
		Jobs: len(s.jobs), MaxJobs: s.MaxJobs, Draining: s.drain,
		Started: s.started.Load(), Failed: s.failed.Load(), Refused: s.refusals.all.Load(),
	}
}

// admit enters a job, or says why not.
func (s *Service) admit(one *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.drain:
		return errors.New("its service is about to stop, and takes no new jobs")
	case len(s.jobs) >= s.MaxJobs:
		return fmt.Errorf("%d jobs run there, and its service takes no more: wait for one to end, or raise --max-jobs", len(s.jobs))
	}
	s.jobs[one] = struct{}{}
	return nil
}

// ownProgram is the service's program, and no other.
func (s *Service) ownProgram(args []string) (*exec.Cmd, error) {
	if !slices.Equal(args, s.Args) {
		return nil, fmt.Errorf("its service runs %q and nothing else", append([]string{"mpirun-sf"}, s.Args...))
	}
	return exec.Command(s.Program, s.Args...), nil
}

func (s *Service) leave(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, one)
	s.idle.Broadcast()
}

// start runs the daemon.
func (s *Service) start(args []string, stderr func(string)) (allocator.Process, int, error) {
	cmd, err := s.command(args)
	if err != nil {
		return nil, 0, err
	}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + cmp.Or(os.Getenv("HOME"), "/root"), "LANG=C.UTF-8"}
	// Where daemons keep images, and what machines write.
	if cache := os.Getenv("XDG_CACHE_HOME"); cache != "" {
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+cache)
	}
	p, err := allocator.Command("", cmd, allocator.CloseLimit, stderr)
	if err != nil {
		var of *allocator.HostError
		if errors.As(err, &of) {
			err = of.Err // the caller knows which host
		}
		return nil, 0, err
	}
	return p, cmd.Process.Pid, nil
}

// refusals logs who was refused, but not as fast as somebody can knock.
type refusals struct {
	log zerolog.Logger
	all atomic.Int64

	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (r *refusals) tell(from net.Addr, why error) {
	r.all.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.last) >= time.Second {
		e := r.log.Warn().Stringer("from", from).AnErr("why", why)
		if r.skipped > 0 {
			e = e.Int("before", r.skipped)
		}
		e.Msg("refused a connection")
		r.last, r.skipped = now, 0
		return
	}
	r.skipped++
}
