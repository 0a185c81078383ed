package testcluster

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridgeName is the bridge in the switch's namespace.
const bridgeName = "switch"

func portName(host int) string { return fmt.Sprintf("port%d", host) }

// snooping is how the bridge finds out who listens to what. Times are in hundredths of a second, of which the kernel
// takes what it makes of its HZ. A bridge floods until it has been a querier for as long as an answer to it may take, so that is
// short; the rest is some ten times quicker than the standard, for a test does not last for minutes.
var snooping = []struct {
	attribute int
	value     uint64
}{
	{nl.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, 10},
	{nl.IFLA_BR_MCAST_QUERY_INTVL, 1000},
	{nl.IFLA_BR_MCAST_STARTUP_QUERY_INTVL, 100},
	{nl.IFLA_BR_MCAST_MEMBERSHIP_INTVL, 2600},
	{nl.IFLA_BR_MCAST_LAST_MEMBER_INTVL, 10},
}

func (c *Cluster) createSwitch() (err error) {
	if c.namespace, err = newNamespace(); err != nil {
		return err
	}
	if c.handle, err = netlink.NewHandleAt(netns.NsHandle(c.namespace.Fd()), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	on := true
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeName, c.options.MTU
	if err := c.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &on}); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	if c.bridge, err = c.handle.LinkByName(bridgeName); err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	if err := inside(c.namespace, func() error { return query(c.bridge.Attrs().Index) }); err != nil {
		return fmt.Errorf("make the bridge ask for listeners: %w", err)
	}
	if err := c.handle.LinkSetUp(c.bridge); err != nil {
		return fmt.Errorf("bring bridge up: %w", err)
	}
	return nil
}

// query makes a bridge of the calling thread's namespace a querier. It has to know the times before it begins, and in one
// request the kernel would begin first.
func query(index int) error {
	var times []*nl.RtAttr
	for _, s := range snooping {
		times = append(times, nl.NewRtAttr(s.attribute, nl.Uint64Attr(s.value)))
	}
	for _, attributes := range [][]*nl.RtAttr{times, {nl.NewRtAttr(nl.IFLA_BR_MCAST_QUERIER, nl.Uint8Attr(1))}} {
		request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		message := nl.NewIfInfomsg(unix.AF_UNSPEC)
		message.Index = int32(index)
		request.AddData(message)
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
		data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		for _, a := range attributes {
			data.AddChild(a)
		}
		request.AddData(info)
		if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			return err
		}
	}
	return nil
}

// plugIn gives a host its eth0, and the switch the other end.
func (c *Cluster) plugIn(h *Host) error {
	link := c.options.link(h.Number)
	if err := c.lay(h, link); err != nil {
		return err
	}
	var err error
	if h.port, err = c.handle.LinkByName(portName(h.Number)); err != nil {
		return fmt.Errorf("find %s: %w", portName(h.Number), err)
	}
	if err := c.handle.LinkSetMaster(h.port, c.bridge); err != nil {
		return fmt.Errorf("attach it to the bridge: %w", err)
	}
	if err := c.handle.LinkSetUp(h.port); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	if err := h.configure(); err != nil {
		return err
	}
	c.rules.loss(h.Number, link.Loss)
	return c.limit(h, link.Rate)
}

// lay lays the cable: a pair of interfaces, or, with a delay, two pairs with a wire between them.
func (c *Cluster) lay(h *Host, link Link) error {
	port := portName(h.Number)
	if link.Delay == 0 {
		return c.pair(port, "eth0", h.namespace)
	}
	h.cable = [2]string{fmt.Sprintf("host-end%d", h.Number), fmt.Sprintf("port-end%d", h.Number)}
	if err := c.pair(h.cable[0], "eth0", h.namespace); err != nil {
		return err
	}
	if err := c.pair(h.cable[1], port, c.namespace); err != nil {
		return err
	}
	var ends [2]netlink.Link
	for i, name := range h.cable {
		var err error
		if ends[i], err = c.handle.LinkByName(name); err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := c.handle.LinkSetUp(ends[i]); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
	}
	var err error
	h.wire, err = c.layWire(ends, link.Delay)
	return err
}

// pair makes two interfaces that are each other's other end, one of them in the switch's namespace.
func (c *Cluster) pair(name, peer string, namespace *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, c.options.MTU
	err := c.handle.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: peer, PeerMTU: uint32(c.options.MTU), PeerNamespace: netlink.NsFd(namespace.Fd()),
	})
	if err != nil {
		return fmt.Errorf("make %s and %s: %w", name, peer, err)
	}
	return nil
}

// unplug takes a host's cable away; nothing happens when it has none.
func (c *Cluster) unplug(h *Host) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.port == nil {
		return nil
	}
	ends := []string{h.port.Attrs().Name}
	h.port = nil
	if h.wire != nil {
		h.wire.Close()
		ends = append(ends, h.cable[0])
	}
	for _, name := range ends {
		link, err := c.handle.LinkByName(name)
		if err == nil {
			err = c.handle.LinkDel(link)
		}
		if err != nil {
			return fmt.Errorf("take %s away: %w", name, err)
		}
	}
	return nil
}

func (c *Cluster) closeSwitch() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handle != nil {
		c.handle.Close()
		c.handle = nil
	}
	if c.namespace == nil {
		return nil
	}
	if err := c.namespace.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Traffic is what has crossed a host's link since the cluster was made, by the counters of the switch's port: Ethernet
// frames without preamble and checksum. A frame that was cut into segments only after the switch counts as one, with one header.
type Traffic struct {
	SentBytes, ReceivedBytes     int64 // by the host
	SentFrames, ReceivedFrames   int64
	SentDropped, ReceivedDropped int64 // what did not fit into the queue of an end with a rate; not what [Cluster.SetLoss] and Cut take
}

// Traffic reads the counters of the host's link.
func (h *Host) Traffic() (Traffic, error) {
	c := h.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.port == nil {
		return Traffic{}, fmt.Errorf("read traffic of %s: it is not plugged in", h.Name)
	}
	port, err := c.handle.LinkByIndex(h.port.Attrs().Index)
	if err != nil {
		return Traffic{}, fmt.Errorf("read traffic of %s: %w", h.Name, err)
	}
	eth0, err := h.handle.LinkByIndex(h.eth0.Attrs().Index)
	if err != nil {
		return Traffic{}, fmt.Errorf("read traffic of %s: %w", h.Name, err)
	}
	s := port.Attrs().Statistics
	t := Traffic{
		SentBytes: int64(s.RxBytes), ReceivedBytes: int64(s.TxBytes),
		SentFrames: int64(s.RxPackets), ReceivedFrames: int64(s.TxPackets),
	}
	if t.SentDropped, err = queueDrops(h.handle, eth0); err != nil {
		return Traffic{}, fmt.Errorf("read traffic of %s: %w", h.Name, err)
	}
	if t.ReceivedDropped, err = queueDrops(c.handle, port); err != nil {
		return Traffic{}, fmt.Errorf("read traffic of %s: %w", h.Name, err)
	}
	return t, nil
}

// queueDrops is what an interface's queue, and the interface itself, have dropped.
func queueDrops(handle *netlink.Handle, link netlink.Link) (int64, error) {
	drops := int64(link.Attrs().Statistics.TxDropped)
	qdiscs, err := handle.QdiscList(link)
	if err != nil {
		return 0, err
	}
	for _, q := range qdiscs {
		if s := q.Attrs().Statistics; s != nil && s.Queue != nil {
			drops += int64(s.Queue.Drops)
		}
	}
	return drops, nil
}
