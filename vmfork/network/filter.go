package network

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A filter is the rules for what comes from taps, in the job's namespace, whose end is theirs. Whatever they do not let
// through is dropped: what a tap sends of which they know nothing, too.
//
//   - IPv4, from the tap's member's own hardware and IP address;
//   - ARP for IPv4, which names these two as the sender's, in an Ethernet frame from the same;
//   - nothing else: no IPv6, no VLAN tags, nothing for bridges and switches;
//   - and nothing for DHCP clients, who might believe it.
type filter struct {
	// Two sockets, for what removes taps must not hold up what adds them (see Network.removals).
	add, remove *nftables.Conn
	table       *nftables.Table
	ports, host *nftables.Chain // for frames at the bridge's ports; for packets at the host
	members     *nftables.Set   // who sends from where: interface, hardware address, IP address
}

// Where the parts of a members key go: registers of 4 bytes, one behind the other.
const (
	registerKey = unix.NFT_REG_1 // all of it
	registerMAC = unix.NFT_REG32_01
	registerIP  = unix.NFT_REG32_03
)

// addFilter makes the rules. lo is the only interface apart from the bridge that the host itself may hear.
func (n *Network) addFilter(lo netlink.Link) error {
	f := &n.filter
	err := n.inside(func() (err error) {
		if f.add, err = nftables.New(nftables.AsLasting()); err != nil {
			return err
		}
		f.remove, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		return fmt.Errorf("open filter sockets: %w", err)
	}
	f.table = f.add.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "sf"})
	key, err := nftables.ConcatSetType(nftables.TypeIFIndex, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	if err != nil {
		return fmt.Errorf("describe filter: %w", err)
	}
	f.members = &nftables.Set{Table: f.table, Name: "members", KeyType: key, Concatenation: true}
	if err := f.add.AddSet(f.members, nil); err != nil {
		return fmt.Errorf("describe filter: %w", err)
	}
	drop := nftables.ChainPolicyDrop
	f.ports = f.add.AddChain(&nftables.Chain{
		Table: f.table, Name: "in", Type: nftables.ChainTypeFilter, Policy: &drop,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300),
	})
	const udp, dhcpClient = unix.IPPROTO_UDP, 68
	// In the order of how many there are; but for the first, a frame fits one at most.
	f.rule(f.ports, ethertype(unix.ETH_P_IP), network(9, 1), equal([]byte{udp}),
		load(expr.PayloadBaseTransportHeader, 2, 2), equal(binaryutil.BigEndian.PutUint16(dhcpClient)),
		&expr.Verdict{Kind: expr.VerdictDrop})
	f.rule(f.ports, ethertype(unix.ETH_P_IP), f.sender(source(), 12), accept())
	f.rule(f.ports, ethertype(unix.ETH_P_ARP),
		network(0, 6), equal([]byte{0, unix.ARPHRD_ETHER, unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff, 6, 4}),
		f.sender(source(), 14), f.sender(network(8, 6), 14), accept())
	// Frames for some groups of neighbouring bridges never pass the chain above: the kernel takes them for its own, as if
	// the port were no bridge's. There they end.
	host := f.add.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: f.table.Name})
	f.host = f.add.AddChain(&nftables.Chain{
		Table: host, Name: "in", Type: nftables.ChainTypeFilter, Policy: &drop,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	f.rule(f.host, from(n.bridge), accept())
	f.rule(f.host, from(lo), accept())
	if err := f.add.Flush(); err != nil {
		return fmt.Errorf("make filter: %w", nftError(err))
	}
	return nil
}

// rule takes expressions, and lists of them.
func (f *filter) rule(chain *nftables.Chain, parts ...any) {
	var exprs []expr.Any
	for _, part := range parts {
		switch part := part.(type) {
		case []expr.Any:
			exprs = append(exprs, part...)
		case expr.Any:
			exprs = append(exprs, part)
		}
	}
	f.add.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs})
}

// ethertype reads the frame's type as it came: of a tagged frame that is the tag's, which the kernel has set aside.
func ethertype(t uint16) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseLLHeader, 12, 2), equal(binaryutil.BigEndian.PutUint16(t))}
}

func from(link netlink.Link) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, equal(binaryutil.NativeEndian.PutUint32(uint32(link.Attrs().Index)))}
}

func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

func network(offset, length uint32) *expr.Payload {
	return load(expr.PayloadBaseNetworkHeader, offset, length)
}

func source() *expr.Payload { return load(expr.PayloadBaseLLHeader, 6, 6) }

// sender asks whether a hardware address and the IP address at an offset in the packet are those of the tap's member.
func (f *filter) sender(mac *expr.Payload, ip uint32) []expr.Any {
	address := network(ip, 4)
	mac.DestRegister, address.DestRegister = registerMAC, registerIP
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: registerKey}, mac, address,
		&expr.Lookup{SourceRegister: registerKey, SetName: f.members.Name, SetID: f.members.ID},
	}
}

// key is what a member's frames have in common when they come from a tap.
func (f *filter) key(t *tap) []nftables.SetElement {
	key := binary.NativeEndian.AppendUint32(nil, uint32(t.link.Attrs().Index))
	key = append(append(key, mac(t.ip)...), 0, 0)
	return []nftables.SetElement{{Key: append(key, t.ip.AsSlice()...)}}
}

// admit lets a member send by a tap.
func (f *filter) admit(t *tap) error {
	err := f.add.SetAddElements(f.members, f.key(t))
	if err == nil {
		err = f.add.Flush()
	}
	if err != nil {
		return fmt.Errorf("let %v send by %s: %w", t.ip, t.link.Attrs().Name, err)
	}
	return nil
}

// expel undoes admit. Its caller holds removals.
func (f *filter) expel(t *tap) error {
	err := f.remove.SetDeleteElements(f.members, f.key(t))
	if err == nil {
		err = f.remove.Flush()
	}
	if err != nil {
		return fmt.Errorf("let %v send by %s no more: %w", t.ip, t.link.Attrs().Name, err)
	}
	return nil
}

// admitHosts lets everything through that comes from the other hosts, which have filtered it where it was sent.
func (f *filter) admitHosts(link netlink.Link) error {
	f.rule(f.ports, from(link), accept())
	if err := f.add.Flush(); err != nil {
		return fmt.Errorf("let the other hosts' frames in: %w", err)
	}
	return nil
}

func (f *filter) close() {
	for _, conn := range []*nftables.Conn{f.add, f.remove} {
		if conn != nil {
			_ = conn.CloseLasting()
		}
	}
}
