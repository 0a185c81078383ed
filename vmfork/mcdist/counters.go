package mcdist

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist/multicast"
)

// Way is how blocks reach a host.
type Way int

// The ways. What is asked for goes by unicast in any case.
const (
	ByUnicast   Way = iota // over a stream from the origin
	ByTree                 // over a stream from a relay
	ByMulticast            // packets
	Ways
)

func (w Way) String() string { return [...]string{"unicast", "tree", "multicast"}[w] }

// What traffic is for. Urgent and bulk are the lanes' numbers.
const (
	objects = lanes
	kinds   = objects + 1
)

// Traffic is what went one way.
type Traffic struct {
	Packets int64 // frames, or writes of several frames; packets of multicast
	Bytes   int64 // with the headers of this package, without those of TLS, TCP and UDP
	Blocks  int64
}

func (t *Traffic) add(u Traffic) {
	t.Packets += u.Packets
	t.Bytes += u.Bytes
	t.Blocks += u.Blocks
}

// Flow is traffic by what it is for.
type Flow struct {
	Urgent  Traffic // somebody waits: Bring
	Bulk    Traffic // Prefetch and Push
	Objects Traffic // blocks of objects, of which the bytes are in Bulk
}

// Total is all of it.
func (f Flow) Total() Traffic {
	t := f.Urgent
	t.add(f.Bulk)
	t.add(f.Objects)
	return t
}

// Counters says what a node has done since it was made.
type Counters struct {
	Sent, Received [Ways]Flow // blocks received are new ones

	Duplicates int64 // blocks that came and were here already
	Requests   Asked // requests sent for blocks
	RoundTrips Asked // those of them for which somebody waits; in bulk, those sent with nothing else under way
	Refused    int64 // requests of other hosts
	Redials    int64 // connections made again
	Fallbacks  int64 // relays, and multicast, given up for unicast
	Repairs    int64 // multicast packets asked for again
	Latency    Histogram
}

// Asked counts requests by what they are for.
type Asked struct{ Urgent, Bulk, Objects int64 }

// BlocksPerRoundTrip is how many blocks came for each round trip that somebody waited for.
func (c *Counters) BlocksPerRoundTrip() float64 {
	if c.RoundTrips.Urgent == 0 {
		return 0
	}
	blocks := int64(0)
	for _, f := range c.Received {
		blocks += f.Urgent.Blocks
	}
	return float64(blocks) / float64(c.RoundTrips.Urgent)
}

// latencyBuckets covers 2^24 µs, in steps of a quarter octave.
const latencyBuckets = 4 * 25

// Histogram counts how long calls of Bring took that succeeded, those for which there was nothing to do included. A
// bucket is a quarter of an octave of microseconds.
type Histogram [latencyBuckets]int64

// latencyBucket numbers the durations: those below 4 µs one by one, and then four to a doubling.
func latencyBucket(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	if us < 4 {
		return int(us)
	}
	exp := bits.Len64(us) - 1
	return min(4*(exp-1)+int(us>>(exp-2)&3), latencyBuckets-1)
}

// bucketEnd is the upper bound of a bucket.
func bucketEnd(i int) time.Duration {
	if i < 4 {
		return time.Duration(i+1) * time.Microsecond
	}
	exp := i/4 + 1
	return time.Duration(4+i%4+1) << (exp - 2) * time.Microsecond
}

// Count returns the number of times.
func (h *Histogram) Count() (n int64) {
	for _, c := range h {
		n += c
	}
	return n
}

// Percentile returns an upper bound of the p-th percentile, at most a quarter too high, and 0 for no times at all.
func (h *Histogram) Percentile(p float64) time.Duration {
	total, seen := h.Count(), int64(0)
	for i, c := range h {
		if seen += c; seen > 0 && float64(seen) >= p/100*float64(total) {
			return bucketEnd(i)
		}
	}
	return 0
}

// traffic is Traffic while it changes.
type traffic struct{ packets, bytes, blocks atomic.Int64 }

func (t *traffic) add(bytes, blocks int64) {
	t.packets.Add(1)
	t.bytes.Add(bytes)
	if blocks != 0 {
		t.blocks.Add(blocks)
	}
}

func (t *traffic) load() Traffic {
	return Traffic{t.packets.Load(), t.bytes.Load(), t.blocks.Load()}
}

type latencies [latencyBuckets]atomic.Int64

func (l *latencies) add(d time.Duration) { l[latencyBucket(d)].Add(1) }

// counters is Counters while they change.
type counters struct {
	out, in             [Ways][kinds]traffic
	duplicates, refused atomic.Int64
	requests, trips     [kinds]atomic.Int64
	redials, fallbacks  atomic.Int64
	latency             latencies
}

func (c *counters) sent(way Way, kind, bytes int, blocks int64) {
	c.out[way][kind].add(int64(bytes), blocks)
}

func (c *counters) received(way Way, kind, bytes int, blocks int64) {
	c.in[way][kind].add(int64(bytes), blocks)
}

func (c *counters) blocks(way Way, kind int, n int64) { c.in[way][kind].blocks.Add(n) }

func (c *counters) request(kind int, alone bool) {
	c.requests[kind].Add(1)
	if alone {
		c.trips[kind].Add(1)
	}
}

// Counters returns what the node has done.
func (n *Node) Counters() Counters {
	c := &n.count
	s := Counters{
		Duplicates: c.duplicates.Load(), Refused: c.refused.Load(), Redials: c.redials.Load(), Fallbacks: c.fallbacks.Load(),
		Requests:   Asked{c.requests[urgent].Load(), c.requests[bulk].Load(), c.requests[objects].Load()},
		RoundTrips: Asked{c.trips[urgent].Load(), c.trips[bulk].Load(), c.trips[objects].Load()},
	}
	for way := range Ways {
		s.Sent[way] = flow(&c.out[way])
		s.Received[way] = flow(&c.in[way])
	}
	for i := range c.latency {
		s.Latency[i] = c.latency[i].Load()
	}
	n.mu.Lock()
	sender, hears := (*multicast.Sender)(nil), n.hears
	if n.dist != nil {
		sender = n.dist.sender
	}
	n.mu.Unlock()
	if sender != nil {
		c := sender.Counters()
		s.cast(c)
		s.Sent[ByMulticast].Bulk.Blocks += int64(c.Blocks)
	}
	if hears != nil {
		s.cast(hears.Counters())
	}
	return s
}

// cast adds what multicast has counted. New blocks that came are counted here.
func (s *Counters) cast(c multicast.Counters) {
	out, in := &s.Sent[ByMulticast], &s.Received[ByMulticast]
	out.Bulk.add(Traffic{int64(c.PacketsSent), int64(c.MulticastSent + c.UnicastSent), 0})
	in.Bulk.add(Traffic{int64(c.PacketsReceived), int64(c.MulticastTaken + c.UnicastTaken), 0})
	s.Repairs += int64(c.Repairs)
}

func flow(t *[kinds]traffic) Flow {
	return Flow{t[urgent].load(), t[bulk].load(), t[objects].load()}
}
