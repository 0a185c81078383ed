package allocator

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// hereLimit is for the name service's answers. A host that it says nothing of is
// another one.
const hereLimit = 5 * time.Second

// Here says whether a host's name or address is this machine's: of the host
// itself, or of one of its interfaces.
func Here(ctx context.Context, name string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	self, err := os.Hostname()
	self = strings.ToLower(self)
	if err == nil && name == self || name == "localhost" {
		return true
	}
	addresses := []netip.Addr{}
	if one, err := netip.ParseAddr(name); err == nil {
		addresses = append(addresses, one)
	} else {
		ctx, cancel := context.WithTimeout(ctx, hereLimit)
		defer cancel()
		if addresses, err = net.DefaultResolver.LookupNetIP(ctx, "ip", name); err != nil {
			return false
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addresses, func(one netip.Addr) bool {
		one = one.Unmap().WithZone("")
		return one.IsLoopback() || one.IsUnspecified() || slices.ContainsFunc(own, func(a net.Addr) bool {
			prefix, err := netip.ParsePrefix(a.String())
			return err == nil && prefix.Addr().Unmap() == one
		})
	})
}
