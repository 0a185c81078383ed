package link

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// maxHandshakes bounds the connections that are not yet links, and what they cost: a goroutine and some 50 KB each.
const maxHandshakes = 256

// handshakes are the connections of a listener that have not proved anything yet. When there are too many, the
// oldest of the address that has most is closed: who opens many and leaves them so drives out his own, and a host that
// comes honestly has a few for some milliseconds.
type handshakes struct {
	mu      sync.Mutex
	most    int
	current []*handshake // oldest first
}

type handshake struct {
	conn    net.Conn
	from    netip.Addr
	evicted bool
}

// begin enters a connection, and returns the one that had to make room, already closed, or nil.
func (h *handshakes) begin(conn net.Conn) (entered, evicted *handshake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.current) >= h.most {
		number := map[netip.Addr]int{}
		for _, c := range h.current {
			number[c.from]++
		}
		most := slices.MaxFunc(h.current, func(a, b *handshake) int { return cmp.Compare(number[a.from], number[b.from]) }).from
		i := slices.IndexFunc(h.current, func(c *handshake) bool { return c.from == most })
		evicted = h.current[i]
		evicted.evicted = true
		evicted.conn.Close()
		h.current = slices.Delete(h.current, i, i+1)
	}
	entered = &handshake{conn: conn, from: addressOf(conn.RemoteAddr()).Addr()}
	h.current = append(h.current, entered)
	return entered, evicted
}

// end takes a connection out, which may be done again, and tells whether it was not evicted.
func (h *handshakes) end(one *handshake) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = slices.DeleteFunc(h.current, func(c *handshake) bool { return c == one })
	return !one.evicted
}

// closeAll closes those that there are.
func (h *handshakes) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.current {
		c.conn.Close()
	}
}

func addressOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
