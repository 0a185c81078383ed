package network

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// A Destination is what members may reach outside of the job's network.
type Destination struct {
	Prefix   netip.Prefix // IPv4; one of 32 bits is one address
	Port     uint16       // 0 is all of them
	Protocol string       // "tcp" or "udp"; "" is both
}

// String is the form that ParseAllow reads.
func (d Destination) String() string {
	s := d.Prefix.String()
	if d.Prefix.IsSingleIP() {
		s = d.Prefix.Addr().String()
	}
	if d.Port != 0 {
		s += ":" + strconv.Itoa(int(d.Port))
		if d.Protocol != "" {
			s += "/" + d.Protocol
		}
	}
	return s
}

// special are addresses that are no place outside, whoever asks for them.
var special = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3")}

func (d Destination) check() error {
	switch {
	case !d.Prefix.IsValid() || !d.Prefix.Addr().Is4():
		return errors.New("it is no IPv4 address, and the job's network is IPv4")
	case d.Prefix != d.Prefix.Masked():
		return fmt.Errorf("bits are set behind the first %d: is %v meant?", d.Prefix.Bits(), d.Prefix.Masked())
	case d.Protocol != "" && d.Protocol != "tcp" && d.Protocol != "udp":
		return fmt.Errorf("protocol %q is neither tcp nor udp", d.Protocol)
	case d.Protocol != "" && d.Port == 0:
		return errors.New("there is a protocol, but no port before it")
	}
	for _, prefix := range special {
		if prefix.Contains(d.Prefix.Addr()) && d.Prefix.Bits() >= prefix.Bits() {
			return fmt.Errorf("nothing in %v is outside", prefix)
		}
	}
	return nil
}

// ParseAllow reads a destination: ADDRESS[/BITS][:PORT[/PROTOCOL]], as 10.0.0.0/8, 192.0.2.1:443 or 192.0.2.0/24:53/udp.
func ParseAllow(s string) (Destination, error) {
	d, err := parseAllow(s)
	if err == nil {
		err = d.check()
	}
	if err != nil {
		return Destination{}, fmt.Errorf("read destination %q (ADDRESS[/BITS][:PORT[/PROTOCOL]]): %w", s, err)
	}
	return d, nil
}

func parseAllow(s string) (d Destination, err error) {
	if strings.Count(s, ":") > 1 {
		return d, errors.New("it is no IPv4 address, and the job's network is IPv4")
	}
	where, port, ported := strings.Cut(s, ":")
	if ported {
		var named bool
		if port, d.Protocol, named = strings.Cut(port, "/"); named && d.Protocol == "" {
			return d, errors.New("there is no protocol behind the port")
		}
		if d.Port, err = parsePort(port); err != nil {
			return d, err
		}
	}
	if strings.Contains(where, "/") {
		d.Prefix, err = netip.ParsePrefix(where)
	} else {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(where); err == nil {
			d.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
	}
	if err != nil {
		return d, fmt.Errorf("%q is no address, with or without a number of bits: names are not looked up", where)
	}
	return d, nil
}

func parsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is no port between 1 and 65535", s)
	}
	return uint16(port), nil
}

// minRate is less than a modem's; below that, nothing works for reasons that nobody finds.
const minRate, maxRate = 8_000, 1e12

// ParseRate reads bits per second: a number and kbit, mbit or gbit, which are powers of 1000, as 100mbit or 1.5gbit; or
// bit, or nothing, for the bits themselves.
func ParseRate(s string) (int64, error) {
	number := strings.ToLower(s)
	factor := 1.0
	for _, unit := range []struct {
		name   string
		factor float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		if rest, ok := strings.CutSuffix(number, unit.name); ok {
			number, factor = rest, unit.factor
			break
		}
	}
	if strings.Trim(number, "0123456789.") != "" { // ParseFloat knows more than is meant here
		return 0, fmt.Errorf("read rate %q: want a number and bit, kbit, mbit or gbit (per second), as 100mbit", s)
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("read rate %q: want a number and bit, kbit, mbit or gbit (per second), as 100mbit", s)
	}
	rate := math.Round(value * factor)
	if rate < minRate || rate > maxRate {
		return 0, fmt.Errorf("read rate %q: it is not between 8kbit and 1000gbit", s)
	}
	return int64(rate), nil
}

// A Forward makes a TCP port of the parent one of the host's.
type Forward struct {
	Host netip.AddrPort // where the host listens
	Port uint16         // the parent's
}

// String is the form that ParseForward reads.
func (f Forward) String() string { return fmt.Sprintf("%v:%d", f.Host, f.Port) }

// ParseForward reads [ADDRESS:]PORT:PORT: the host's, then the parent's. Without an address the host listens where only
// its own programs reach it, 127.0.0.1; 0.0.0.0 is all the addresses it has.
func ParseForward(s string) (Forward, error) {
	fail := func(err error) (Forward, error) {
		return Forward{}, fmt.Errorf("read forwarded port %q ([ADDRESS:]HOSTPORT:PARENTPORT): %w", s, err)
	}
	f := Forward{}
	cut := strings.LastIndexByte(s, ':')
	if cut < 0 {
		return fail(errors.New("there is one port"))
	}
	var err error
	if f.Port, err = parsePort(s[cut+1:]); err != nil {
		return fail(err)
	}
	host := s[:cut]
	if !strings.Contains(host, ":") {
		port, err := parsePort(host)
		if err != nil {
			return fail(err)
		}
		f.Host = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		return f, nil
	}
	if f.Host, err = netip.ParseAddrPort(host); err != nil || f.Host.Port() == 0 || f.Host.Addr().Zone() != "" {
		return fail(fmt.Errorf("%q is no address and port", host))
	}
	return f, nil
}

// HostResolver is the first server of this host's resolv.conf(5), for [Way].
func HostResolver() (netip.AddrPort, error) {
	const file = "/etc/resolv.conf"
	text, err := os.ReadFile(file)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find this host's resolver: %w", err)
	}
	return resolverOf(string(text), file)
}

func resolverOf(text, file string) (netip.AddrPort, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "nameserver" {
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				return netip.AddrPortFrom(addr, resolverPort), nil
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("find this host's resolver: no nameserver in %s", file)
}
