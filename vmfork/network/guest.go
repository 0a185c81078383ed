package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

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
// before: the interface's old address and neighbours go. It waits for the interface to appear, until ctx ends or for ten
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
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("configure network: open socket: %w", err)
	}
	defer unix.Close(s)
	name, err := waitForInterface(ctx, control(s), config.Interface)
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	if err := config.apply(control(s), name); err != nil {
		return fmt.Errorf("configure network interface %s: %w", name, err)
	}
	return nil
}

// LoopbackUp brings lo up. A guest does it before it is a parent, for it takes 40 ms under TCG and is the same in every
// clone.
func LoopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(s)
	if err := control(s).setUp("lo", true); err != nil {
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
	for _, member := range config.Members {
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
	// Down also empties the interface's neighbour table and its routes.
	if err := s.setUp(name, false); err != nil {
		return fmt.Errorf("take it down: %w", err)
	}
	quietIPv6(name)
	if err := s.setMAC(name, config.MAC); err != nil {
		return fmt.Errorf("set MAC address %v: %w", config.MAC, err)
	}
	if err := s.setAddress(name, config.Address); err != nil {
		return fmt.Errorf("set address %v: %w", config.Address, err)
	}
	for _, member := range config.Members {
		if err := s.setNeighbour(name, member); err != nil {
			return fmt.Errorf("add neighbour %s: %w", member.Name, err)
		}
	}
	if err := s.setUp(name, true); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

// control is a socket for the ioctls of network interfaces.
type control int

func (s control) do(request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// ifreq is Linux's struct ifreq: a name, and a union of which a socket address is the largest member used here.
type ifreq struct {
	name  [unix.IFNAMSIZ]byte
	value [24]byte
}

func newIfreq(name string) *ifreq {
	var r ifreq
	copy(r.name[:unix.IFNAMSIZ-1], name)
	return &r
}

// setUp changes nothing, and so costs nothing, where the interface is as it should be.
func (s control) setUp(name string, up bool) error {
	r := newIfreq(name)
	if err := s.do(unix.SIOCGIFFLAGS, unsafe.Pointer(r)); err != nil {
		return err
	}
	flags := binary.NativeEndian.Uint16(r.value[:])
	want := flags &^ unix.IFF_UP
	if up {
		want = flags | unix.IFF_UP
	}
	if want == flags {
		return nil
	}
	binary.NativeEndian.PutUint16(r.value[:], want)
	return s.do(unix.SIOCSIFFLAGS, unsafe.Pointer(r))
}

func (s control) setMAC(name string, mac net.HardwareAddr) error {
	r := newIfreq(name)
	binary.NativeEndian.PutUint16(r.value[:], unix.ARPHRD_ETHER)
	copy(r.value[2:], mac)
	return s.do(unix.SIOCSIFHWADDR, unsafe.Pointer(r))
}

// setAddress replaces the interface's address.
func (s control) setAddress(name string, address netip.Prefix) error {
	r := newIfreq(name)
	putInet(r.value[:], address.Addr().As4())
	if err := s.do(unix.SIOCSIFADDR, unsafe.Pointer(r)); err != nil {
		return err
	}
	r = newIfreq(name)
	putInet(r.value[:], [4]byte(net.CIDRMask(address.Bits(), 32)))
	return s.do(unix.SIOCSIFNETMASK, unsafe.Pointer(r))
}

// putInet writes a struct sockaddr_in without a port.
func putInet(b []byte, ip [4]byte) {
	binary.NativeEndian.PutUint16(b, unix.AF_INET)
	copy(b[4:], ip[:])
}

// setNeighbour makes a permanent entry (struct arpreq: protocol address, hardware address, flags, netmask, device).
func (s control) setNeighbour(name string, member Member) error {
	const flagCompleted, flagPermanent = 0x02, 0x04
	var r struct {
		protocol, hardware [16]byte
		flags              int32
		netmask            [16]byte
		device             [16]byte
	}
	putInet(r.protocol[:], member.IP.As4())
	binary.NativeEndian.PutUint16(r.hardware[:], unix.ARPHRD_ETHER)
	copy(r.hardware[2:], member.MAC)
	r.flags = flagCompleted | flagPermanent
	copy(r.device[:15], name)
	return s.do(unix.SIOCSARP, unsafe.Pointer(&r))
}

// errNoInterface is what passes when one waits.
var errNoInterface = errors.New("there is no Ethernet interface")

func waitForInterface(ctx context.Context, s control, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	for {
		found, err := findInterface(s, name)
		if !errors.Is(err, errNoInterface) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for network interface: %w (%w)", err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// findInterface finds the interface by name, or the only one that could be meant: the agent is the guest's init, so
// nobody has made others.
func findInterface(s control, name string) (string, error) {
	// /proc/net would be that of the process's first thread.
	table, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return "", fmt.Errorf("list network interfaces: %w", err)
	}
	var ethernet []string
	for line := range strings.Lines(string(table)) {
		found, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue // the heading
		}
		if found == name {
			return name, nil
		}
		r := newIfreq(found)
		if err := s.do(unix.SIOCGIFHWADDR, unsafe.Pointer(r)); err == nil && binary.NativeEndian.Uint16(r.value[:]) == unix.ARPHRD_ETHER {
			ethernet = append(ethernet, found)
		}
	}
	switch {
	case name != "":
		return "", fmt.Errorf("%w named %s", errNoInterface, name)
	case len(ethernet) == 0:
		return "", errNoInterface
	case len(ethernet) > 1:
		return "", fmt.Errorf("choose network interface: there are %s: name one", strings.Join(ethernet, ", "))
	}
	return ethernet[0], nil
}
