package multicast

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// ID names what is distributed: a slice, or a published object.
type ID = slice.ID

// Source has the blocks of a slice. *slice.Slice is one.
type Source interface {
	Size() int64 // bytes
	// ReadBlocks reads len(dst)/slice.BlockSize blocks from block first on. It may be called by several goroutines.
	ReadBlocks(dst []byte, first int64) error
}

// Origin tells a receiver how to find a sender. It is not secret, but must come from the sender over a connection that
// is authenticated: its session is what makes sure that packets are of now.
type Origin struct {
	Host    int
	Address netip.AddrPort
	Session [8]byte
}

const originSize = 2 + 4 + 2 + 8

// MarshalBinary writes the origin as 16 bytes.
func (o Origin) MarshalBinary() ([]byte, error) {
	if !o.Address.Addr().Is4() || o.Host < 0 || o.Host > maxHost {
		return nil, fmt.Errorf("marshal origin: host %d at %s: not an IPv4 address, or no host", o.Host, o.Address)
	}
	p := binary.BigEndian.AppendUint16(nil, uint16(o.Host))
	ip := o.Address.Addr().As4()
	p = binary.BigEndian.AppendUint16(append(p, ip[:]...), o.Address.Port())
	return append(p, o.Session[:]...), nil
}

// UnmarshalBinary reads what MarshalBinary wrote.
func (o *Origin) UnmarshalBinary(p []byte) error {
	if len(p) != originSize {
		return fmt.Errorf("unmarshal origin: %d bytes instead of %d", len(p), originSize)
	}
	o.Host = int(binary.BigEndian.Uint16(p))
	o.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[2:6])), binary.BigEndian.Uint16(p[6:]))
	copy(o.Session[:], p[8:])
	return nil
}

// maxHost is the highest number that a host can have.
const maxHost = 1<<16 - 1

// SenderConfig is what a Sender needs to know.
type SenderConfig struct {
	Self    int        // number of this host
	Address netip.Addr // of this host, on the network that the hosts share; IPv4
	Key     [32]byte   // the job's
	// Push sends the blocks that follow those asked for, when there is nothing else to do (section 3.5). It is worth it
	// where clones touch most of the image in the end.
	Push bool
	// Moved, if not nil, hears of each host that is in an id's group no more because of ErrSlow or ErrSilent. The host is
	// told as well. It must not block, and not call the Sender.
	Moved func(id ID, host int, err error)

	network network // the kernel's, if nil
}

// Sender multicasts what one host is the origin of. It answers requests and knows who is a member of which group; that
// everything arrives is the receivers' business (section 3.5).
type Sender struct {
	config SenderConfig
	keys   keyring
	self   end
	socket socket
	room   int
	tally  tally
	pace   *pace
	begun  time.Time

	urgent chan urgentJob
	wake   chan struct{} // holds a token while bulk may have something to send
	done   chan struct{}
	stop   sync.Once
	all    sync.WaitGroup

	mu      sync.Mutex
	sources map[ID]*source
	order   []*source     // the same, in the order in which bulk takes turns
	peers   map[end]*peer // one for each session that was heard of; never forgotten, or it could be replayed
	opened  map[uint16]int
}

// source is one id that is served.
type source struct {
	id     ID
	from   Source
	object bool
	size   int64
	blocks int64
	group  netip.AddrPort
	out    *sealer
	bytes  atomic.Uint64 // sent to the group

	reading   sync.RWMutex // held shared while from is read
	withdrawn bool         // guarded by reading

	// Guarded by the sender's lock.
	members map[end]*member
	moved   map[end]error   // who is to use unicast
	expects map[uint16]bool // who is waited for before bulk begins
	hold    time.Time       // until when
	sent    marks
	queue   fifo
	pushed  fifo // nobody waits for these
	push    counterPool
	next    uint32 // number of the next batch
	current *batch // being sent by bulk
	left    int    // packets of it still to be sent
	kept    []*batch
	keptLen int
	repairs []*batch // that somebody is short of
	due     time.Time
	idle    int       // beacons sent since bulk had nothing more to send
	beacon  time.Time // when the next one is due
}

// peer is one receiver's session.
type peer struct {
	end
	open    *opener // used by the goroutine that receives, alone
	out     *sealer
	address netip.AddrPort // guarded by the sender's lock
}

// member is a receiver in a source's group.
type member struct {
	*peer
	since  uint64 // counter of the message by which it joined last
	joined uint64 // the group's counter then
	given  bool   // all of an object was queued for it
	heard  time.Time
	flow   flow
}

const (
	// memberSilence is how long a member may be silent. Receivers report at least each second.
	memberSilence = 4 * time.Second
	// maxSessions bounds the sessions of one host, and maxMembers those of a group.
	maxSessions = 16
	maxMembers  = 4096
	maxSources  = 4096
	// gather is how long an object waits for those who shall get it, from the first of them.
	gather = 15 * time.Millisecond
	// keepBytes bounds the batches that are kept so that parity can be made for them.
	keepBytes = 16 << 20
)

