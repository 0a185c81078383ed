package multicast

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// network makes sockets. There are two: the kernel's, and one for tests that loses, delays and doubles packets.
type network interface {
	// unicast opens a socket on a local address, with a port that is free.
	unicast(local netip.Addr) (socket, error)
	// join opens a socket that gets what is sent to a group, and has the network carry it here, until it is closed.
	join(local netip.Addr, group netip.AddrPort) (socket, error)
	// room is how large a packet may be, in bytes of UDP payload, so that it is not cut on its way.
	room(local netip.Addr) (int, error)
}

// socket is a UDP socket.
type socket interface {
	address() netip.AddrPort
	// send sends packets that lie one after another in p, each of size bytes, except that the last may be shorter. It
	// may be called by several goroutines. It returns when the kernel has them; an error says nothing of how many.
	send(p []byte, size int, to netip.AddrPort) error
	// receive waits for packets and calls take for each, with the time when it came. A packet is take's until it returns,
	// and may be written to. Only one goroutine receives. After close it returns net.ErrClosed.
	receive(take func(p []byte, from netip.AddrPort, at time.Time)) error
	// rejoin joins a group's socket again, so that switches hear of it again.
	rejoin() error
	close() error
}

// maxRoom bounds the size of a packet where the interface's MTU would allow for more, as loopback's does.
const maxRoom = 8972

// minRoom is what is left of the smallest MTU that every IPv4 network has.
const minRoom = 576 - 28

// groupOf derives an id's group, which every host can compute. The address is administratively scoped (239.0.0.0/8); it
// is none of those whose Ethernet address is the one of a 224.0.0.x, which switches flood. If two ids have the same group,
// their members only get packets that do not open.
func (k keyring) groupOf(origin int, id ID) netip.AddrPort {
	h := k.derive("address", end{host: uint16(origin)}.bytes()[:2], id[:])
	return netip.AddrPortFrom(groupAddress(h), groupPort(h))
}

// objectGroup derives a published object's group. All objects of an origin have one address, so that hosts can have
// joined it before an object is published; the port is the object's.
func (k keyring) objectGroup(origin int, id ID) netip.AddrPort {
	of := end{host: uint16(origin)}.bytes()[:2]
	return netip.AddrPortFrom(groupAddress(k.derive("objects", of)), groupPort(k.derive("object", of, id[:])))
}

func groupAddress(h []byte) netip.Addr {
	n := binary.BigEndian.Uint32(h)
	if n&0x7fff00 == 0 {
		n |= 0x000100
	}
	return netip.AddrFrom4([4]byte{239, byte(n >> 16), byte(n >> 8), byte(n)})
}

// groupPort keeps below the ports that clients mostly get by themselves.
func groupPort(h []byte) uint16 { return 1<<14 + binary.BigEndian.Uint16(h[4:])%(1<<14) }

// attendPort is the port of sockets that only keep a group's address joined.
const attendPort = 1<<14 - 1
