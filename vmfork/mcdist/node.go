package mcdist

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist/multicast"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// DefaultPatience is how long a host may be silent before those who wait for it are told, if nothing else is asked for.
const DefaultPatience = 20 * time.Second

// ID names a slice, or an object, on every host. Slices and objects do not share names.
type ID = slice.ID

// Host is a host of the job.
type Host struct {
	Name    string     // for messages
	Address netip.Addr // on the network that the hosts share
}

// Config is what a Node has to know.
type Config struct {
	Self  int    // this host's number
	Hosts []Host // by number; 0 is the head
	// Dial makes a stream to another host's Node, which is given it by Accept. It must be authenticated, encrypted and in
	// order. It is called for each lane, and again when a stream breaks. A connection of its own serves better than a
	// stream that shares one: over TLS on the loopback a fault took 31 µs, and 91 µs over yamux.
	Dial func(ctx context.Context, host int) (net.Conn, error)
	Key  [32]byte // the job's, for multicast packets
	Mode Mode
	// Patience is how long a host may be silent before those who wait for it are told; 0 is DefaultPatience.
	Patience time.Duration
	// Notice is given a line on what was found about the network. It may be nil, and must not block.
	Notice func(line string)
}

// Source is a frozen slice. A *slice.Slice is one.
type Source interface {
	Size() int64 // bytes
	// ReadBlocks reads len(dst)/slice.BlockSize blocks from block first on, all of them stored. It is called by several
	// goroutines at once.
	ReadBlocks(dst []byte, first int64) error
}

// key tells slices from objects.
type key struct {
	id     ID
	object bool
}

// Node is one host's part in the distribution.
type Node struct {
	config Config
	ctx    context.Context
	cancel context.CancelFunc
	begun  time.Time
	gate   gate
	fed    fed
	count  counters

	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	served  map[key]*served
	fetches map[key]*Fetch
	out     map[[2]int]*lane // by host and kind
	paces   map[int]*pace    // by host
	in      map[*inbound]struct{}
	packers map[int]*packer // by host
	askers  map[ID]map[asker]struct{}
	objects map[ID]*receipt
	offers  []kept
	dist    *distribution       // nil until it is needed
	ways    map[int]*way        // of other hosts
	hears   *multicast.Receiver // nil until it is needed
	deafTo  map[int]bool        // origins whose multicast does not come through
}

// New makes a Node, which ends with ctx or by Close.
func New(ctx context.Context, config Config) (*Node, error) {
	if config.Self < 0 || config.Self >= len(config.Hosts) || len(config.Hosts) > maxHosts {
		return nil, fmt.Errorf("make distribution node: host number %d of %d hosts cannot be, nor more than %d hosts",
			config.Self, len(config.Hosts), maxHosts)
	}
	if config.Dial == nil && len(config.Hosts) > 1 {
		return nil, errors.New("make distribution node: there is no way to the other hosts")
	}
	if config.Patience <= 0 {
		config.Patience = DefaultPatience
	}
	n := &Node{
		config: config, begun: time.Now(), fed: fed{at: make(map[*inbound]time.Time)}, served: make(map[key]*served), fetches: make(map[key]*Fetch), out: make(map[[2]int]*lane),
		paces: make(map[int]*pace), in: make(map[*inbound]struct{}), packers: make(map[int]*packer),
		askers: make(map[ID]map[asker]struct{}), objects: make(map[ID]*receipt),
		ways: make(map[int]*way), deafTo: make(map[int]bool),
	}
	n.ctx, n.cancel = context.WithCancel(ctx)
	context.AfterFunc(n.ctx, func() { n.Close() })
	return n, nil
}

// name is a host's name, for messages.
func (n *Node) name(host int) string {
	if h := n.config.Hosts[host]; h.Name != "" {
		return h.Name
	}
	return fmt.Sprintf("number %d", host)
}

func (n *Node) notice(line string) {
	if n.config.Notice != nil {
		n.config.Notice(line)
	}
}

// start runs a goroutine that Close waits for, unless the node is closed.
func (n *Node) start(run func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.running.Go(run)
	return true
}

