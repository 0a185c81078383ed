package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is a socket for the ioctls of network interfaces.
type control int

func newControl() (control, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	return control(s), nil
}

func (s control) close() { unix.Close(int(s)) }

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

// dropAddresses takes all IPv4 addresses from an interface, those of its aliases ("eth0:1") too. Not those of other
// interfaces.
func (s control) dropAddresses(name string) error {
	labels, err := s.labels()
	if err != nil {
		return err
	}
	for _, label := range labels {
		if device, _, _ := strings.Cut(label, ":"); device != name {
			continue
		}
		// To set the address 0.0.0.0 takes the first with this label away, and where there is none, does nothing.
		if err := s.setIP(label, netip.IPv4Unspecified()); err != nil {
			return fmt.Errorf("drop address of %s: %w", label, err)
		}
	}
	return nil
}

// labels has an entry for each IPv4 address of the namespace's interfaces: what the address goes by.
func (s control) labels() ([]string, error) {
	const entry = int(unsafe.Sizeof(ifreq{}))
	// Of struct ifconf: a length in bytes, and where.
	var list struct {
		length int32
		buffer unsafe.Pointer
	}
	// Without a buffer, the kernel says how long it would have to be.
	if err := s.do(unix.SIOCGIFCONF, unsafe.Pointer(&list)); err != nil {
		return nil, fmt.Errorf("count addresses: %w", err)
	}
	if list.length == 0 {
		return nil, nil
	}
	buffer := make([]byte, list.length)
	list.buffer = unsafe.Pointer(&buffer[0])
	if err := s.do(unix.SIOCGIFCONF, unsafe.Pointer(&list)); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var labels []string
	for buffer = buffer[:list.length]; len(buffer) >= entry; buffer = buffer[entry:] {
		labels = append(labels, unix.ByteSliceToString(buffer[:unix.IFNAMSIZ]))
	}
	return labels, nil
}

func (s control) setIP(label string, ip netip.Addr) error {
	r := newIfreq(label)
	putInet(r.value[:], ip.As4())
	return s.do(unix.SIOCSIFADDR, unsafe.Pointer(r))
}

// setAddress gives an address to an interface that has none.
func (s control) setAddress(name string, address netip.Prefix) error {
	if err := s.setIP(name, address.Addr()); err != nil {
		return err
	}
	r := newIfreq(name)
	putInet(r.value[:], [4]byte(net.CIDRMask(address.Bits(), 32)))
	return s.do(unix.SIOCSIFNETMASK, unsafe.Pointer(r))
}

// putInet writes a struct sockaddr_in without a port.
func putInet(b []byte, ip [4]byte) {
	binary.NativeEndian.PutUint16(b, unix.AF_INET)
	copy(b[4:], ip[:])
}

func (s control) setMTU(name string, mtu int) error {
	r := newIfreq(name)
	binary.NativeEndian.PutUint32(r.value[:], uint32(mtu))
	return s.do(unix.SIOCSIFMTU, unsafe.Pointer(r))
}

// setGateway makes the default route of an interface that is up (struct rtentry: padding, destination, gateway, netmask,
// flags, and what is not used here but the device's name).
func (s control) setGateway(name string, gateway netip.Addr) error {
	var r struct {
		_                             uint64
		destination, gateway, netmask [16]byte
		flags, _                      uint16
		_                             uint64
		_                             unsafe.Pointer
		metric                        int16
		device                        *byte
		mtu, window                   uint64
		roundTrip                     uint16
	}
	putInet(r.destination[:], [4]byte{})
	putInet(r.gateway[:], gateway.As4())
	putInet(r.netmask[:], [4]byte{})
	r.flags = unix.RTF_UP | unix.RTF_GATEWAY
	device := append([]byte(name), 0)
	r.device = &device[0]
	return s.do(unix.SIOCADDRT, unsafe.Pointer(&r))
}

func (s control) setNeighbours(name string, members []Member) error {
	for _, member := range members {
		if err := s.setNeighbour(name, member); err != nil {
			return fmt.Errorf("add neighbour %s: %w", member.Name, err)
		}
	}
	return nil
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
