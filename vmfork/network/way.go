package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Way is what members may reach outside of the job's network, and who may reach the parent.
type Way struct {
	// Allow are the destinations. With none it is everything outside. Either way not these, unless an entry is for that
	// very address: the hosts of the job, and 169.254.0.0/16, where clouds hand out a machine's secrets (any entry within
	// is enough there).
	Allow []Destination
	// Hosts are addresses of the job's hosts that the Fabric does not know. Those of this host need not be among them.
	Hosts []netip.Addr
	// Rate is how many bits per second go out, and how many come in, of all members together; 0 is no limit.
	Rate int64
	// Resolver answers the questions to port 53 of the gateway, UDP and TCP, whatever Allow says; the zero AddrPort
	// is nobody. Members' resolv.conf then names [Plan.Host].
	Resolver netip.AddrPort
	// Forward are the ports of this host that are the parent's.
	Forward []Forward
}

const (
	// A clone may ask for connections as fast as it can; these are all that it gets, and the job with it.
	maxConnections, maxDatagramFlows, maxDials = 1024, 256, 64
	dialLimit                                  = 10 * time.Second
	// A packet with this mark is for this host, whatever its destination.
	wayMark, wayTable = 1, 100
	resolverPort      = 53
)

// linkLocal is where clouds' servers of secrets are.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// A way is an open Way.
type way struct {
	Way
	network *Network
	home    *os.File // the namespace in which connections go out
	routes  *netlink.Handle
	rules   *nft
	named   map[netip.Addr]bool // the addresses that entries of Allow are for

	tcp net.Listener
	udp *net.UDPConn

	out, in            *pace
	connections, dials chan struct{} // a token each
	mu                 sync.Mutex
	flows              map[flowKey]*flow

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// OpenWay lets members out by this host, which must have the gateway, as connections of this process: they begin here,
// from the host's address, in the namespace of the calling thread. The host forwards no packet, and nothing of its
// network's settings changes. At most one way can be open, until Close.
//
// TCP and UDP get out. What Allow does not let out is answered with "administratively prohibited", which connect(2)
// reports as EHOSTUNREACH. A TCP connection that it lets out is open in the guest before it is at its destination; when
// that one refuses, it is reset.
func (n *Network) OpenWay(ctx context.Context, options Way) error {
	home, err := openNamespace()
	if err != nil {
		return fmt.Errorf("open a way out: %w", err)
	}
	w := &way{
		Way: options, network: n, home: home, named: make(map[netip.Addr]bool), flows: make(map[flowKey]*flow),
		out: newPace(options.Rate), in: newPace(options.Rate),
		connections: make(chan struct{}, maxConnections), dials: make(chan struct{}, maxDials),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if err := w.open(ctx); err != nil {
		w.close()
		return fmt.Errorf("open a way out: %w", err)
	}
	return nil
}

func (w *way) check(subnet netip.Prefix) error {
	for _, d := range w.Allow {
		if err := d.check(); err != nil {
			return fmt.Errorf("destination %v: %w", d, err)
		}
		if subnet.Contains(d.Prefix.Addr()) && d.Prefix.Bits() >= subnet.Bits() {
			return fmt.Errorf("destination %v is in the job's own network, %v: another job's will be another", d, subnet)
		}
	}
	for _, f := range w.Forward {
		if !f.Host.IsValid() || f.Host.Port() == 0 || f.Port == 0 {
			return fmt.Errorf("forward port %v: it has to have an address and two ports", f)
		}
	}
	if w.Rate != 0 && (w.Rate < minRate || w.Rate > maxRate) {
		return fmt.Errorf("a rate of %d bits per second is not between %d and %d", w.Rate, int64(minRate), int64(maxRate))
	}
	return nil
}

func (w *way) open(ctx context.Context) (err error) {
	n := w.network
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.handle == nil:
		return net.ErrClosed
	case n.way != nil:
		return errors.New("one is open")
	case !n.gateway():
		return errors.New("the gateway is on another host")
	}
	if err := w.check(n.plan.Subnet); err != nil {
		return err
	}
	if w.routes, err = routeHandle(w.home); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	var listeners []net.Listener
	for _, f := range w.Forward {
		listener, err := w.listen(ctx, f.Host)
		if err != nil {
			for _, other := range listeners {
				other.Close()
			}
			return fmt.Errorf("forward port %v: %w", f, err)
		}
		context.AfterFunc(w.ctx, func() { listener.Close() })
		listeners = append(listeners, listener)
	}
	if err := w.listenTransparently(ctx); err != nil {
		return err
	}
	if err := w.divert(); err != nil {
		return err
	}
	for i, f := range w.Forward {
		w.work.Go(func() { w.accept(listeners[i], func(c *net.TCPConn) { w.carryIn(c, f.Port) }) })
	}
	w.work.Go(func() { w.accept(w.tcp, w.carryOut) })
	w.work.Go(w.receive)
	n.way = w
	return nil
}

func (w *way) listen(ctx context.Context, address netip.AddrPort) (listener net.Listener, err error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	err = inNamespace(w.home, func() (err error) {
		listener, err = config.Listen(ctx, "tcp", address.String())
		return err
	})
	return listener, err
}

// divert makes packets that members send out end here. Its caller holds the network's mu.
func (w *way) divert() (err error) {
	n := w.network
	if w.rules, err = newNFT(n.namespace, nftables.TableFamilyIPv4, "sf-way"); err != nil {
		return err
	}
	verdicts, err := w.verdicts()
	if err != nil {
		return err
	}
	chain := w.rules.AddChain(&nftables.Chain{
		Table: w.rules.table, Name: "out", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	})
	port := binaryutil.BigEndian.PutUint16(uint16(w.tcp.Addr().(*net.TCPAddr).Port))
	for _, v := range verdicts {
		rule := append(from(n.bridge), v.match()...)
		switch v.kind {
		case divert:
			rule = append(rule,
				&expr.Immediate{Register: 1, Data: port},
				&expr.TProxy{Family: unix.NFPROTO_IPV4, TableFamily: unix.NFPROTO_IPV4, RegPort: 1}, // for TCP and UDP, others go on
				&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(wayMark)},
				&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}, accept())
		case refuse:
			const filtered = 13 // RFC 1812: communication administratively prohibited
			rule = append(rule, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: filtered})
		case pass:
			rule = append(rule, accept())
		}
		w.rules.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: rule})
	}
	if err := w.rules.Flush(); err != nil {
		return fmt.Errorf("divert packets: %w", wayError(err))
	}
	// Otherwise who asks for many things that are not allowed waits a second for each answer. It is no error to keep that.
	_ = n.inside(func() error { return os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0) })
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Table = netlink.FAMILY_V4, wayMark, wayTable
	if err := n.handle.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("divert packets: add rule: %w", err)
	}
	lo, err := n.handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	err = n.handle.RouteReplace(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: wayTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
	})
	if err != nil {
		return fmt.Errorf("divert packets: add route: %w", err)
	}
	return nil
}

// close ends all connections, and waits for what carries them.
func (w *way) close() {
	w.cancel()
	if w.tcp != nil {
		w.tcp.Close()
	}
	if w.udp != nil {
		w.udp.Close()
	}
	w.work.Wait()
	if w.rules != nil {
		w.rules.close()
	}
	if w.routes != nil {
		w.routes.Close()
	}
	w.home.Close()
}
