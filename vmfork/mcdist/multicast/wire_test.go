package multicast

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// wire is a network for tests: a switch that knows who has joined which group, with a link to each host that loses,
// doubles, delays and limits packets. What it does follows from its seed and the order in which packets are sent.
type wire struct {
	mtu int

	mu       sync.Mutex
	random   *rand.Rand
	sockets  map[netip.AddrPort][]*wireSocket
	ports    uint16
	links    map[netip.Addr]*wireLink
	tap      func(p []byte, from, to netip.AddrPort) // sees all that is sent
	onRejoin func()
	isolated map[netip.Addr]bool
	deaf     bool // carries no multicast
}

// wireLink is the way from the switch to a host.
type wireLink struct {
	loss, double float64
	delay        time.Duration
	jitter       time.Duration
	rate         float64 // bytes/s; 0: no limit
	queue        time.Duration
	free         time.Time
	cut          bool
	lost         int
	bytes        int // carried
}

func newWire(seed uint64) *wire {
	return &wire{
		mtu: 1500, random: rand.New(rand.NewPCG(seed, 1)), sockets: make(map[netip.AddrPort][]*wireSocket),
		links: make(map[netip.Addr]*wireLink), ports: 1000,
	}
}

func (w *wire) link(host netip.Addr) *wireLink {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.links[host] == nil {
		w.links[host] = &wireLink{delay: 100 * time.Microsecond}
	}
	return w.links[host]
}

func (w *wire) room(netip.Addr) (int, error) { return w.mtu - 28, nil }

func (w *wire) unicast(local netip.Addr) (socket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports++
	return w.bind(local, netip.AddrPortFrom(local, w.ports)), nil
}

func (w *wire) join(local netip.Addr, group netip.AddrPort) (socket, error) {
	if !group.Addr().IsMulticast() {
		return nil, errors.New("no group")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bind(local, group), nil
}

func (w *wire) bind(host netip.Addr, at netip.AddrPort) *wireSocket {
	s := &wireSocket{wire: w, host: host, at: at, done: make(chan struct{}), more: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	w.sockets[at] = append(w.sockets[at], s)
	return s
}

type wirePacket struct {
	p    []byte
	from netip.AddrPort
	due  time.Time
}

type wireSocket struct {
	wire *wire
	host netip.Addr
	at   netip.AddrPort
	done chan struct{}
	once sync.Once

	// One timer for each socket, not for each packet: the race detector breaks down with so many in virtual time
	// (golang.org/issue/78156).
	timer   *time.Timer
	more    chan struct{} // holds a token when packets has got another first one
	mu      sync.Mutex
	packets []wirePacket // in the order in which they are due
}

func (s *wireSocket) address() netip.AddrPort { return s.at }

func (s *wireSocket) rejoin() error {
	if s.wire.onRejoin != nil {
		s.wire.onRejoin()
	}
	return nil
}

func (s *wireSocket) close() error {
	s.once.Do(func() {
		close(s.done)
		s.wire.mu.Lock()
		defer s.wire.mu.Unlock()
		list := s.wire.sockets[s.at]
		for i := range list {
			if list[i] == s {
				s.wire.sockets[s.at] = append(list[:i:i], list[i+1:]...)
			}
		}
	})
	return nil
}

func (s *wireSocket) receive(take func(p []byte, from netip.AddrPort, at time.Time)) error {
	for {
		s.mu.Lock()
		wait := time.Hour
		if len(s.packets) > 0 {
			m := s.packets[0]
			if wait = time.Until(m.due); wait <= 0 {
				s.packets = s.packets[1:]
				s.mu.Unlock()
				take(m.p, m.from, m.due)
				return nil
			}
		}
		s.mu.Unlock()
		s.timer.Reset(wait)
		select {
		case <-s.timer.C:
		case <-s.more:
		case <-s.done:
			s.timer.Stop()
			return net.ErrClosed
		}
	}
}

// deliver has a packet arrive after some time, unless the socket's buffer is full.
func (s *wireSocket) deliver(m wirePacket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.packets) == 8192 {
		return
	}
	i := len(s.packets)
	for i > 0 && s.packets[i-1].due.After(m.due) {
		i--
	}
	s.packets = slices.Insert(s.packets, i, m)
	if i == 0 {
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

func (s *wireSocket) send(p []byte, size int, to netip.AddrPort) error {
	for len(p) > 0 {
		n := min(size, len(p))
		if err := s.wire.carry(p[:n], s.at, to); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// setDeaf makes it carry no multicast, or carry it.
func (w *wire) setDeaf(deaf bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = deaf
}

// isolate drops all that a host sends.
func (w *wire) isolate(host netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isolated = map[netip.Addr]bool{host: true}
}

// carry takes a packet over the switch to all who shall get it.
func (w *wire) carry(p []byte, from, to netip.AddrPort) error {
	if len(p) > w.mtu-28 {
		return errors.New("packet too long")
	}
	p = append([]byte(nil), p...)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tap != nil {
		w.tap(p, from, to)
	}
	if w.isolated[from.Addr()] {
		return nil
	}
	if w.deaf && to.Addr().IsMulticast() {
		return nil
	}
	now := time.Now()
	for _, s := range w.sockets[to] {
		l := w.links[s.host]
		if l == nil {
			l = &wireLink{delay: 100 * time.Microsecond}
			w.links[s.host] = l
		}
		copies := 1
		if w.random.Float64() < l.double {
			copies = 2
		}
		for range copies {
			if l.cut || w.random.Float64() < l.loss {
				l.lost++
				continue
			}
			wait := l.delay
			if l.jitter > 0 {
				wait += time.Duration(w.random.Int64N(int64(l.jitter)))
			}
			if l.rate > 0 {
				if l.free.Before(now) {
					l.free = now
				}
				if l.free.Sub(now) > l.queue {
					l.lost++
					continue
				}
				l.free = l.free.Add(time.Duration(float64(len(p)+wireHeaders) / l.rate * 1e9))
				wait += l.free.Sub(now)
			}
			l.bytes += len(p) + wireHeaders
			s.deliver(wirePacket{append([]byte(nil), p...), from, now.Add(wait)})
		}
	}
	return nil
}
