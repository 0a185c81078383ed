package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// newGuard makes the rules that let VXLAN packets of the fabric's VNI in from the fabric's hosts only: VXLAN itself takes
// them from anybody. They are in the host's namespace, ask only for packets with this VNI at this port, and say no more of
// those that they let in than that they have no objection.
//
// The packets must also come from a port that is root's to use. Otherwise any user of one of the hosts could send frames
// into the job's network with an ordinary socket.
func newGuard(home *os.File, f Fabric) (*nft, error) {
	family, kind := nftables.TableFamilyIPv4, nftables.TypeIPAddr
	source, destination, size := uint32(12), uint32(16), uint32(4)
	if f.Local.Is6() {
		family, kind = nftables.TableFamilyIPv6, nftables.TypeIP6Addr
		source, destination, size = 8, 24, 16
	}
	g, err := newNFT(home, family, fmt.Sprintf("mpirun-sf-%d-%d", f.VNI, f.Port))
	if err != nil {
		if errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("another job on this host has VNI %d at port %d: %w", f.VNI, f.Port, err)
		}
		return nil, err
	}
	hosts := &nftables.Set{Table: g.table, Name: "hosts", KeyType: kind}
	if err := g.AddSet(hosts, addrElements(f.Hosts)); err != nil {
		g.close()
		return nil, err
	}
	chain := g.AddChain(&nftables.Chain{
		Table: g.table, Name: "in", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRaw,
	})
	ours := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_UDP}),
		load(expr.PayloadBaseTransportHeader, 2, 2), equal(binaryutil.BigEndian.PutUint16(f.Port)),
		// Behind UDP's 8 bytes: flags (1), nothing (3), the VNI (3), nothing (1).
		load(expr.PayloadBaseTransportHeader, 8+4, 3), equal(binaryutil.BigEndian.PutUint32(f.VNI)[1:]),
	}
	g.AddRule(&nftables.Rule{Table: g.table, Chain: chain, Exprs: append(ours[:len(ours):len(ours)],
		load(expr.PayloadBaseNetworkHeader, source, size), &expr.Lookup{SourceRegister: 1, SetName: hosts.Name, SetID: hosts.ID},
		load(expr.PayloadBaseNetworkHeader, destination, size), equal(f.Local.AsSlice()),
		load(expr.PayloadBaseTransportHeader, 0, 2),
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: binaryutil.BigEndian.PutUint16(highestSource)},
		accept(),
	)})
	g.AddRule(&nftables.Rule{Table: g.table, Chain: chain, Exprs: append(ours, &expr.Verdict{Kind: expr.VerdictDrop})})
	if err := g.Flush(); err != nil {
		g.close()
		return nil, nftError(err)
	}
	return g, nil
}

func addrElements(addrs []netip.Addr) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, addr := range addrs {
		elements = append(elements, nftables.SetElement{Key: addr.AsSlice()})
	}
	return elements
}

// load and equal are what rules are made of: bytes of a packet's header into register 1, and what must be there.
func load(base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: base, Offset: offset, Len: length}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
