package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A verdict is what happens to packets from members for a destination.
type verdict struct {
	Destination
	kind verdictKind
}

type verdictKind int

const (
	divert verdictKind = iota // to the sockets of the way
	refuse                    // with an answer that says so
	pass                      // as if there were no way
)

// verdicts is the Way as a list, of which the first that fits holds. Where it names this host's addresses, these are
// those of the moment; permitted looks again.
func (w *way) verdicts() ([]verdict, error) {
	plan := w.network.plan
	var list []verdict
	add := func(kind verdictKind, d Destination) { list = append(list, verdict{d, kind}) }
	single := func(addr netip.Addr) Destination { return Destination{Prefix: netip.PrefixFrom(addr, 32)} }

	if w.Resolver.IsValid() {
		add(divert, Destination{Prefix: netip.PrefixFrom(plan.Host(), 32), Port: resolverPort})
	}
	add(pass, Destination{Prefix: plan.Subnet})
	for _, prefix := range special {
		add(pass, Destination{Prefix: prefix}) // to nowhere: no answer goes to a group
	}
	for _, d := range w.Allow {
		if d.Prefix.IsSingleIP() {
			w.named[d.Prefix.Addr()] = true
		}
		if d.Prefix.IsSingleIP() || linkLocal.Contains(d.Prefix.Addr()) && d.Prefix.Bits() >= linkLocal.Bits() {
			add(divert, d)
		}
	}
	add(refuse, Destination{Prefix: linkLocal})
	hosts := append([]netip.Addr(nil), w.Hosts...)
	if trunk := w.network.trunk; trunk != nil {
		hosts = append(append(hosts, trunk.fabric.Local), trunk.fabric.Hosts...)
	}
	own, err := w.routes.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, addr := range own {
		if ip, ok := netip.AddrFromSlice(addr.IP.To4()); ok {
			hosts = append(hosts, ip)
		}
	}
	for _, host := range hosts {
		if host = host.Unmap(); host.Is4() {
			add(refuse, single(host))
		}
	}
	for _, d := range w.Allow {
		add(divert, d)
	}
	everything := Destination{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	if len(w.Allow) == 0 {
		add(divert, everything)
	}
	add(refuse, everything)
	return list, nil
}

// match is what a rule asks of a packet.
func (d Destination) match() (exprs []expr.Any) {
	if bits := d.Prefix.Bits(); bits > 0 {
		exprs = append(exprs, network(16, 4), &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(bits, 32), Xor: make([]byte, 4),
		}, equal(d.Prefix.Addr().AsSlice()))
	}
	if d.Protocol != "" {
		protocol := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[d.Protocol]
		exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol}))
	}
	if d.Port != 0 {
		exprs = append(exprs, load(expr.PayloadBaseTransportHeader, 2, 2), equal(binaryutil.BigEndian.PutUint16(d.Port)))
	}
	return exprs
}

// permitted says where a connection goes that the rules have let out to an address. The rules have looked at the port; but
// a member may also have come here without having met them, by the port that they divert to, or the host have got an
// address since they were made.
func (w *way) permitted(to netip.AddrPort) (netip.AddrPort, error) {
	plan := w.network.plan
	if to == netip.AddrPortFrom(plan.Host(), resolverPort) && w.Resolver.IsValid() {
		return w.Resolver, nil
	}
	if plan.Subnet.Contains(to.Addr()) {
		return to, fmt.Errorf("%v is in the job's network", to)
	}
	if w.named[to.Addr()] {
		return to, nil
	}
	routes, err := w.routes.RouteGet(to.Addr().AsSlice())
	if err != nil {
		return to, fmt.Errorf("find the way to %v: %w", to, err)
	}
	for _, route := range routes {
		if route.Type != unix.RTN_UNICAST {
			return to, fmt.Errorf("%v is this host, or no place", to)
		}
	}
	return to, nil
}
