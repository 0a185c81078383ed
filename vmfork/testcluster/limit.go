package testcluster

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetRate sets the rate of a host's link, in bits per second each way; 0 for no limit.
func (c *Cluster) SetRate(host int, rate int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[host]
	if h.port == nil {
		return fmt.Errorf("set rate of %s: it is not plugged in", h.Name)
	}
	if rate < 0 {
		return fmt.Errorf("set rate of %s: %d is negative", h.Name, rate)
	}
	if err := c.limit(h, rate); err != nil {
		return fmt.Errorf("set rate of %s: %w", h.Name, err)
	}
	return nil
}

// limit makes both ends of a link send at that rate.
func (c *Cluster) limit(h *Host, rate int64) error {
	buffer := cmp.Or(c.options.link(h.Number).Buffer, defaultBuffer)
	for _, end := range []struct {
		handle *netlink.Handle
		link   netlink.Link
	}{{h.handle, h.eth0}, {c.handle, h.port}} {
		if err := shape(end.handle, end.link, rate, buffer, c.options.MTU); err != nil {
			return fmt.Errorf("limit %s to %d bits/s: %w", end.link.Attrs().Name, rate, err)
		}
	}
	return nil
}

// burstTime is how long an end may send without a pause: so much may the timer be late without the rate suffering. What is
// longer than the burst (frames of many segments, at low rates) the kernel cuts up by itself.
const burstTime = 1e-3

// shape puts a token bucket onto an interface, or takes it away for a rate of 0.
func shape(handle *netlink.Handle, link netlink.Link, rate int64, buffer, mtu int) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if rate == 0 {
		err := handle.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // there is none
			return nil
		}
		return err
	}
	bytes := float64(rate) / 8
	burst := max(uint32(bytes*burstTime), uint32(2*(mtu+18)))
	return handle.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: attrs, Rate: uint64(bytes), Limit: uint32(buffer) + burst,
		Buffer: netlink.Xmittime(uint64(bytes), burst),
	})
}
