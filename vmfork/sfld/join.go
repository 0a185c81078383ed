package sfld

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// How a job gets its other hosts.
//
//  1. The coordinator's daemon, which the launcher has started, makes a key for
//     the job and tells its fingerprint ([Client.Key]).
//  2. The launcher has an allocator start a daemon on each other host, tells it
//     that fingerprint, and reads its hello: its own fingerprint, and where it
//     listens (host.go).
//  3. The coordinator connects to all of them and tells them of each other
//     ([Client.Join]). From here on they are hosts as its own is.

// JoinArgs are the hosts of a job besides the coordinator's.
type JoinArgs struct {
	Hosts []JoinHost
	Here  bool        // the coordinator's host carries clones too,
	Slots int         // at most so many virtual CPUs of them, 0: as many as fit
	First bool        // and is the first to be filled
	Mode  mcdist.Mode // how blocks are distributed
}

// JoinHost is one of them.
type JoinHost struct {
	Name        string
	Addresses   []netip.AddrPort // where its daemon listens, best first
	Fingerprint link.Fingerprint
	Slots       int // virtual CPUs of clones that it may carry, 0: as many as fit
}

// KeyReply is the key that a job's daemons know its coordinator by.
type KeyReply struct{ Fingerprint link.Fingerprint }

// OpenWay lets machines reach what is outside of the private network. It comes
// after Join, and before the first ticket.
func (s *service) OpenWay(way network.Way, _ *int) error {
	e := s.e
	if m := e.connected(); m != nil {
		way.Hosts = m.addresses
	}
	if err := e.local.Network().OpenWay(e.ctx, way); err != nil {
		return err
	}
	e.gateway = e.plan.Host()
	return nil
}

// mesh is the coordinator's end of the job's connections.
type mesh struct {
	*carrier.Mesh
	mtu       int          // of the private network
	addresses []netip.Addr // all that the other hosts have
}

// connected is the mesh, nil while there is one host.
func (e *Engine) connected() *mesh {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mesh
}

// vxlanPort is the UDP port of the private network between hosts. It is not
// IANA's for VXLAN, where the overlay of somebody else may have a socket that
// another VXLAN cannot share.
const vxlanPort = 17472

// identity makes the job's key, once.
func (s *service) key() (*link.Identity, error) {
	s.keyOnce.Do(func() { s.id, s.idErr = link.NewIdentity() })
	return s.id, s.idErr
}

// Key tells the fingerprint of the coordinator's key.
func (s *service) Key(_ int, out *KeyReply) error {
	id, err := s.key()
	if err == nil {
		out.Fingerprint = id.Fingerprint()
	}
	return err
}

// Join connects the hosts of the job. It comes before the first ticket.
func (s *service) Join(args JoinArgs, _ *int) error {
	e := s.e
	id, err := s.key()
	if err != nil {
		return err
	}
	if e.connected() != nil {
		return errors.New("the job's hosts are joined once")
	}
	e.hosts[0].carries, e.hosts[0].slots, e.hosts[0].last = args.Here, args.Slots, !args.First
	if len(args.Hosts) == 0 {
		return nil
	}
	listener, err := link.Listen(e.ctx, id, ":0")
	if err != nil {
		return err
	}
	links, err := dial(s.ctx, id, args.Hosts)
	if err != nil {
		return err
	}
	here := links[0].LocalAddr().Addr()
	peers := []carrier.Peer{{
		Name: e.local.Name(), Address: here, Fingerprint: id.Fingerprint(),
		Listen: netip.AddrPortFrom(here, listener.Addr().Port()),
	}}
	for i, h := range args.Hosts {
		at := links[i].RemoteAddr()
		peers = append(peers, carrier.Peer{Name: h.Name, Address: at.Addr(), Listen: at, Fingerprint: h.Fingerprint})
		listener.AllowHost(h.Name, h.Fingerprint)
	}
	m := &mesh{Mesh: carrier.NewMesh(e.ctx, id, 0, peers)}
	for _, l := range links {
		m.Adopt(l)
	}
	go accept(listener, m.Mesh)
	how := carrier.Connection{Mode: args.Mode, Port: vxlanPort}
	rand.Read(how.Key[:])
	for how.VNI == 0 {
		var vni [3]byte
		rand.Read(vni[:])
		how.VNI = uint32(vni[0])<<16 | uint32(vni[1])<<8 | uint32(vni[2])
	}
	if how.MTU, err = network.FabricMTU(here); err != nil {
		return err
	}
	if err := e.local.JoinMesh(e.ctx, m.Mesh, how); err != nil {
		return err
	}
	m.mtu = how.MTU
	for _, h := range args.Hosts {
		for _, a := range h.Addresses {
			m.addresses = append(m.addresses, a.Addr())
		}
	}
	e.mu.Lock()
	e.mesh = m
	e.mu.Unlock()
	return e.connect(s.ctx, args, peers, how)
}

