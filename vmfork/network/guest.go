package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A GuestConfig is the network identity of a clone.
type GuestConfig struct {
	// Interface names the interface to configure. Empty means the only Ethernet interface, as in a clone.
	Interface string `json:"interface,omitempty"`
	// MAC and Address are the clone's own.
	MAC     net.HardwareAddr `json:"mac"`
	Address netip.Prefix     `json:"address"`
	// Members are the others, the host among them. They become permanent neighbours, so that nobody asks for them.
	Members []Member `json:"members"`
	// MTU is the largest IP packet that the interface may send, in bytes ([Network.MTU]). 0 leaves it as it is.
	MTU int `json:"mtu,omitempty"`
	// Gateway is where packets go that are for nobody on the network; the zero Addr is nowhere. See [Network.OpenWay].
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// Configure makes the calling thread's namespace (the guest's only one) answer to config, whatever it answered to
// before: the interface's old addresses, neighbours and routes go. It waits for the interface to appear, until ctx ends or for ten
// seconds.
//
// It returns before any frame has been sent. An existing TCP connection of the guest does not survive it; that is
// as it must be in a clone (section 4.5.4).
//
// It is on the way of every clone, where under TCG each function that runs for the first time is translated first. So
// it speaks ioctl (netdevice(7), arp(7)), a dozen system calls in a straight line: 6 ms in a fresh clone, where the same
// steps by way of a netlink library took 75.
func Configure(ctx context.Context, config GuestConfig) error {
	if err := config.check(); err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	s, err := newControl()
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	defer s.close()
	name, err := waitForInterface(ctx, s, config.Interface)
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	if err := config.applyTo(ctx, s, name); err != nil {
		return fmt.Errorf("configure network interface %s: %w", name, err)
	}
	return nil
}

// applyTo is apply for an interface that has its name already, or still, and whose driver has yet to come to terms with the
// host: until then it is not to be changed, and there is no device.
func (config *GuestConfig) applyTo(ctx context.Context, s control, name string) error {
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	for {
		err := config.apply(s, name)
		if !errors.Is(err, unix.ENODEV) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for its driver: %w (%w)", err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// AddNeighbours makes permanent neighbours of members that have come since Configure: in a machine that runs on after a
// fork, its new clones. It waits for the interface as Configure does. To make one twice is no error; and none needs to be
// unmade, for whoever gets the number of a member that is gone gets its addresses too.
func AddNeighbours(ctx context.Context, members []Member) error {
	if err := checkMembers(members); err != nil {
		return fmt.Errorf("add neighbours: %w", err)
	}
	s, err := newControl()
	if err != nil {
		return fmt.Errorf("add neighbours: %w", err)
	}
	defer s.close()
	name, err := waitForInterface(ctx, s, "")
	if err != nil {
		return fmt.Errorf("add neighbours: %w", err)
	}
	if err := s.setNeighbours(name, members); err != nil {
		return fmt.Errorf("add neighbours to interface %s: %w", name, err)
	}
	return nil
}

// LoopbackUp brings lo up. A guest does it before it is a parent, for it takes 40 ms under TCG and is the same in every
// clone.
func LoopbackUp() error {
	s, err := newControl()
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer s.close()
	if err := s.setUp("lo", true); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

func (config *GuestConfig) check() error {
	if len(config.MAC) != 6 || config.MAC[0]&1 != 0 {
		return fmt.Errorf("%q is no hardware address of an interface", config.MAC)
	}
	if !config.Address.IsValid() || !config.Address.Addr().Is4() {
		return fmt.Errorf("%v is no IPv4 address and prefix length", config.Address)
	}
	if config.MTU < 0 || config.MTU > 1<<16-1 {
		return fmt.Errorf("%d is no MTU", config.MTU)
	}
	if config.Gateway.IsValid() && (!config.Gateway.Is4() || !config.Address.Masked().Contains(config.Gateway)) {
		return fmt.Errorf("gateway %v is not in the network of %v", config.Gateway, config.Address)
	}
	return checkMembers(config.Members)
}

func checkMembers(members []Member) error {
	for _, member := range members {
		if !member.IP.Is4() || len(member.MAC) != 6 {
			return fmt.Errorf("member %q has no IPv4 and hardware address", member.Name)
		}
	}
	return nil
}

// apply goes from the quiet end to the loud one: the link comes up last.
func (config *GuestConfig) apply(s control, name string) error {
	if err := s.setUp("lo", true); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	// Down also empties the interface's table of neighbours, with the permanent ones, and its routes.
	if err := s.setUp(name, false); err != nil {
		return fmt.Errorf("take it down: %w", err)
	}
	quietIPv6(name)
	if err := s.setMAC(name, config.MAC); err != nil {
		return fmt.Errorf("set MAC address %v: %w", config.MAC, err)
	}
	if config.MTU != 0 {
		if err := s.setMTU(name, config.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", config.MTU, err)
		}
	}
	// All of them: one that a user had added would be there once in each clone.
	if err := s.dropAddresses(name); err != nil {
		return fmt.Errorf("take its addresses away: %w", err)
	}
	if err := s.setAddress(name, config.Address); err != nil {
		return fmt.Errorf("set address %v: %w", config.Address, err)
	}
	if err := s.setNeighbours(name, config.Members); err != nil {
		return err
	}
	if err := s.setUp(name, true); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	if config.Gateway.IsValid() {
		if err := s.setGateway(name, config.Gateway); err != nil {
			return fmt.Errorf("set gateway %v: %w", config.Gateway, err)
		}
	}
	return nil
}