// lane returns the way to ask another host.
func (n *Node) lane(host, kind int) *lane {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.out[[2]int{host, kind}]
	if l == nil {
		l = newLane(n, host, kind)
		if n.closed {
			l.closed = ErrClosed
		}
		n.out[[2]int{host, kind}] = l
	}
	return l
}

func (n *Node) pace(host int) *pace {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.paces[host]
	if p == nil {
		p = newPace()
		n.paces[host] = p
	}
	return p
}

func (n *Node) addFetch(f *Fetch) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := key{f.id, f.object}
	switch {
	case n.closed:
		return ErrClosed
	case n.fetches[k] != nil:
		return errors.New("it is fetched here already")
	}
	n.fetches[k] = f
	return nil
}

func (n *Node) removeFetch(f *Fetch) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := (key{f.id, f.object}); n.fetches[k] == f {
		delete(n.fetches, k)
	}
}

// Serve answers for a slice from now on, until Withdraw.
func (n *Node) Serve(id ID, s Source) error {
	if size := s.Size(); size <= 0 || size > slice.MaxImageSize {
		return fmt.Errorf("serve slice %v: %d bytes cannot be", id, size)
	}
	if err := n.serve(key{id: id}, s); err != nil {
		return fmt.Errorf("serve slice %v: %w", id, err)
	}
	n.distribution()
	if sender := n.sender(); sender != nil {
		if err := sender.Serve(id, s); err != nil && n.sender() != nil {
			n.Withdraw(id)
			return fmt.Errorf("serve slice %v: %w", id, err)
		}
	}
	return nil
}

// sender returns what sends by multicast, or nil.
func (n *Node) sender() *multicast.Sender {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dist == nil {
		return nil
	}
	return n.dist.sender
}

func (n *Node) serve(k key, s Source) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return ErrClosed
	case n.served[k] != nil:
		return errors.New("it is served already")
	}
	n.served[k] = &served{key: k, source: s}
	return nil
}

// Withdraw ends what Serve or Publish began. Nobody reads the source any more when it returns. Who still wants it is told
// ErrWithdrawn.
func (n *Node) Withdraw(id ID) {
	for _, k := range []key{{id, false}, {id, true}} {
		n.mu.Lock()
		s := n.served[k]
		delete(n.served, k)
		n.mu.Unlock()
		if s != nil {
			s.withdraw()
		}
	}
	if sender := n.sender(); sender != nil {
		sender.Withdraw(id)
	}
}

// Close ends the node: all that waits here fails with ErrClosed, and other hosts are told. It returns when nothing of it
// runs, and may be called twice.
func (n *Node) Close() error {
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	lanes, ins, fetches, all := n.out, n.in, n.fetches, n.served
	var sender *multicast.Sender
	if n.dist != nil {
		sender = n.dist.sender
	}
	hears := n.hears
	if first {
		n.out, n.in, n.fetches, n.served = map[[2]int]*lane{}, map[*inbound]struct{}{}, map[key]*Fetch{}, map[key]*served{}
	}
	n.mu.Unlock()
	if first {
		n.cancel()
		for in := range ins {
			go in.bye()
		}
		for _, l := range lanes {
			l.close(ErrClosed)
		}
		for _, f := range fetches {
			f.Close()
		}
		for _, s := range all {
			s.withdraw()
		}
		if sender != nil {
			sender.Close()
		}
		if hears != nil {
			hears.Close()
		}
	}
	n.running.Wait()
	return nil
}

// served is a source while it is served.
type served struct {
	key    key
	mu     sync.RWMutex // shared by those who read
	source Source       // nil once it is withdrawn
}

func (s *served) read(dst []byte, first int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.source == nil {
		return unknown(s.key)
	}
	n := int64(len(dst)) / slice.BlockSize
	if first > (s.source.Size()+slice.BlockSize-1)/slice.BlockSize-n {
		return fmt.Errorf("%d blocks from %d are not in its %d bytes", n, first, s.source.Size())
	}
	return s.source.ReadBlocks(dst, first)
}

func (s *served) withdraw() {
	s.mu.Lock()
	s.source = nil
	s.mu.Unlock()
}
