package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// An identity is read by a clone whose code is translated as it goes. So it is
// not JSON, whose decoder runs through thousands of lines once, but numbers of
// eight bytes, high first, and byte strings behind their lengths, in the order
// below.

// encode writes an identity for the order.
func (id Identity) encode() []byte {
	var w wire
	for _, n := range []int{id.Clone, id.Member, id.VCPUs, int(id.Time.UnixNano())} {
		w.number(n)
	}
	for _, s := range []string{id.Ticket, id.Name, id.Host, id.BootID, id.MachineID, id.Fork.Call, id.Fork.Checkpoint, id.Network.Interface} {
		w.bytes([]byte(s))
	}
	w.bytes(id.Seed)
	w.bytes(id.Session)
	w.bytes(id.Network.MAC)
	w.bytes(id.Network.Address.Addr().AsSlice())
	w.number(id.Network.Address.Bits())
	w.members(id.Network.Members)
	w.number(id.Network.MTU)
	w.bytes(id.Network.Gateway.AsSlice())
	return w.data
}

// ParseIdentity reads the identity that comes with the order to become a clone.
func ParseIdentity(data []byte) (id Identity, err error) {
	r := wire{data: data}
	var when, bits int
	for _, n := range []*int{&id.Clone, &id.Member, &id.VCPUs, &when} {
		*n = r.readNumber()
	}
	for _, s := range []*string{&id.Ticket, &id.Name, &id.Host, &id.BootID, &id.MachineID, &id.Fork.Call, &id.Fork.Checkpoint, &id.Network.Interface} {
		*s = string(r.readBytes())
	}
	id.Time = time.Unix(0, int64(when))
	id.Seed = r.readBytes()
	id.Session = r.readBytes()
	id.Network.MAC = r.readBytes()
	addr := r.readAddr()
	bits = r.readNumber()
	id.Network.Address = netip.PrefixFrom(addr, bits)
	id.Network.Members = r.readMembers()
	id.Network.MTU = r.readNumber()
	if gateway := r.readBytes(); len(gateway) > 0 {
		id.Network.Gateway = r.addr(gateway)
	}
	return id, r.end("identity")
}

// encodeMembers and decodeMembers are for the order of that name.
func encodeMembers(members []network.Member) []byte {
	var w wire
	w.members(members)
	return w.data
}

func decodeMembers(data []byte) ([]network.Member, error) {
	r := wire{data: data}
	members := r.readMembers()
	return members, r.end("members")
}

// wire is what is written, or what is left to read. Nothing is read after the
// first mistake.
type wire struct {
	data []byte
	bad  bool
}

func (w *wire) number(n int) { w.data = binary.BigEndian.AppendUint64(w.data, uint64(n)) }

func (w *wire) bytes(b []byte) {
	w.number(len(b))
	w.data = append(w.data, b...)
}

func (w *wire) members(members []network.Member) {
	w.number(len(members))
	for _, m := range members {
		w.bytes([]byte(m.Name))
		w.bytes(m.IP.AsSlice())
		w.bytes(m.MAC)
	}
}

func (w *wire) readNumber() int {
	if w.bad || len(w.data) < 8 {
		w.bad = true
		return 0
	}
	n := binary.BigEndian.Uint64(w.data)
	w.data = w.data[8:]
	return int(n)
}

func (w *wire) readBytes() []byte {
	n := w.readNumber()
	if w.bad || n < 0 || n > len(w.data) {
		w.bad = true
		return nil
	}
	b := w.data[:n:n]
	w.data = w.data[n:]
	return b
}

func (w *wire) readAddr() netip.Addr { return w.addr(w.readBytes()) }

func (w *wire) addr(b []byte) netip.Addr {
	addr, ok := netip.AddrFromSlice(b)
	w.bad = w.bad || !ok
	return addr
}

func (w *wire) readMembers() []network.Member {
	n := w.readNumber()
	if w.bad || n < 0 || n > len(w.data) {
		w.bad = true
		return nil
	}
	members := make([]network.Member, 0, n)
	for range n {
		m := network.Member{Name: string(w.readBytes()), IP: w.readAddr(), MAC: net.HardwareAddr(w.readBytes())}
		if w.bad {
			return nil
		}
		members = append(members, m)
	}
	return members
}

// end says what was wrong with it.
func (w *wire) end(what string) error {
	switch {
	case w.bad:
		return fmt.Errorf("read the %s: it is cut off or damaged", what)
	case len(w.data) > 0:
		return errors.New("read the " + what + ": more follows than it has")
	}
	return nil
}
