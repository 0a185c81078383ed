package multicast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// cluster is an origin, host 0, and some receivers, all on one network.
type cluster struct {
	t         *testing.T
	wire      *wire
	sender    *Sender
	receivers []*Receiver
	mu        sync.Mutex
	moved     []error
	movedHost []int
}

var testKey = [32]byte{1, 2, 3}

func hostAddress(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n + 1)}) }

// newCluster makes one. Links are set before: shape is called for each receiver's.
func newCluster(t *testing.T, seed uint64, receivers int, shape func(host int, l *wireLink), set func(*SenderConfig)) *cluster {
	t.Helper()
	c := &cluster{t: t, wire: newWire(seed)}
	for i := range receivers {
		if shape != nil {
			shape(i+1, c.wire.link(hostAddress(i+1)))
		}
	}
	config := SenderConfig{Address: hostAddress(0), Key: testKey, network: c.wire, Moved: func(_ ID, host int, err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.moved, c.movedHost = append(c.moved, err), append(c.movedHost, host)
	}}
	if set != nil {
		set(&config)
	}
	var err error
	if c.sender, err = NewSender(config); err != nil {
		t.Fatal(err)
	}
	for i := range receivers {
		r, err := NewReceiver(ReceiverConfig{Self: i + 1, Address: hostAddress(i + 1), Key: testKey, network: c.wire})
		if err != nil {
			t.Fatal(err)
		}
		c.receivers = append(c.receivers, r)
	}
	return c
}

// close closes everything, and waits for packets that are still on their way.
func (c *cluster) close() {
	for _, r := range c.receivers {
		if err := r.Close(); err != nil {
			c.t.Error(err)
		}
	}
	if err := c.sender.Close(); err != nil {
		c.t.Error(err)
	}
	time.Sleep(5 * time.Second)
}

// image is a Source whose blocks can be told from each other; some compress.
type image struct {
	data []byte
	mu   sync.Mutex
	read map[int64]int
}

func newImage(seed uint64, size int) *image {
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 7))
	for i := range data {
		if i/slice.BlockSize%3 != 0 { // every third block is almost empty
			data[i] = byte(r.Uint32())
		} else if i%64 == 0 {
			data[i] = byte(i / slice.BlockSize)
		}
	}
	return &image{data: data, read: make(map[int64]int)}
}

func (m *image) Size() int64 { return int64(len(m.data)) }

func (m *image) ReadBlocks(dst []byte, first int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(dst)
	copy(dst, m.data[first*slice.BlockSize:])
	for b := range int64(len(dst) / slice.BlockSize) {
		m.read[first+b]++
	}
	return nil
}

// copySink is what has arrived.
type copySink struct {
	mu     sync.Mutex
	data   []byte
	times  map[int64]int
	slow   time.Duration
	failed error
}

func newSink(size int64) *copySink {
	return &copySink{data: make([]byte, size), times: make(map[int64]int)}
}

func (s *copySink) Arrive(p []byte, first int64) error {
	if s.slow > 0 {
		time.Sleep(s.slow)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	copy(s.data[first*slice.BlockSize:], p)
	for b := range int64(len(p) / slice.BlockSize) {
		s.times[first+b]++
	}
	return nil
}

func blocksTo(n int64) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for b := range n {
			if !yield(b) {
				return
			}
		}
	}
}

// each runs a function for each receiver at once and fails the test with its errors.
func (c *cluster) each(do func(i int, r *Receiver) error) {
	c.t.Helper()
	var all sync.WaitGroup
	errs := make([]error, len(c.receivers))
	for i, r := range c.receivers {
		all.Go(func() { errs[i] = do(i, r) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			c.t.Errorf("receiver %d: %v", i+1, err)
		}
	}
}

func randomID(seed uint64) (id ID) {
	r := rand.New(rand.NewPCG(seed, 3))
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	return id
}

// prefetchAll opens an image at all receivers and prefetches all of it.
func (c *cluster) prefetchAll(id ID, m *image, patience time.Duration) {
	c.t.Helper()
	c.each(func(i int, r *Receiver) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		sink := newSink(m.Size())
		f, err := r.Open(ctx, c.sender.Origin(), id, m.Size(), sink)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Prefetch(ctx, blocksTo(m.Size()/slice.BlockSize)); err != nil {
			return err
		}
		if !bytes.Equal(sink.data, m.data) {
			return errors.New("what arrived is not what was sent")
		}
		return nil
	})
}

func TestPrefetch(t *testing.T) {
	for _, c := range []struct {
		name      string
		receivers int
		shape     func(host int, l *wireLink)
	}{
		{"one", 1, nil},
		{"four", 4, nil},
		{"loss of 5 %", 4, func(_ int, l *wireLink) { l.loss = 0.05 }},
		{"loss of 30 %", 3, func(_ int, l *wireLink) { l.loss = 0.3 }},
		{"reordered and doubled", 3, func(_ int, l *wireLink) { l.jitter, l.double = 3*time.Millisecond, 0.1 }},
		{"a narrow link", 3, func(_ int, l *wireLink) { l.rate, l.queue = 12.5e6, 50*time.Millisecond }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				cl := newCluster(t, 1, c.receivers, c.shape, nil)
				defer cl.close()
				m := newImage(1, 8<<20)
				id := randomID(1)
				if err := cl.sender.Serve(id, m); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				cl.prefetchAll(id, m, time.Minute)
				n := cl.sender.Counters()
				t.Logf("%v: %d bytes multicast, %d parity, %d repairs, rate %d", time.Since(began), n.MulticastSent, n.Parity, n.Repairs, n.Rate)
			})
		})
	}
}

func TestObject(t *testing.T) {
	for _, size := range []int{1, 4096, 4097, 1 << 20} {
		for _, loss := range []float64{0, 0.3} {
			t.Run(fmt.Sprintf("%d bytes, loss of %v", size, loss), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					c := newCluster(t, 2, 8, func(_ int, l *wireLink) { l.loss = loss }, nil)
					defer c.close()
					data := newImage(2, size).data
					id := randomID(2)
					if err := c.sender.Publish(id, data, []int{1, 2, 3, 4, 5, 6, 7, 8}); err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					c.each(func(_ int, r *Receiver) error {
						ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
						defer cancel()
						got, err := r.Receive(ctx, c.sender.Origin(), id)
						if err == nil && !bytes.Equal(got, data) {
							err = errors.New("what arrived is not what was sent")
						}
						return err
					})
					n := c.sender.Counters()
					t.Logf("%v: %d bytes multicast", time.Since(began), n.MulticastSent)
				})
			})
		}
	}
}
