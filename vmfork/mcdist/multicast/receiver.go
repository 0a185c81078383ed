package multicast

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// Sink takes blocks that arrive. *slice.Slice is one, when it is a far one.
type Sink interface {
	// Arrive takes whole blocks, whoever asked for them; it copies them. It may be called by several goroutines, and may
	// get a block twice. An error ends the fetch.
	Arrive(p []byte, first int64) error
}

// ReceiverConfig is what a Receiver needs to know.
type ReceiverConfig struct {
	Self    int        // number of this host
	Address netip.Addr // of this host, on the network that the hosts share; IPv4
	Key     [32]byte   // the job's

	network network // the kernel's, if nil
}

// Receiver gets what other hosts multicast, and sees to it that it is whole.
type Receiver struct {
	config ReceiverConfig
	keys   keyring
	self   end
	socket socket
	room   int
	tally  tally
	begun  time.Time

	done chan struct{}
	stop sync.Once
	all  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	origins map[end]*origin
}

// origin is one sender that something was opened from.
type origin struct {
	end
	address netip.AddrPort
	out     *sealer
	open    *opener // used by the goroutine that receives replies, alone

	mu       sync.Mutex
	attended socket // keeps this host in the group of the origin's objects
	fetches  map[ID]*Fetch
	heard    time.Time // when anything came from it, in whatever way
	deaf     time.Time // until when nothing is opened from it; zero if its multicast comes through
	trip     trip
}

// How long Open waits, and a fetch for a sender that is silent.
const (
	joinEvery    = 40 * time.Millisecond
	joinPatience = 2 * time.Second
	silence      = 4 * time.Second
	// deafFor is how long a network whose multicast did not come through is not tried again.
	deafFor = 30 * time.Second
	// maxFetches bounds what is open from one origin.
	maxFetches = 4096
)

// NewReceiver opens a socket for replies.
func NewReceiver(config ReceiverConfig) (*Receiver, error) {
	if !config.Address.Is4() || config.Self < 0 || config.Self > maxHost {
		return nil, fmt.Errorf("start multicast receiver: host %d at %v: it needs an IPv4 address and a number below %d",
			config.Self, config.Address, maxHost+1)
	}
	if config.network == nil {
		config.network = udp{}
	}
	room, err := config.network.room(config.Address)
	if err != nil {
		return nil, fmt.Errorf("start multicast receiver: %w", err)
	}
	sock, err := config.network.unicast(config.Address)
	if err != nil {
		return nil, fmt.Errorf("start multicast receiver: %w", err)
	}
	r := &Receiver{
		config: config, keys: newKeyring(config.Key), self: end{host: uint16(config.Self)}, socket: sock, room: room,
		begun: time.Now(), done: make(chan struct{}), origins: make(map[end]*origin),
	}
	rand.Read(r.self.session[:])
	r.all.Go(r.receive)
	return r, nil
}

// Open joins the group of an id, whose blocks go to a sink from then on, also those that others ask for. It returns when
// the origin has answered. If its multicast is not heard within 2 s the fetch ends with ErrDeaf, and for the next 30 s
// Open fails with it at once. Errors are ErrDeaf, ErrSilent, ErrTooMany (for which unicast is the remedy),
// ErrUnknown, ErrSize, ErrServed if it is open already, or the context's.
func (r *Receiver) Open(ctx context.Context, from Origin, id ID, size int64, to Sink) (*Fetch, error) {
	f, err := r.open(ctx, from, id, r.keys.groupOf(from.Host, id), func(w welcome) (Sink, error) {
		if w.flags&flagObject != 0 {
			return nil, fmt.Errorf("%w: it is a published object", ErrSize)
		}
		if w.size != size {
			return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrSize, w.size, size)
		}
		return to, nil
	})
	if err != nil {
		return nil, fmt.Errorf("open %s of host %d: %w", id, from.Host, err)
	}
	return f, nil
}

