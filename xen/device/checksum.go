package device

import (
	"encoding/binary"
	"errors"
)

// Of the headers of a frame, as far as a checksum is concerned.
const (
	ethernetHeader = 14
	typeIPv4       = 0x0800
	protocolTCP    = 6
	protocolUDP    = 17
)

var errChecksum = errors.New("a frame without a checksum is neither TCP nor UDP over IPv4")

// completeChecksum fills in the checksum of a frame whose sender has left that to the device: in its place is the sum of the
// pseudo header. Linux's driver takes it for granted that devices do that over IPv4 (NETTXF_csum_blank).
func completeChecksum(frame []byte) error {
	if len(frame) < ethernetHeader+20 || binary.BigEndian.Uint16(frame[12:]) != typeIPv4 {
		return errChecksum
	}
	packet := frame[ethernetHeader:]
	begin, end := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
	place := map[byte]int{protocolTCP: 16, protocolUDP: 6}[packet[9]]
	if packet[0]>>4 != 4 || begin < 20 || end > len(packet) || place == 0 || begin+place+2 > end {
		return errChecksum
	}
	segment := packet[begin:end]
	sum := uint64(0)
	for len(segment) > 1 {
		sum += uint64(binary.BigEndian.Uint16(segment))
		segment = segment[2:]
	}
	if len(segment) > 0 {
		sum += uint64(segment[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	sum = ^sum & 0xffff
	if sum == 0 && packet[9] == protocolUDP { // 0 says that there is none
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(packet[begin+place:], uint16(sum))
	return nil
}
