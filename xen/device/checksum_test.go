package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// segmentOf is a frame of TCP or UDP over IPv4 as Linux's driver sends it: where the checksum belongs is the sum of the pseudo header,
// not complemented. sum is the checksum that it has to get, worked out another way.
func segmentOf(protocol byte, payload []byte) (frame []byte, place int, sum uint16) {
	header := map[byte]int{protocolTCP: 20, protocolUDP: 8}[protocol]
	packet := make([]byte, 20+header, 20+header+len(payload))
	packet[0], packet[9] = 0x45, protocol
	binary.BigEndian.PutUint16(packet[2:], uint16(20+header+len(payload)))
	copy(packet[12:], []byte{10, 1, 0, 2, 10, 1, 255, 254})
	copy(packet[20:], []byte{0x12, 0x34, 0x56, 0x78})
	packet = append(packet, payload...)
	place = 20 + map[byte]int{protocolTCP: 16, protocolUDP: 6}[protocol]

	pseudo := append(bytes.Clone(packet[12:20]), 0, protocol)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(header+len(payload)))
	binary.BigEndian.PutUint16(packet[place:], onesComplement(pseudo))
	whole := append(bytes.Clone(pseudo), packet[20:]...)
	binary.BigEndian.PutUint16(whole[len(pseudo)+place-20:], 0)
	sum = ^onesComplement(whole)

	frame = append(make([]byte, ethernetHeader), packet...)
	binary.BigEndian.PutUint16(frame[12:], typeIPv4)
	return frame, ethernetHeader + place, sum
}

// onesComplement adds as RFC 1071 has it, carry by carry.
func onesComplement(b []byte) uint16 {
	sum := uint32(0)
	for i, x := range b {
		if i%2 == 0 {
			sum += uint32(x) << 8
		} else {
			sum += uint32(x)
		}
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

func TestChecksum(t *testing.T) {
	for _, protocol := range []byte{protocolTCP, protocolUDP} {
		for _, n := range []int{0, 1, 2, 999, 1400} {
			frame, place, want := segmentOf(protocol, noise(n))
			padded := append(bytes.Clone(frame), 1, 2, 3) // as short frames are
			if err := completeChecksum(padded); err != nil {
				t.Fatal(err)
			}
			if got := binary.BigEndian.Uint16(padded[place:]); got != want {
				t.Errorf("protocol %d with %d bytes has checksum %#x, want %#x", protocol, n, got, want)
			}
			copy(frame[place:], padded[place:place+2])
			if !bytes.Equal(frame, padded[:len(frame)]) {
				t.Error("something else has changed")
			}
		}
	}
	arp := make([]byte, 60)
	arp[12], arp[13] = 8, 6
	short, _, _ := segmentOf(protocolTCP, nil)
	icmp, _, _ := segmentOf(protocolUDP, nil)
	icmp[ethernetHeader+9] = 1
	for name, frame := range map[string][]byte{"none": nil, "ARP": arp, "half": short[:len(short)-5], "ICMP": icmp} {
		if err := completeChecksum(frame); !errors.Is(err, errChecksum) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A guest sends what it likes.
func FuzzChecksum(f *testing.F) {
	frame, _, _ := segmentOf(protocolTCP, []byte("hello"))
	f.Add(frame)
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		if err := completeChecksum(frame); err != nil && !bytes.Equal(frame, before) {
			t.Error("a frame that is refused has changed")
		}
	})
}