// dial connects to the daemons of hosts, or says which cannot be reached.
func dial(ctx context.Context, id *link.Identity, hosts []JoinHost) ([]*link.Link, error) {
	links := make([]*link.Link, len(hosts))
	named := make([]allocator.Host, len(hosts))
	errs := make([]error, len(hosts))
	var group errgroup.Group
	for i, h := range hosts {
		named[i].Name = h.Name
		group.Go(func() error {
			links[i], errs[i] = link.DialAny(ctx, id, h.Addresses, h.Fingerprint, link.Host(h.Name))
			return nil
		})
	}
	group.Wait()
	err := allocator.CollectErrors(named, errs)
	if err != nil {
		for _, l := range links {
			if l != nil {
				l.Close()
			}
		}
	}
	return links, err
}

// connect makes the other daemons carriers of the job.
func (e *Engine) connect(ctx context.Context, args JoinArgs, peers []carrier.Peer, how carrier.Connection) error {
	sites := make([]*site, len(peers))
	sites[0] = e.hosts[0]
	var hosts []allocator.Host
	errs := make([]error, len(args.Hosts))
	var group errgroup.Group
	begin := carrier.Begin{Job: e.opts.Job, Peers: peers, Window: e.opts.Window, Traced: e.opts.Traced, Connection: how}
	for i, h := range args.Hosts {
		hosts = append(hosts, allocator.Host{Name: h.Name})
		group.Go(func() error {
			r, err := carrier.Connect(ctx, e.mesh.Mesh, i+1, begin, events{e, i + 1})
			errs[i] = err
			sites[i+1] = &site{Host: r, number: i + 1, carries: true, slots: h.Slots}
			return nil
		})
	}
	group.Wait()
	if err := allocator.CollectErrors(hosts, errs); err != nil {
		return err
	}
	e.mu.Lock()
	e.hosts = sites
	e.mu.Unlock()
	if err := meet(ctx, hosts, sites[1:]); err != nil {
		return err
	}
	e.local.Node().Prepare() // hosts listen by now, and the answer is wanted soon
	for _, s := range sites[1:] {
		e.background.Go(func() { e.watch(s) })
	}
	return nil
}

// meetLimit is how long hosts may take to connect to each other.
const meetLimit = 30 * time.Second

// meet has hosts connect to each other, for their machines will want to.
func meet(ctx context.Context, hosts []allocator.Host, sites []*site) error {
	ctx, cancel := context.WithTimeout(ctx, meetLimit)
	defer cancel()
	errs := make([]error, len(sites))
	var group errgroup.Group
	for i, s := range sites {
		group.Go(func() error {
			errs[i] = s.Host.(*carrier.Remote).Meet(ctx)
			return nil
		})
	}
	group.Wait()
	return allocator.CollectErrors(hosts, errs)
}

// severedDelay is how much later than a host the coordinator may find out that
// another has died.
const severedDelay = 5 * time.Second

// Severed implements [carrier.Events]. Two hosts that live and do not reach each
// other are of no use together: one of them has to go.
func (v events) Severed(host int, reason error) {
	e := v.e
	e.mu.Lock()
	here, there := e.hosts[v.host], e.hosts[host]
	e.mu.Unlock()
	for _, s := range []*site{here, there} {
		select {
		case <-s.Host.(*carrier.Remote).Done():
			return // that was it
		case <-time.After(severedDelay / 2):
		case <-e.ctx.Done():
			return
		}
	}
	e.abandon(here, fmt.Errorf("hosts %s and %s do not reach each other: %w", there.Name(), here.Name(), reason))
}

// abandon ends all that a host carries.
func (e *Engine) abandon(s *site, reason error) {
	e.mu.Lock()
	s.carries = false
	var lost []*machine
	for _, m := range e.machines {
		if m.host == s {
			lost = append(lost, m)
		}
	}
	e.mu.Unlock()
	if len(lost) == 0 { // who wants something of it will be told
		e.notify(Notice{Detail: fmt.Sprintf("%v; %s carried nothing", reason, s.Name())})
	}
	for _, m := range lost {
		go e.lose(m, fmt.Errorf("%s: %w", m.Name, reason))
	}
}

// watch ends what a host carried that is gone.
func (e *Engine) watch(s *site) {
	r := s.Host.(*carrier.Remote)
	select {
	case <-r.Done():
	case <-e.ctx.Done():
		return
	}
	e.abandon(s, r.Err())
}

// accept takes the links of other hosts, which want blocks.
func accept(listener *link.Listener, m *carrier.Mesh) {
	for {
		l, err := listener.AcceptLink()
		if err != nil {
			return
		}
		host := m.Adopt(l)
		if host < 0 {
			l.Close()
			continue
		}
		go m.Serve(l, host, func(_ byte, conn net.Conn) { conn.Close() })
	}
}
