package multicast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// udp is the kernel's network.
type udp struct{}

const (
	// receiveBuffer has to take what comes while a receiver is not scheduled: 60 ms at 1 Gbit/s.
	receiveBuffer = 8 << 20
	sendBuffer    = 1 << 20
	// maxSegments is how many packets are given to the kernel at once (UDP_SEGMENT): it takes at most 64. This is where
	// processor time goes: of 0.5 s for 256 MB to four hosts behind a bridge, the kernel takes 0.3 s. Reading and
	// copying blocks takes 0.11 s, sealing 0.07 s, parity 0.01 s.
	maxSegments = 48
	// maxTrain is how many bytes they may be together.
	maxTrain = 60 << 10
)

// interfaceOf finds the interface that has an address.
func interfaceOf(local netip.Addr) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for i := range all {
		addresses, err := all[i].Addrs()
		if err != nil {
			continue // it has just been removed
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == local {
					return &all[i], nil
				}
			}
		}
	}
	return nil, fmt.Errorf("no interface of this host has the address %s: give the address on the network that the hosts share", local)
}

func (udp) room(local netip.Addr) (int, error) {
	i, err := interfaceOf(local)
	if err != nil {
		return 0, err
	}
	room := min(i.MTU-28, maxRoom)
	if room < minRoom {
		return 0, fmt.Errorf("interface %s has an MTU of %d: set at least %d", i.Name, i.MTU, minRoom+28)
	}
	return room, nil
}

func (udp) unicast(local netip.Addr) (socket, error) {
	s, err := openUDP(netip.AddrPortFrom(local, 0), func(fd int) error {
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Address: local.As4()}); err != nil {
			return fmt.Errorf("choose the interface for multicast: %w", err)
		}
		// To the hosts on this network. One that is on the same machine, in a test, hears it too.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 1); err != nil {
			return fmt.Errorf("limit multicast to this network: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1); err != nil {
			return fmt.Errorf("let multicast be heard on this machine: %w", err)
		}
		// Packets fit the MTU; one that does not is an error here, not two pieces of which either may be lost.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO); err != nil {
			return fmt.Errorf("forbid fragments: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket on %s: %w", local, err)
	}
	return s, nil
}

func (udp) join(local netip.Addr, group netip.AddrPort) (socket, error) {
	// The kernel finds the interface by its address, sooner than it could be asked for all that there are.
	m := &unix.IPMreqn{Multiaddr: group.Addr().As4(), Address: local.As4()}
	s, err := openUDP(group, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("share the port: %w", err)
		}
		// Otherwise it would get what other programs of this machine have joined.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0); err != nil {
			return fmt.Errorf("hear this group alone: %w", err)
		}
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, m); err != nil {
			return fmt.Errorf("join on the interface of %s: %w", local, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("join the group %s: %w", group, err)
	}
	s.membership = m
	return s, nil
}

type udpSocket struct {
	conn    *net.UDPConn
	batch   *ipv4.PacketConn
	local   netip.AddrPort
	whole   atomic.Bool // the kernel does not cut trains for us
	buffers *readBuffers

	membership *unix.IPMreqn // of a group's socket
}

func openUDP(local netip.AddrPort, set func(fd int) error) (*udpSocket, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = set(int(fd))
			// Root may have more than the system's limit; others get what they get.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
			}
			// Trains may be delivered whole. A kernel that cannot cuts them.
			unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
			// How long a packet has waited for this process shall not look as if the network were slow.
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		})
		return errors.Join(err, failed)
	}}
	c, err := config.ListenPacket(context.Background(), "udp4", local.String())
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UDPConn)
	s := &udpSocket{conn: conn, batch: ipv4.NewPacketConn(conn), local: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	return s, nil
}

func (s *udpSocket) address() netip.AddrPort {
	return netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port())
}

func (s *udpSocket) close() error { return s.conn.Close() }

func (s *udpSocket) rejoin() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("join again: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_DROP_MEMBERSHIP, s.membership)
		failed = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, s.membership)
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("join again: %w", err)
	}
	return nil
}

func (s *udpSocket) send(p []byte, size int, to netip.AddrPort) error {
	train := maxTrain / size * size
	train = min(train, maxSegments*size)
	for len(p) > 0 {
		n := min(len(p), train)
		if n <= size || s.whole.Load() {
			n = min(len(p), size)
			if _, err := s.conn.WriteToUDPAddrPort(p[:n], to); err != nil {
				return fmt.Errorf("send to %s: %w", to, err)
			}
		} else if _, _, err := s.conn.WriteMsgUDPAddrPort(p[:n], segmentMessage(size), to); err != nil {
			if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOPROTOOPT) {
				return fmt.Errorf("send to %s: %w", to, err)
			}
			// An interface that does not compute checksums, or an old kernel: one packet at a time from now on.
			s.whole.Store(true)
			continue
		}
		p = p[n:]
	}
	return nil
}

// segmentMessage tells the kernel of what size the packets of a train are.
func segmentMessage(size int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&b[unix.CmsgLen(0)])) = uint16(size)
	return b
}

// readBatch is how many trains, or packets, are received by one call.
const readBatch = 6

// readBuffers are what they are received into. A descriptor's group is left as soon as it has come, and to clear as much
// memory again for the next would take longer than to receive it.
type readBuffers [readBatch]ipv4.Message

var allReadBuffers = sync.Pool{New: func() any {
	b := new(readBuffers)
	for i := range b {
		b[i].Buffers = [][]byte{make([]byte, 1<<16)}
		b[i].OOB = make([]byte, unix.CmsgSpace(4)+unix.CmsgSpace(16))
	}
	return b
}}

func (s *udpSocket) receive(take func(p []byte, from netip.AddrPort, at time.Time)) error {
	if s.buffers == nil {
		s.buffers = allReadBuffers.Get().(*readBuffers)
	}
	n, err := s.batch.ReadBatch(s.buffers[:], 0)
	if err != nil {
		if errors.Is(err, net.ErrClosed) {
			allReadBuffers.Put(s.buffers)
			s.buffers = nil
			return net.ErrClosed
		}
		return fmt.Errorf("receive on %s: %w", s.local, err)
	}
	for i := range n {
		m := &s.buffers[i]
		from := m.Addr.(*net.UDPAddr).AddrPort()
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		p := m.Buffers[0][:m.N]
		size, at := parseControl(m.OOB[:m.NN])
		if size <= 0 {
			size = max(1, len(p))
		}
		if at.IsZero() {
			at = time.Now()
		}
		for len(p) > 0 {
			k := min(size, len(p))
			take(p[:k:k], from, at)
			p = p[k:]
		}
	}
	return nil
}

// parseControl returns the size of the packets of a train, or 0 for a packet alone, and when it came.
func parseControl(control []byte) (size int, at time.Time) {
	for len(control) >= unix.CmsgLen(0) {
		h, body, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(body) >= 4:
			size = int(*(*int32)(unsafe.Pointer(&body[0])))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(body) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = time.Unix((*unix.Timespec)(unsafe.Pointer(&body[0])).Unix())
		}
		control = rest
	}
	return size, at
}
