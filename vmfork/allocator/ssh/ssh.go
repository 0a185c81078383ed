package ssh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/hostlist"
)

// Config is what an allocation is made of.
type Config struct {
	Hosts []hostlist.Host // names are unique

	// AsUser is for programs that do not have to be root: they run as whom the
	// login is for.
	AsUser bool

	// Ask asks the user for a passphrase, or whether a host is the right one;
	// with nil nobody is asked, and what had to be asked is an error. See
	// [Terminal].
	Ask Asker

	// Notice, if not nil, is told what the user should know, one line at a time.
	Notice func(line string)

	// Stderr, if not nil, is told each line of what the programs on hosts print
	// on standard error.
	Stderr func(host, line string)
}

// Allocation are the hosts that a user named.
type Allocation struct {
	account
	configuration configuration
	hosts         []hostlist.Host
	whom          string // programs run as: "root", or "user"
	keys          *keyring
	ask           Asker
	notice        func(string)
	stderr        func(host, line string)
	binaries      binaries
	turn          chan struct{} // who starts something has put one in

	known  sync.Mutex // guards the file of known hosts
	asking sync.Mutex // one unknown host at a time

	mu        sync.Mutex
	closed    bool
	processes map[*process]struct{}
	kept      []*connection      // to hosts on the way
	hops      map[string]*shared // by the way
}

var _ allocator.Allocation = (*Allocation)(nil)

// New reads the user's configuration; it connects to nothing.
func New(c Config) (*Allocation, error) {
	who, err := findAccount()
	if err == nil {
		var a *Allocation
		if a, err = newAllocation(c, who, "/etc/ssh"); err == nil {
			return a, nil
		}
	}
	return nil, fmt.Errorf("prepare to log in to hosts: %w", err)
}

func newAllocation(c Config, who account, system string) (*Allocation, error) {
	configuration, err := readConfiguration(who, system)
	if err != nil {
		return nil, err
	}
	a := &Allocation{
		account: who, configuration: configuration, hosts: slices.Clone(c.Hosts), whom: "root",
		ask: inTurn(c.Ask), notice: c.Notice, stderr: c.Stderr,
		binaries: binaries{all: map[string]binary{}}, turn: make(chan struct{}, allocator.StartLimit),
		processes: map[*process]struct{}{}, hops: map[string]*shared{},
	}
	if c.AsUser {
		a.whom = "user"
	}
	if a.notice == nil {
		a.notice = func(string) {}
	}
	a.keys = &keyring{account: who, ask: a.ask, files: map[string]*keyFile{}}
	return a, nil
}

// Hosts are those that the user named.
func (a *Allocation) Hosts() []allocator.Host {
	hosts := make([]allocator.Host, len(a.hosts))
	for i, h := range a.hosts {
		hosts[i] = h.Host
	}
	return hosts
}

// Address is the name or address by which ssh's configuration says that h is
// reached: its HostName, or the name itself. Other connections to the host, which
// know nothing of that configuration, go there too.
func (a *Allocation) Address(h allocator.Host) (string, error) {
	s, err := a.configuration.resolve(h.Name, "", "")
	if err != nil {
		return "", &allocator.HostError{Host: h.Name, Err: err}
	}
	return s.host, nil
}

var errClosed = errors.New("the allocation has been closed")

// Start logs in to h, sees to it that the program is there, and runs it.
func (a *Allocation) Start(ctx context.Context, h allocator.Host, program string, args ...string) (allocator.Process, error) {
	p, err := a.start(ctx, h, program, args)
	if err != nil {
		return nil, &allocator.HostError{Host: h.Name, Err: err}
	}
	return p, nil
}

func (a *Allocation) start(ctx context.Context, h allocator.Host, program string, args []string) (*process, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	i := slices.IndexFunc(a.hosts, func(one hostlist.Host) bool { return one.Name == h.Name })
	if i < 0 {
		return nil, errors.New("it is not a host of this job")
	}
	a.mu.Lock()
	closed := a.closed
	a.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	b, err := a.binaries.open(program)
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	s, err := a.configuration.resolve(h.Name, a.hosts[i].User, "")
	if err != nil {
		return nil, err
	}
	w, err := a.configuration.wayTo(s, 0)
	if err != nil {
		return nil, err
	}
	c, err := a.connect(ctx, w)
	if err != nil {
		return nil, err
	}
	p, err := a.run(ctx, c, b, args)
	if err != nil {
		c.Client.Close()
		return nil, err
	}
	return p, nil
}

// run starts the program on a connection, which is the process's from then on.
func (a *Allocation) run(ctx context.Context, c *connection, b binary, args []string) (*process, error) {
	session, err := c.NewSession()
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	var notice func(string)
	if a.stderr != nil {
		notice = func(line string) { a.stderr(c.s.name, line) }
	}
	p := &process{
		host: c.s.name, c: c, session: session, root: c.s.user == "root",
		tail: allocator.NewTail(notice), ended: make(chan struct{}),
	}
	session.Stderr = p.tail
	if p.in, err = session.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := session.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.pid, p.out, err = b.begin(ctx, c, session, p.in, stdout, a.whom, args); err != nil {
		var root *needsRoot
		if said := p.tail.String(); said != "" && !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w (it said: %s)", err, oneLine(said))
		}
		if errors.As(err, &root) {
			return nil, fmt.Errorf("logged in as %v: %w", c.s, err)
		}
		return nil, fmt.Errorf("on %v: %w", c.s, err)
	}
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.processes[p] = struct{}{}
	}
	a.mu.Unlock()
	go p.await(func() {
		a.mu.Lock()
		delete(a.processes, p)
		a.mu.Unlock()
	})
	if closed {
		p.Close()
		return nil, errClosed
	}
	return p, nil
}

// keep enters a connection that ends with the allocation.
func (a *Allocation) keep(c *connection) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		c.Client.Close()
		return errClosed
	}
	a.kept = append(a.kept, c)
	return nil
}

// Close ends what runs, and then the connections to the hosts on the way.
func (a *Allocation) Close() error {
	a.mu.Lock()
	a.closed = true
	running := make([]*process, 0, len(a.processes))
	for p := range a.processes {
		running = append(running, p)
	}
	a.mu.Unlock()
	var wait sync.WaitGroup
	for _, p := range running {
		wait.Go(func() { p.Close() })
	}
	wait.Wait()
	a.mu.Lock()
	kept := a.kept
	a.kept = nil
	a.mu.Unlock()
	for _, c := range kept {
		c.Client.Close()
	}
	return nil
}

func oneLine(lines string) string { return strings.ReplaceAll(lines, "\n", "; ") }