// NewSender opens a socket and begins to answer.
func NewSender(config SenderConfig) (*Sender, error) {
	if !config.Address.Is4() || config.Self < 0 || config.Self > maxHost {
		return nil, fmt.Errorf("start multicast sender: host %d at %v: it needs an IPv4 address and a number below %d",
			config.Self, config.Address, maxHost+1)
	}
	if config.network == nil {
		config.network = udp{}
	}
	room, err := config.network.room(config.Address)
	if err != nil {
		return nil, fmt.Errorf("start multicast sender: %w", err)
	}
	sock, err := config.network.unicast(config.Address)
	if err != nil {
		return nil, fmt.Errorf("start multicast sender: %w", err)
	}
	s := &Sender{
		config: config, keys: newKeyring(config.Key), self: end{host: uint16(config.Self)},
		socket: sock, room: room, pace: newPace(), begun: time.Now(),
		urgent: make(chan urgentJob, 1024), wake: make(chan struct{}, 1), done: make(chan struct{}),
		sources: make(map[ID]*source), peers: make(map[end]*peer), opened: make(map[uint16]int),
	}
	rand.Read(s.self.session[:])
	s.all.Go(s.receive)
	for range urgentWorkers {
		s.all.Go(s.answerUrgent)
	}
	s.all.Go(s.bulk)
	s.all.Go(s.tend)
	return s, nil
}

// Origin returns what receivers need to find this sender.
func (s *Sender) Origin() Origin {
	return Origin{Host: int(s.self.host), Address: s.socket.address(), Session: s.self.session}
}

// Serve answers requests for blocks of an id from now on. It is ErrServed if that is served already.
func (s *Sender) Serve(id ID, from Source) error {
	return s.serve(&source{id: id, from: from, size: from.Size()})
}

// Publish serves a whole object, of at most 256 MB, until it is withdrawn. The hosts in to are those who are going to ask
// for it: from the first of them that does, the others are waited for 15 ms, so that one transmission does for all.
func (s *Sender) Publish(id ID, data []byte, to []int) error {
	if len(data) == 0 || len(data) > maxObject {
		return fmt.Errorf("publish %s: %d bytes: must be at least 1 and at most %d", id, len(data), maxObject)
	}
	src := &source{id: id, from: object{data}, size: int64(len(data)), object: true, expects: make(map[uint16]bool)}
	for _, h := range to {
		if h >= 0 && h <= maxHost && h != s.config.Self {
			src.expects[uint16(h)] = true
		}
	}
	return s.serve(src)
}

func (s *Sender) serve(src *source) error {
	if src.size < 0 || src.size > slice.MaxImageSize {
		return fmt.Errorf("serve %s: %d bytes: too many", src.id, src.size)
	}
	src.blocks = (src.size + slice.BlockSize - 1) / slice.BlockSize
	src.group = s.keys.groupOf(s.config.Self, src.id)
	if src.object {
		src.group = s.keys.objectGroup(s.config.Self, src.id)
	}
	src.out = newSealer(toGroup, s.self, func(c suite) []byte { return s.keys.groupKey(c, s.self, src.id) })
	src.members, src.moved, src.sent = make(map[end]*member), make(map[end]error), make(marks)

	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return fmt.Errorf("serve %s: %w", src.id, ErrClosed)
	default:
	}
	if s.sources[src.id] != nil {
		return fmt.Errorf("serve %s: %w", src.id, ErrServed)
	}
	if len(s.sources) == maxSources {
		return fmt.Errorf("serve %s: %w", src.id, ErrTooMany)
	}
	s.sources[src.id] = src
	s.order = append(s.order, src)
	return nil
}

// Withdraw ends the serving of an id. Its receivers' fetches end with ErrWithdrawn. When it returns, the source is read
// no more.
func (s *Sender) Withdraw(id ID) {
	s.mu.Lock()
	src := s.sources[id]
	delete(s.sources, id)
	for i := range s.order {
		if s.order[i] == src {
			s.order = append(s.order[:i], s.order[i+1:]...)
			break
		}
	}
	var members []*member
	if src != nil {
		for _, m := range src.members {
			members = append(members, m)
		}
	}
	s.mu.Unlock()
	if src == nil {
		return
	}
	src.reading.Lock()
	src.withdrawn = true
	src.reading.Unlock()
	for _, m := range members {
		s.refuse(m.peer, id, ErrWithdrawn)
	}
}

// Push sends blocks to all who have the id open, when there is nothing more urgent to do. Nobody waits for them: what
// does not arrive is asked for when it is needed.
func (s *Sender) Push(id ID, blocks []int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.sources[id]
	if src == nil {
		return fmt.Errorf("push %s: %w", id, ErrUnknown)
	}
	for _, b := range blocks {
		if b < 0 || b >= src.blocks {
			return fmt.Errorf("push %s: block %d is not inside an image of %d", id, b, src.blocks)
		}
		src.pushed.add(b)
	}
	s.wakeBulk()
	return nil
}

// Counters returns what was done so far.
func (s *Sender) Counters() Counters {
	c := s.tally.counters()
	c.Rate = int64(s.pace.rate())
	return c
}

// Close ends all serving, and returns when no source is read any more.
func (s *Sender) Close() error {
	s.mu.Lock()
	var ids []ID
	for id := range s.sources {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.Withdraw(id)
	}
	s.stop.Do(func() { close(s.done) })
	err := s.socket.close()
	s.all.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close multicast sender: %w", err)
	}
	return nil
}

// read reads the blocks of some runs, one after another.
func (src *source) read(dst []byte, runs []run) error {
	src.reading.RLock()
	defer src.reading.RUnlock()
	if src.withdrawn {
		return ErrWithdrawn
	}
	for _, r := range runs {
		n := r.n * slice.BlockSize
		if err := src.from.ReadBlocks(dst[:n], r.first); err != nil {
			return err
		}
		dst = dst[n:]
	}
	return nil
}

// object is a Source of bytes in memory.
type object struct{ data []byte }

func (o object) Size() int64 { return int64(len(o.data)) }

func (o object) ReadBlocks(dst []byte, first int64) error {
	r := bytes.NewReader(o.data)
	n, err := r.ReadAt(dst, first*slice.BlockSize)
	if err != nil && err != io.EOF {
		return err
	}
	clear(dst[n:]) // the object ends inside its last block
	return nil
}