// Receive gets a whole object that was published.
func (r *Receiver) Receive(ctx context.Context, from Origin, id ID) ([]byte, error) {
	if err := r.Attend(from); err != nil {
		return nil, fmt.Errorf("receive %s: %w", id, err)
	}
	var whole *wholeObject
	f, err := r.open(ctx, from, id, r.keys.objectGroup(from.Host, id), func(w welcome) (Sink, error) {
		if w.flags&flagObject == 0 || w.size == 0 || w.size > maxObject {
			return nil, fmt.Errorf("%w: it is no object of at most %d bytes", ErrSize, maxObject)
		}
		whole = &wholeObject{data: make([]byte, w.size)}
		return whole, nil
	})
	if err != nil {
		return nil, fmt.Errorf("receive %s from host %d: %w", id, from.Host, err)
	}
	// To leave the group may take the kernel longer than all the rest, for it has one lock for all interfaces.
	defer r.closeLater(f)
	err = f.Prefetch(ctx, func(yield func(int64) bool) {
		for b := range f.blocks {
			if !yield(b) {
				return
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("receive %s from host %d: %w", id, from.Host, err)
	}
	return whole.take(), nil
}

func (r *Receiver) closeLater(f *Fetch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed { // otherwise Close does it
		r.all.Go(f.Close)
	}
}

// Attend joins, until the receiver is closed, the address to which an origin multicasts objects. Receive does it too, but
// until all switches know of it some 10 to 40 ms pass, which nobody has to wait for if it was done before.
func (r *Receiver) Attend(from Origin) error {
	o, err := r.originOf(from)
	if err != nil {
		return fmt.Errorf("attend host %d: %w", from.Host, err)
	}
	o.mu.Lock()
	attended := o.attended != nil
	o.mu.Unlock()
	if attended {
		return nil
	}
	// Nothing is received from it: no id has this port.
	at := netip.AddrPortFrom(r.keys.objectGroup(from.Host, ID{}).Addr(), attendPort)
	s, err := r.config.network.join(r.config.Address, at)
	if err != nil {
		return fmt.Errorf("attend host %d: %w", from.Host, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if r.closed || o.attended != nil {
		s.close()
		return nil
	}
	o.attended = s
	return nil
}

// wholeObject is a Sink in memory. A block that comes twice is the same both times.
type wholeObject struct {
	mu    sync.Mutex
	data  []byte
	taken bool
}

func (o *wholeObject) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken = true
	return o.data
}

func (o *wholeObject) Arrive(p []byte, first int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.taken {
		return nil
	}
	copy(o.data[first*slice.BlockSize:], p)
	return nil
}

func (r *Receiver) open(ctx context.Context, from Origin, id ID, group netip.AddrPort, accept func(w welcome) (Sink, error)) (*Fetch, error) {
	if from.Host < 0 || from.Host > maxHost || !from.Address.Addr().Is4() {
		return nil, fmt.Errorf("host %d at %s: no origin", from.Host, from.Address)
	}
	o, err := r.originOf(from)
	if err != nil {
		return nil, err
	}
	f := newFetch(r, o, id, accept)
	if err := o.ready(id); err != nil {
		return nil, err
	}
	if f.socket, err = r.config.network.join(r.config.Address, group); err != nil {
		return nil, err
	}
	if err := r.register(f); err != nil {
		f.socket.close()
		return nil, err
	}
	f.all.Go(f.receive)
	if err := f.join(ctx); err != nil {
		f.end(err)
		f.Close()
		return nil, err
	}
	f.all.Go(f.tend)
	f.all.Go(f.listen)
	return f, nil
}

// ready reports why an id cannot be opened from an origin now.
func (o *origin) ready(id ID) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case time.Now().Before(o.deaf):
		return ErrDeaf
	case o.fetches[id] != nil:
		return ErrServed
	case len(o.fetches) >= maxFetches:
		return ErrTooMany
	}
	return nil
}

// register makes a fetch, which has its socket, known to its origin, unless another has come first.
func (r *Receiver) register(f *Fetch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	f.origin.mu.Lock()
	defer f.origin.mu.Unlock()
	if f.origin.fetches[f.id] != nil {
		return ErrServed
	}
	f.origin.fetches[f.id] = f
	return nil
}

func (r *Receiver) originOf(from Origin) (*origin, error) {
	e := end{uint16(from.Host), from.Session}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	o := r.origins[e]
	if o == nil {
		o = &origin{
			end: e, address: from.Address,
			out:     newSealer(request, r.self, func(c suite) []byte { return r.keys.pairKey(c, request, r.self, e) }),
			open:    &opener{key: func(c suite) []byte { return r.keys.pairKey(c, reply, e, r.self) }},
			fetches: make(map[ID]*Fetch),
		}
		r.origins[e] = o
	}
	return o, nil
}

// receive is the goroutine to which all replies come.
func (r *Receiver) receive() {
	for {
		if err := r.socket.receive(r.take); errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case <-r.done:
			return
		default:
		}
	}
}

func (r *Receiver) take(p []byte, _ netip.AddrPort, _ time.Time) {
	r.tally.packetsReceived.Add(1)
	r.tally.unicastTaken.Add(uint64(len(p)))
	if err := r.reply(p); err != nil {
		r.tally.refused(err)
	}
}

func (r *Receiver) reply(p []byte) error {
	h, err := parseHeader(p)
	if err != nil || h.way != reply {
		return errForeign
	}
	r.mu.Lock()
	o := r.origins[h.from]
	r.mu.Unlock()
	if o == nil {
		return errForeign
	}
	m, err := o.open.open(h, p)
	if err != nil {
		return err
	}
	id, err := idOf(m)
	if err != nil {
		return err
	}
	now := time.Now()
	o.mu.Lock()
	f := o.fetches[id]
	o.heard = now
	o.mu.Unlock()
	if f == nil {
		return nil // closed in the meantime
	}
	switch message(m[0]) {
	case messageWelcome:
		w, err := parseWelcome(m)
		if err != nil {
			return err
		}
		o.measured(w.echo, now)
		return f.welcomed(w)
	case messagePong:
		stamp, err := parseStamped(m)
		if err != nil {
			return err
		}
		o.measured(stamp, now)
		return nil
	case messageRefuse:
		reason, err := parseRefuse(m)
		if err != nil {
			return err
		}
		f.end(reason)
		return nil
	case messageData:
		return f.data(m[17:], false, now, now)
	}
	return errMalformed
}

// measured takes the stamp of a request that was answered now.
func (o *origin) measured(stamp uint32, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d := time.Duration(microseconds(now)-stamp) * time.Microsecond; d < 10*time.Second {
		o.trip.measure(d)
	}
}

// send sends a message to an origin; make appends it.
func (r *Receiver) send(o *origin, make1 func(p []byte) []byte) {
	p := make1(make([]byte, headerSize, r.room))
	sealed, _ := o.out.seal(p)
	r.tally.packetsSent.Add(1)
	r.tally.unicastSent.Add(uint64(len(sealed)))
	r.socket.send(sealed, len(sealed), o.address) // one that was not sent is asked again like one that was lost
}

// Counters returns what was done so far.
func (r *Receiver) Counters() Counters {
	c := r.tally.counters()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.origins {
		o.mu.Lock()
		c.RoundTrip = max(c.RoundTrip, o.trip.smooth)
		o.mu.Unlock()
	}
	return c
}

// Close ends all fetches.
func (r *Receiver) Close() error {
	r.mu.Lock()
	r.closed = true
	var fetches []*Fetch
	for _, o := range r.origins {
		o.mu.Lock()
		for _, f := range o.fetches {
			fetches = append(fetches, f)
		}
		if o.attended != nil {
			o.attended.close()
			o.attended = nil
		}
		o.mu.Unlock()
	}
	r.mu.Unlock()
	for _, f := range fetches {
		f.Close()
	}
	r.stop.Do(func() { close(r.done) })
	err := r.socket.close()
	r.all.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close multicast receiver: %w", err)
	}
	return nil
}

// trip is a round trip's time and its variation, as TCP keeps them (RFC 6298). It has no lock.
type trip struct {
	smooth, vary time.Duration
}

const (
	minPatience = 8 * time.Millisecond // a host that is busy may not be scheduled for as long
	maxPatience = 500 * time.Millisecond
)

func (t *trip) measure(d time.Duration) {
	if t.smooth == 0 {
		t.smooth, t.vary = d, d/2
		return
	}
	t.vary += (max(d-t.smooth, t.smooth-d) - t.vary) / 4
	t.smooth += (d - t.smooth) / 8
}

// patience is how long to wait for an answer before asking again for the nth time, n from 0.
func (t *trip) patience(n int) time.Duration {
	if t.smooth == 0 {
		return min(maxPatience, joinEvery<<min(n, 5))
	}
	return min(maxPatience, max(minPatience, t.smooth+4*t.vary)<<min(n, 5))
}
