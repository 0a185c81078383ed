package network

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
)

// MaxID is the highest number of a member. A /16 has room for it, the host, and some to spare.
const MaxID = 65000

// hostOffset is where the host sits in the subnet: the last usable address, out of the way of every member.
const hostOffset = 1<<16 - 2

// A Plan is the address plan of one job. Everything follows from the subnet; the zero Plan is not valid.
type Plan struct {
	// Subnet is a private /16, 10.X.0.0.
	Subnet netip.Prefix `json:"subnet"`
}

// NewPlan returns the plan of a job: the same id always has the same subnet. Two jobs may share a subnet; their
// namespaces keep them apart.
func NewPlan(job string) Plan {
	sum := sha256.Sum256([]byte(job))
	return Plan{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, sum[0], 0, 0}), 16)}
}

// Check tells whether p is a plan that this package could have made; one that crossed a wire may not be.
func (p Plan) Check() error {
	if !p.Subnet.Addr().Is4() || p.Subnet.Bits() != 16 || p.Subnet != p.Subnet.Masked() {
		return fmt.Errorf("check address plan: subnet %v is not an IPv4 /16", p.Subnet)
	}
	return nil
}

// CheckID tells whether id can be the number of a member: of the parent (0) or of a clone.
func CheckID(id int) error {
	if id < 0 || id > MaxID {
		return fmt.Errorf("member number %d is not between 0 and %d", id, MaxID)
	}
	return nil
}

// IP is the address of a member. Addresses are in the order of ids, so "members ordered by IP" and "members ordered by
// id" is one order. An id that CheckID refuses is a mistake of the caller, and panics.
func (p Plan) IP(id int) netip.Addr {
	if err := CheckID(id); err != nil {
		panic("network: " + err.Error())
	}
	return p.at(id + 1)
}

// ID is the inverse of IP; ok is false for the host's address and for one that belongs to nobody.
func (p Plan) ID(ip netip.Addr) (id int, ok bool) {
	if !p.Subnet.Contains(ip) {
		return 0, false
	}
	b := ip.As4()
	id = int(b[2])<<8 + int(b[3]) - 1
	return id, CheckID(id) == nil
}

// MAC is the hardware address of a member. It panics as IP does.
func (p Plan) MAC(id int) net.HardwareAddr { return mac(p.IP(id)) }

// Host is the address of the host on the bridge.
func (p Plan) Host() netip.Addr { return p.at(hostOffset) }

// HostMAC is the hardware address of the bridge.
func (p Plan) HostMAC() net.HardwareAddr { return mac(p.Host()) }

// Name is the host name of a member: "clone-1" and so on; id 0 is "parent".
func (p Plan) Name(id int) string {
	if id == 0 {
		return "parent"
	}
	return fmt.Sprintf("clone-%d", id)
}

// A Member is somebody on the private network.
type Member struct {
	Name string           `json:"name"`
	IP   netip.Addr       `json:"ip"`
	MAC  net.HardwareAddr `json:"mac"`
}

// Member is the member as the others see it.
func (p Plan) Member(id int) Member {
	return Member{Name: p.Name(id), IP: p.IP(id), MAC: p.MAC(id)}
}

// HostMember is the host as the members see it.
func (p Plan) HostMember() Member {
	return Member{Name: "host", IP: p.Host(), MAC: p.HostMAC()}
}

// Guest is what the agent of a member has to configure, when ids are all that it is to know; it is no harm when
// id itself is among them. The host is always a member.
func (p Plan) Guest(id int, ids []int) GuestConfig {
	config := GuestConfig{
		MAC:     p.MAC(id),
		Address: netip.PrefixFrom(p.IP(id), p.Subnet.Bits()),
		Members: []Member{p.HostMember()},
	}
	for _, other := range ids {
		if other != id {
			config.Members = append(config.Members, p.Member(other))
		}
	}
	return config
}

func (p Plan) at(offset int) netip.Addr {
	b := p.Subnet.Addr().As4()
	b[2], b[3] = byte(offset>>8), byte(offset)
	return netip.AddrFrom4(b)
}

// mac derives a hardware address from an IP address, so that the two are unique together. In the first byte, 02 means
// administered locally and unicast.
func mac(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x5f, b[0], b[1], b[2], b[3]}
}
