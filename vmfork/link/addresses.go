package link

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Addresses are those where a daemon that listens on port on all of this host's addresses can be reached, best first: those
// that this host itself uses on the way to the peers, then its others. Loopback's are among them only if a peer is there.
func Addresses(peers []netip.AddrPort, port uint16) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	add := func(a netip.Addr) {
		p := netip.AddrPortFrom(a.Unmap().WithZone(""), port)
		if !slices.Contains(all, p) && len(all) < maxAddresses {
			all = append(all, p)
		}
	}
	for _, p := range peers {
		if a, err := RouteTo(p.Addr()); err == nil {
			add(a)
		}
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, i := range interfaces {
		if n, ok := i.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap().IsGlobalUnicast() {
				add(a)
			}
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("this host has no address that others could reach: see ip address")
	}
	return all, nil
}

// RouteTo is the address that this host uses towards another. Nothing is sent.
func RouteTo(peer netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer, 9)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the way to %s: %w", peer, err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
