package testcluster

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rules are what the switch does not let through.
type rules struct {
	cut         map[int]bool
	between     map[[2]int]bool // the smaller number first
	losses      map[int]Loss
	noMulticast bool
}

func set[K comparable, V comparable](m *map[K]V, key K, value V) {
	var none V
	if value == none {
		delete(*m, key)
		return
	}
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[key] = value
}

func (r *rules) loss(host int, loss Loss) { set(&r.losses, host, loss) }

// Cut makes the switch drop all that a host sends and all that is sent to it. Nobody notices but by silence: the link stays
// up.
func (c *Cluster) Cut(host int) error {
	return c.change("cut "+hostName(host), func(r *rules) { set(&r.cut, host, true) })
}

// Heal undoes Cut, and every CutBetween that the host has a part in.
func (c *Cluster) Heal(host int) error {
	return c.change("heal "+hostName(host), func(r *rules) {
		delete(r.cut, host)
		maps.DeleteFunc(r.between, func(pair [2]int, _ bool) bool { return pair[0] == host || pair[1] == host })
	})
}

// CutBetween makes the switch drop what two hosts send to each other, both ways, multicasts among it.
func (c *Cluster) CutBetween(a, b int) error {
	return c.change(fmt.Sprintf("cut between %s and %s", hostName(a), hostName(b)), func(r *rules) {
		set(&r.between, [2]int{min(a, b), max(a, b)}, true)
	})
}

// HealBetween undoes CutBetween.
func (c *Cluster) HealBetween(a, b int) error {
	return c.change(fmt.Sprintf("heal between %s and %s", hostName(a), hostName(b)), func(r *rules) {
		delete(r.between, [2]int{min(a, b), max(a, b)})
	})
}

// SetLoss sets what part of a host's frames gets lost, by chance, packet by packet.
func (c *Cluster) SetLoss(host int, loss Loss) error {
	if err := loss.check(); err != nil {
		return fmt.Errorf("set loss of %s: %w", hostName(host), err)
	}
	return c.change("set loss of "+hostName(host), func(r *rules) { r.loss(host, loss) })
}

// SetMulticast makes the switch pass IP multicasts on to those who have joined, or drop them all, as some networks do.
func (c *Cluster) SetMulticast(on bool) error {
	return c.change("set multicast", func(r *rules) { r.noMulticast = !on })
}

func (c *Cluster) change(what string, f func(*rules)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.rules)
	if err := c.filter(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// filter makes the rules those of the kernel, all at one instant.
func (c *Cluster) filter() error {
	if len(c.rules.losses) > 0 && c.whole {
		// From now on what programs send is cut into packets before it gets here.
		for _, h := range c.hosts {
			if h.port == nil {
				continue
			}
			if err := h.handle.LinkSetGSOMaxSegs(h.eth0, 1); err != nil {
				return fmt.Errorf("make %s send packets one by one: %w", h.Name, err)
			}
		}
		c.whole = false
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(c.namespace.Fd())))
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	table := &nftables.Table{Name: "switch", Family: nftables.TableFamilyBridge}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	chain := func(name string, hook *nftables.ChainHook) func(exprs ...[]expr.Any) {
		chain := conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		})
		return func(exprs ...[]expr.Any) {
			all := append(slices.Concat(exprs...), &expr.Verdict{Kind: expr.VerdictDrop})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
		}
	}
	// The switch's own questions to its ports go past the hook behind routing.
	from := chain("from", nftables.ChainHookPrerouting)
	to := chain("to", nftables.ChainHookPostrouting)
	between := chain("between", nftables.ChainHookForward)
	own := chain("own", nftables.ChainHookOutput)

	r := &c.rules
	if r.noMulticast {
		from(multicast())
	}
	for host := range r.cut {
		from(port(expr.MetaKeyIIFNAME, host))
		to(port(expr.MetaKeyOIFNAME, host))
		own(port(expr.MetaKeyOIFNAME, host))
	}
	for pair := range r.between {
		between(port(expr.MetaKeyIIFNAME, pair[0]), port(expr.MetaKeyOIFNAME, pair[1]))
		between(port(expr.MetaKeyIIFNAME, pair[1]), port(expr.MetaKeyOIFNAME, pair[0]))
	}
	for host, loss := range r.losses {
		if loss.Sent > 0 {
			from(port(expr.MetaKeyIIFNAME, host), chance(loss.Sent))
		}
		if loss.Received > 0 {
			to(port(expr.MetaKeyOIFNAME, host), chance(loss.Received))
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set the switch's rules: %w", err)
	}
	return nil
}

// port matches frames that come in, or go out, at a host's port.
func port(key expr.MetaKey, host int) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, portName(host))
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
}

// chance matches some frames.
func chance(part float64) []expr.Any {
	const all = 1_000_000
	if part == 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: all, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(part * all))},
	}
}

// multicast matches what goes to an IP multicast address; broadcasts, which ARP needs, are none.
func multicast() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 3},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x01, 0x00, 0x5e}},
	}
}
