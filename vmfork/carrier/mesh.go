package carrier

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
)

// What a stream, or a connection, between two daemons is for.
const (
	kindRPC    = 'r' // the coordinator's calls
	kindEvents = 'e' // what a host tells of its own accord
	kindAttach = 'a' // to a machine's agent; begins with its number
	kindCall   = 'c' // of the VM fork API, from a machine; begins with its number and the call's name
	kindBlocks = 'm' // mcdist's
)

// Peer is a host of a job, as the others find it.
type Peer struct {
	Name        string
	Address     netip.Addr     // on the network that the hosts share
	Listen      netip.AddrPort // of its daemon
	Fingerprint link.Fingerprint
}

// Mesh connects the daemons of a job with each other. The coordinator has a link
// to every other one; between the others there is one when blocks are to come
// that way.
type Mesh struct {
	ctx   context.Context
	id    *link.Identity
	self  int
	peers []Peer

	mu     sync.Mutex // guards those below
	links  map[int]*dialled
	node   *mcdist.Node
	joined chan struct{} // closed when node is set
}

// dialled is a link to a host, or on the way to be one.
type dialled struct {
	ready chan struct{}
	link  *link.Link
	err   error
}

// NewMesh begins a mesh: peers are all hosts of the job, by number.
func NewMesh(ctx context.Context, id *link.Identity, self int, peers []Peer) *Mesh {
	return &Mesh{ctx: ctx, id: id, self: self, peers: peers, links: map[int]*dialled{}, joined: make(chan struct{})}
}

// Hosts are the peers as mcdist knows them.
func (m *Mesh) Hosts() (hosts []mcdist.Host) {
	for _, p := range m.peers {
		hosts = append(hosts, mcdist.Host{Name: p.Name, Address: p.Address})
	}
	return hosts
}

// Distribute has connections for blocks go to a node. Those that came before
// have waited for it.
func (m *Mesh) Distribute(node *mcdist.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node = node
	close(m.joined)
}

// Link is the link to a host, dialled if there is none.
func (m *Mesh) Link(ctx context.Context, host int) (*link.Link, error) {
	m.mu.Lock()
	d := m.links[host]
	if d != nil {
		select {
		case <-d.ready:
			if d.err != nil || ended(d.link) {
				d = nil
			}
		default:
		}
	}
	mine := d == nil
	if mine {
		d = &dialled{ready: make(chan struct{})}
		m.links[host] = d
	}
	m.mu.Unlock()
	if mine {
		p := m.peers[host]
		d.link, d.err = link.Dial(ctx, m.id, p.Listen.String(), p.Fingerprint, link.Host(p.Name))
		close(d.ready)
		if d.err == nil { // the other host may use the link, too
			go m.Serve(d.link, host, func(_ byte, conn net.Conn) { conn.Close() })
		}
	}
	select {
	case <-d.ready:
		return d.link, d.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a connection to %s: %w", m.peers[host].Name, ctx.Err())
	}
}

func ended(l *link.Link) bool {
	select {
	case <-l.Done():
		return true
	default:
		return false
	}
}

// Adopt takes a link that another daemon has dialled, and returns its host's
// number, or -1 if it is none of the job's.
func (m *Mesh) Adopt(l *link.Link) int {
	for host, p := range m.peers {
		if p.Fingerprint != l.Peer() || host == m.self {
			continue
		}
		d := &dialled{ready: make(chan struct{}), link: l}
		close(d.ready)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.links[host] = d
		return host
	}
	return -1
}

// Dial opens a connection for blocks to a host, as [mcdist.Config] wants it.
func (m *Mesh) Dial(ctx context.Context, host int) (net.Conn, error) {
	l, err := m.Link(ctx, host)
	if err != nil {
		return nil, err
	}
	return l.Dial(ctx, kindBlocks)
}

// Serve takes what arrives on the link to a host until that ends: what is for
// mcdist goes there, the rest to other, in a goroutine of its own.
func (m *Mesh) Serve(l *link.Link, host int, other func(kind byte, conn net.Conn)) {
	for {
		kind, conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			if kind != kindBlocks {
				other(kind, conn)
				return
			}
			select {
			case <-m.joined:
				m.node.Accept(conn, host)
			case <-m.ctx.Done():
				conn.Close()
			}
		}()
	}
}

// Close ends all links.
func (m *Mesh) Close() {
	m.mu.Lock()
	var all []*dialled
	for _, d := range m.links {
		all = append(all, d)
	}
	m.mu.Unlock()
	for _, d := range all {
		select {
		case <-d.ready:
			if d.err == nil {
				d.link.Close()
			}
		case <-m.ctx.Done():
		}
	}
}
