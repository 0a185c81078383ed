package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
)

// Config is what an allocation is made of.
type Config struct {
	Hosts []allocator.Host // names are unique
	Key   Key

	// Port is where the hosts' services listen, 0 for DefaultPort. Addresses has those
	// of hosts that are elsewhere, host:port, by the host's name.
	Port      int
	Addresses map[string]string

	// Stderr, if not nil, is told each line of what the programs on hosts print on
	// standard error.
	Stderr func(host, line string)

	Silence time.Duration // after which a host is taken for dead, 0: the link's own
}

// Allocation are hosts where the cluster's service runs.
type Allocation struct {
	Config
	id   *link.Identity
	turn chan struct{} // who starts something has put one in

	mu      sync.Mutex
	closed  bool
	running map[*process]struct{}
}

var _ allocator.Allocation = (*Allocation)(nil)

// startLimit is how long a start may take if its context says nothing.
const startLimit = time.Minute

// New connects to nothing.
func New(c Config) (*Allocation, error) {
	id, err := c.Key.Identity()
	if err != nil {
		return nil, err
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	return &Allocation{Config: c, id: id, turn: make(chan struct{}, allocator.StartLimit), running: map[*process]struct{}{}}, nil
}

// Hosts are those of the configuration.
func (a *Allocation) Hosts() []allocator.Host { return slices.Clone(a.Config.Hosts) }

// Start has the service of h start its own program. Which program is asked for
// does not matter: the daemon's hello says which version it is.
func (a *Allocation) Start(ctx context.Context, h allocator.Host, _ string, args ...string) (allocator.Process, error) {
	p, err := a.start(ctx, h, args)
	if err != nil {
		return nil, &allocator.HostError{Host: h.Name, Err: err}
	}
	return p, nil
}

func (a *Allocation) start(ctx context.Context, h allocator.Host, args []string) (*process, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("its service did not start a daemon in %v", startLimit))
	defer cancel()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !slices.ContainsFunc(a.Config.Hosts, func(one allocator.Host) bool { return one.Name == h.Name }) {
		return nil, errors.New("it is not a host of this job")
	}
	address := a.Addresses[h.Name]
	if address == "" {
		address = net.JoinHostPort(h.Name, strconv.Itoa(a.Port))
	}
	options := []link.Option{link.Purpose(purpose), link.Host(h.Name)}
	if a.Silence > 0 {
		options = append(options, link.Silence(a.Silence))
	}
	l, err := link.Dial(ctx, a.id, address, a.id.Fingerprint(), options...)
	if err != nil {
		return nil, explain(address, err)
	}
	p, err := a.request(ctx, h.Name, l, args)
	if err != nil {
		l.Close()
		return nil, err
	}
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.running[p] = struct{}{}
	}
	a.mu.Unlock()
	go func() {
		<-p.ended
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.running, p)
	}()
	if closed {
		p.Close()
		return nil, errors.New("the allocation has been closed")
	}
	return p, nil
}

// explain says what is to be done about a service that was not reached.
func explain(address string, err error) error {
	var of *link.DialError
	if errors.As(err, &of) {
		err = of.Err // the caller knows which host
	}
	switch {
	case errors.Is(err, link.ErrKey):
		return fmt.Errorf("the service at %s has another cluster's key: copy this machine's there, or its here (%w)", address, err)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("no service listens at %s: systemctl start mpirun-sf there, or start its daemons by SSH, without --service", address)
	}
	return fmt.Errorf("connect to its service at %s: %w", address, err)
}

// request asks for a daemon over a new link.
func (a *Allocation) request(ctx context.Context, host string, l *link.Link, args []string) (*process, error) {
	// The streams know no contexts.
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	fail := func(err error) (*process, error) {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	stdio, err := l.Open(ctx, kindStdio)
	if err != nil {
		return fail(err)
	}
	control, err := l.Open(ctx, kindControl)
	if err != nil {
		return fail(err)
	}
	if err := send(control, request{Args: args}); err != nil {
		return fail(fmt.Errorf("ask its service for a daemon: %w", err))
	}
	in := newLines(control)
	var first event
	if err := in.receive(&first); err != nil {
		return fail(fmt.Errorf("wait for its service to start a daemon: %w", err))
	}
	switch {
	case first.Refused != "":
		return nil, errors.New(first.Refused)
	case first.Started == 0:
		return nil, errors.New("its service answered what is no answer: install the same version of mpirun-sf on all hosts")
	case !stop():
		return fail(nil)
	}
	var notice func(string)
	if a.Stderr != nil {
		notice = func(line string) { a.Stderr(host, line) }
	}
	p := &process{host: host, link: l, stdio: stdio, control: control, tail: allocator.NewTail(notice), ended: make(chan struct{})}
	go p.await(in)
	return p, nil
}

// Close ends what runs.
func (a *Allocation) Close() error {
	a.mu.Lock()
	a.closed = true
	running := make([]*process, 0, len(a.running))
	for p := range a.running {
		running = append(running, p)
	}
	a.mu.Unlock()
	var wait sync.WaitGroup
	for _, p := range running {
		wait.Go(func() { p.Close() })
	}
	wait.Wait()
	return nil
}
