package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// deviceWait is how long Configure waits for an interface to appear when its context has no deadline: the driver may
// still be at it in a guest that has just booted.
const deviceWait = 10 * time.Second

// A GuestConfig is the network identity of a clone.
type GuestConfig struct {
	// Interface names the interface to configure. Empty means the only Ethernet interface, as in a clone.
	Interface string `json:"interface,omitempty"`
	// MAC and Address are the clone's own.
	MAC     net.HardwareAddr `json:"mac"`
	Address netip.Prefix     `json:"address"`
	// Members are the others, the host among them. They become permanent neighbours, so that nobody asks for them.
	Members []Member `json:"members"`
}

// Configure makes the calling thread's namespace (the guest's only one) answer to config, whatever it answered to
// before: the interface's other IPv4 addresses and its old neighbours go. It waits for the interface to appear, until
// ctx ends or for ten seconds.
//
// It returns before any frame has been sent. An existing TCP connection of the guest does not survive it; that is
// as it must be in a clone (section 4.5.4).
func Configure(ctx context.Context, config GuestConfig) error {
	if err := config.check(); err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("configure network: open netlink socket: %w", err)
	}
	defer handle.Close()
	link, err := waitForInterface(ctx, handle, config.Interface)
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	if err := config.apply(handle, link); err != nil {
		return fmt.Errorf("configure network interface %s: %w", link.Attrs().Name, err)
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
	for _, member := range config.Members {
		if !member.IP.Is4() || len(member.MAC) != 6 {
			return fmt.Errorf("member %q has no IPv4 and hardware address", member.Name)
		}
	}
	return nil
}

// apply goes from the quiet end to the loud one: the link comes up last.
func (config *GuestConfig) apply(handle *netlink.Handle, link netlink.Link) error {
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}

	// Down also empties the interface's neighbour table and its routes.
	if err := handle.LinkSetDown(link); err != nil {
		return fmt.Errorf("take it down: %w", err)
	}
	quietIPv6(link.Attrs().Name)
	if err := handle.LinkSetHardwareAddr(link, config.MAC); err != nil {
		return fmt.Errorf("set MAC address %v: %w", config.MAC, err)
	}

	old, err := handle.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range old {
		if err := handle.AddrDel(link, &addr); err != nil {
			return fmt.Errorf("remove address %v: %w", addr.IPNet, err)
		}
	}
	if err := handle.AddrAdd(link, &netlink.Addr{IPNet: ipNet(config.Address)}); err != nil {
		return fmt.Errorf("add address %v: %w", config.Address, err)
	}

	for _, member := range config.Members {
		err := handle.NeighSet(&netlink.Neigh{
			LinkIndex:    link.Attrs().Index,
			Family:       netlink.FAMILY_V4,
			State:        netlink.NUD_PERMANENT,
			IP:           member.IP.AsSlice(),
			HardwareAddr: member.MAC,
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", member.Name, err)
		}
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

// errNoInterface is what passes when one waits.
var errNoInterface = errors.New("there is no Ethernet interface")

func waitForInterface(ctx context.Context, handle *netlink.Handle, name string) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	for {
		link, err := findInterface(handle, name)
		if !errors.Is(err, errNoInterface) {
			return link, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for network interface: %w (%w)", err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// findInterface finds the interface by name, or the only one that could be meant. In an image of a user's own there may
// be bridges and tunnels beside the clone's interface, and these are what the kernel calls devices of a kind.
func findInterface(handle *netlink.Handle, name string) (netlink.Link, error) {
	links, err := handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var hardware, virtual []netlink.Link
	for _, link := range links {
		attrs := link.Attrs()
		switch {
		case name != "" && attrs.Name == name:
			return link, nil
		case name != "" || attrs.EncapType != "ether" || attrs.Flags&net.FlagLoopback != 0:
		case link.Type() == "device":
			hardware = append(hardware, link)
		default:
			virtual = append(virtual, link)
		}
	}
	if len(hardware) == 0 {
		hardware = virtual
	}
	switch len(hardware) {
	case 0:
		if name != "" {
			return nil, fmt.Errorf("%w named %s", errNoInterface, name)
		}
		return nil, errNoInterface
	case 1:
		return hardware[0], nil
	}
	var names []string
	for _, link := range hardware {
		names = append(names, link.Attrs().Name)
	}
	return nil, fmt.Errorf("choose network interface: there are %s: name one", strings.Join(names, ", "))
}
