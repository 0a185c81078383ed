package multicast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// opened is an image that is served, with a fetch at each receiver.
type opened struct {
	*cluster
	image   *image
	id      ID
	fetches []*Fetch
	sinks   []*copySink
}

func openAll(c *cluster, seed uint64, size int) *opened {
	c.t.Helper()
	o := &opened{cluster: c, image: newImage(seed, size), id: randomID(seed)}
	if err := c.sender.Serve(o.id, o.image); err != nil {
		c.t.Fatal(err)
	}
	for _, r := range c.receivers {
		sink := newSink(o.image.Size())
		f, err := r.Open(context.Background(), c.sender.Origin(), o.id, o.image.Size(), sink)
		if err != nil {
			c.t.Fatal(err)
		}
		o.fetches, o.sinks = append(o.fetches, f), append(o.sinks, sink)
	}
	time.Sleep(200 * time.Millisecond) // until all have heard the group
	return o
}

// has checks that a sink has got a block as it is in the image.
func (o *opened) has(receiver int, block int64) bool {
	s := o.sinks[receiver]
	s.mu.Lock()
	defer s.mu.Unlock()
	at := block * slice.BlockSize
	return s.times[block] > 0 && bytes.Equal(s.data[at:at+slice.BlockSize], o.image.data[at:at+slice.BlockSize])
}

// inTime gives a wait of a test a deadline.
func inTime(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// virtual runs a test in virtual time with a cluster.
func virtual(t *testing.T, receivers int, shape func(host int, l *wireLink), set func(*SenderConfig), test func(t *testing.T, c *cluster)) {
	t.Helper()
	inBubble(t, func(t *testing.T) {
		c := newCluster(t, 5, receivers, shape, set)
		defer c.close()
		test(t, c)
	})
}

func TestBringIsAnsweredAtOnce(t *testing.T) {
	virtual(t, 2, nil, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		began := time.Now()
		if err := o.fetches[0].Bring(inTime(t, time.Second), 17, 3); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Millisecond {
			t.Errorf("took %v with a round trip of 0.2 ms", took)
		}
		time.Sleep(10 * time.Millisecond)
		for b := int64(17); b < 20; b++ {
			if !o.has(0, b) {
				t.Errorf("the one who asked has no block %d", b)
			}
			if !o.has(1, b) {
				t.Errorf("the other has no block %d, which was multicast", b)
			}
		}
		// The other has it: it asks nobody.
		before := c.receivers[1].Counters().Requests
		if err := o.fetches[1].Bring(inTime(t, time.Second), 17, 3); err != nil {
			t.Fatal(err)
		}
		if after := c.receivers[1].Counters().Requests; after != before {
			t.Errorf("asked for %d blocks that were here", after-before)
		}
	})
}

func TestBringOvertakesBulk(t *testing.T) {
	narrow := func(_ int, l *wireLink) { l.rate, l.queue = 2e6, 100*time.Millisecond }
	virtual(t, 2, narrow, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 8<<20)
		bulk := make(chan error, 1)
		go func() { bulk <- o.fetches[0].Prefetch(inTime(t, time.Minute), blocksTo(2048)) }()
		time.Sleep(time.Second)
		for b := int64(2000); b < 2010; b++ {
			began := time.Now()
			if err := o.fetches[0].Bring(inTime(t, 5*time.Second), b, 1); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 300*time.Millisecond {
				t.Errorf("block %d took %v: it has waited behind bulk", b, took)
			}
		}
		select {
		case err := <-bulk:
			t.Errorf("bulk was over first: %v", err)
		default:
		}
		if err := <-bulk; err != nil {
			t.Error(err)
		}
	})
}

func TestLockstep(t *testing.T) {
	virtual(t, 8, nil, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		for b := int64(0); b < 50; b++ {
			c.each(func(i int, _ *Receiver) error { return o.fetches[i].Bring(inTime(t, time.Second), b, 1) })
		}
		for b := int64(0); b < 50; b++ {
			if n := o.image.read[b]; n != 1 {
				t.Errorf("block %d was read %d times for 8 requests", b, n)
			}
		}
		if n := c.sender.Counters(); n.Requests != 8*50 || n.Lockstep != 7*50 {
			t.Errorf("of %d requests %d were lockstep; of 400, 350 are", n.Requests, n.Lockstep)
		}
	})
}

func TestLossOfUrgentBlocks(t *testing.T) {
	virtual(t, 4, func(_ int, l *wireLink) { l.loss = 0.3 }, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		c.each(func(i int, _ *Receiver) error {
			for b := int64(0); b < 100; b++ {
				if err := o.fetches[i].Bring(inTime(t, 5*time.Second), b, 1); err != nil {
					return err
				}
				if !o.has(i, b) {
					return fmt.Errorf("block %d is not what was sent", b)
				}
			}
			return nil
		})
	})
}

func TestPushWithCounters(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprint(on), func(t *testing.T) {
			virtual(t, 2, nil, func(s *SenderConfig) { s.Push = on }, func(t *testing.T, c *cluster) {
				o := openAll(c, 1, 1<<20)
				for _, b := range []int64{100, 20} {
					if err := o.fetches[0].Bring(inTime(t, time.Second), b, 1); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Second)
				for b := int64(0); b < 256; b++ {
					want := b == 20 || b == 100 || on && b > 20
					if got := o.has(0, b) && o.has(1, b); got != want {
						t.Fatalf("block %d: pushed %v", b, got)
					}
					if n := o.image.read[b]; n > 1 {
						t.Errorf("block %d was sent %d times", b, n)
					}
				}
			})
		})
	}
}

func TestPush(t *testing.T) {
	virtual(t, 3, nil, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		blocks := []int64{200, 3, 4, 5, 90, 91}
		if err := c.sender.Push(o.id, blocks); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		for i := range o.fetches {
			for b := range int64(256) {
				if got, want := o.has(i, b), slices.Contains(blocks, b); got != want {
					t.Errorf("receiver %d, block %d: has it: %v", i+1, b, got)
				}
			}
		}
		if n := c.sender.Counters(); n.Pushed != 6 || n.Requests != 0 {
			t.Errorf("%d pushed, %d asked for", n.Pushed, n.Requests)
		}
		if err := c.sender.Push(o.id, []int64{256}); err == nil {
			t.Error("a block outside of the image was pushed")
		}
	})
}

func TestCounterPool(t *testing.T) {
	var c counterPool
	c.add(5)
	c.add(0)
	c.add(7)
	sent := map[int64]bool{6: true} // asked for
	var got []int64
	for range 20 {
		list := c.take(2, 10, func(b int64) bool { return !sent[b] })
		for _, b := range list {
			sent[b] = true
		}
		got = append(got, list...)
	}
	want := []int64{5, 0, 7, 8, 1, 9, 2, 3, 4} // the counters take turns; none sends what was sent
	if !slices.Equal(got, want) {
		t.Errorf("got %v instead of %v", got, want)
	}
}

func TestSlowReceiverIsMoved(t *testing.T) {
	for _, n := range []int{2, 5} {
		t.Run(fmt.Sprintf("one of %d", n), func(t *testing.T) {
			shape := func(host int, l *wireLink) {
				l.rate, l.queue = 25e6, 50*time.Millisecond
				if host == n {
					l.rate = 2.5e6
				}
			}
			virtual(t, n, shape, nil, func(t *testing.T, c *cluster) {
				o := openAll(c, 1, 128<<20)
				began := time.Now()
				c.each(func(i int, _ *Receiver) error {
					err := o.fetches[i].Prefetch(inTime(t, 2*time.Minute), blocksTo(128<<8))
					t.Logf("receiver %d: %v after %v", i+1, err, time.Since(began))
					if i != n-1 {
						return err
					}
					if !errors.Is(err, ErrSlow) || !errors.Is(err, ErrUnicast) {
						return fmt.Errorf("the slow one's prefetch ended with %v", err)
					}
					return nil
				})
				if !slices.Equal(c.movedHost, []int{n}) || !errors.Is(c.moved[0], ErrSlow) {
					t.Errorf("moved were %v (%v)", c.movedHost, c.moved)
				}
				if took := time.Since(began); took > 15*time.Second {
					t.Errorf("the others took %v, and would take 4 s alone", took)
				}
				_, err := c.receivers[n-1].Open(inTime(t, time.Second), c.sender.Origin(), o.id, o.image.Size(), newSink(1))
				if !errors.Is(err, ErrSlow) && !errors.Is(err, ErrServed) {
					t.Errorf("opened again: %v", err)
				}
			})
		})
	}
}

func TestSilentMemberIsDropped(t *testing.T) {
	virtual(t, 2, nil, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		time.Sleep(10 * time.Second)
		if len(c.moved) != 0 {
			t.Fatalf("moved although alive: %v", c.moved)
		}
		// Nothing comes from the second any more, nor to it.
		c.wire.mu.Lock()
		c.wire.links[hostAddress(1+1)].cut = true
		c.wire.mu.Unlock()
		c.wire.isolate(hostAddress(2))
		time.Sleep(6 * time.Second)
		c.mu.Lock()
		if !slices.Equal(c.movedHost, []int{2}) || !errors.Is(c.moved[0], ErrSilent) {
			t.Errorf("moved were %v (%v)", c.movedHost, c.moved)
		}
		c.mu.Unlock()
		began := time.Now()
		err := o.fetches[1].Bring(inTime(t, time.Minute), 0, 1)
		if !errors.Is(err, ErrSilent) || !errors.Is(err, ErrUnicast) {
			t.Errorf("bring from an origin that is gone: %v", err)
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("that took %v to find out", took)
		}
		if err := o.fetches[0].Bring(inTime(t, time.Second), 0, 1); err != nil {
			t.Error(err)
		}
	})
}

func TestDeaf(t *testing.T) {
	virtual(t, 1, nil, nil, func(t *testing.T, c *cluster) {
		c.wire.setDeaf(true)
		m, id := newImage(1, 1<<20), randomID(1)
		if err := c.sender.Serve(id, m); err != nil {
			t.Fatal(err)
		}
		r := c.receivers[0]
		f, err := r.Open(inTime(t, time.Second), c.sender.Origin(), id, m.Size(), newSink(m.Size()))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Bring(inTime(t, time.Second), 3, 1); err != nil {
			t.Errorf("what is urgent comes by unicast until it is known that multicast does not: %v", err)
		}
		began := time.Now()
		err = f.Prefetch(inTime(t, time.Minute), blocksTo(10))
		if !errors.Is(err, ErrDeaf) || !errors.Is(err, ErrUnicast) {
			t.Errorf("prefetch: %v", err)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("that took %v to find out", took)
		}
		f.Close()
		if _, err := r.Open(inTime(t, time.Second), c.sender.Origin(), id, m.Size(), newSink(m.Size())); !errors.Is(err, ErrDeaf) {
			t.Errorf("opened again at once: %v", err)
		}
		time.Sleep(deafFor)
		c.wire.setDeaf(false)
		if f, err = r.Open(inTime(t, time.Second), c.sender.Origin(), id, m.Size(), newSink(m.Size())); err != nil {
			t.Fatal(err)
		}
		if err := f.Prefetch(inTime(t, time.Minute), blocksTo(10)); err != nil {
			t.Error(err)
		}
	})
}

func TestGroupIsJoinedAgain(t *testing.T) {
	virtual(t, 1, nil, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		c.wire.setDeaf(true) // as if a switch had forgotten
		c.wire.onRejoin = func() { c.wire.setDeaf(false) }
		time.Sleep(2 * time.Second)
		if err := o.fetches[0].Prefetch(inTime(t, time.Minute), blocksTo(256)); err != nil {
			t.Error(err)
		}
	})
}

func TestLateJoiner(t *testing.T) {
	shape := func(_ int, l *wireLink) { l.rate, l.queue = 12.5e6, 50*time.Millisecond }
	virtual(t, 2, shape, nil, func(t *testing.T, c *cluster) {
		m, id := newImage(1, 32<<20), randomID(1)
		if err := c.sender.Serve(id, m); err != nil {
			t.Fatal(err)
		}
		c.each(func(i int, r *Receiver) error {
			time.Sleep(time.Duration(i) * time.Second)
			sink := newSink(m.Size())
			f, err := r.Open(inTime(t, time.Minute), c.sender.Origin(), id, m.Size(), sink)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Prefetch(inTime(t, time.Minute), blocksTo(32<<8)); err != nil {
				return err
			}
			if !bytes.Equal(sink.data, m.data) {
				return errors.New("what arrived is not what was sent")
			}
			return nil
		})
		// What the late one has missed is sent again, and nothing else.
		if sent := c.sender.Counters().MulticastSent; sent > 2*24<<20 {
			t.Errorf("%d MB were sent of an image that compresses to 22", sent>>20)
		}
	})
}

func TestRefusals(t *testing.T) {
	virtual(t, 1, nil, nil, func(t *testing.T, c *cluster) {
		r, m, id := c.receivers[0], newImage(1, 1<<20), randomID(1)
		open := func(size int64) (*Fetch, error) {
			return r.Open(inTime(t, 5*time.Second), c.sender.Origin(), id, size, newSink(size))
		}
		if _, err := open(m.Size()); !errors.Is(err, ErrUnknown) {
			t.Errorf("nothing is served: %v", err)
		}
		if err := c.sender.Serve(id, m); err != nil {
			t.Fatal(err)
		}
		if err := c.sender.Serve(id, m); !errors.Is(err, ErrServed) {
			t.Errorf("served twice: %v", err)
		}
		if _, err := open(m.Size() + 1); !errors.Is(err, ErrSize) {
			t.Errorf("another size: %v", err)
		}
		if _, err := r.Receive(inTime(t, 5*time.Second), c.sender.Origin(), id); !errors.Is(err, ErrSize) {
			t.Errorf("a slice is no object: %v", err)
		}
		f, err := open(m.Size())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(m.Size()); !errors.Is(err, ErrServed) {
			t.Errorf("opened twice: %v", err)
		}
		if err := f.Bring(inTime(t, time.Second), 256, 1); err == nil {
			t.Error("brought a block outside of the image")
		}
		c.sender.Withdraw(id)
		<-f.Done()
		if err := f.Bring(inTime(t, time.Second), 0, 1); !errors.Is(err, ErrWithdrawn) {
			t.Errorf("bring from what was withdrawn: %v", err)
		}
		f.Close()
		gone := c.sender.Origin()
		gone.Session[0]++
		if _, err := r.Open(inTime(t, time.Minute), gone, id, m.Size(), newSink(0)); !errors.Is(err, ErrSilent) {
			t.Errorf("opened from a sender of before: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, err := r.Open(ctx, gone, id, m.Size(), newSink(0)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("opened beyond a deadline: %v", err)
		}
	})
}

func TestSinkFails(t *testing.T) {
	virtual(t, 1, nil, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 1, 1<<20)
		full := errors.New("the disk is full")
		o.sinks[0].failed = full
		if err := o.fetches[0].Bring(inTime(t, time.Second), 0, 1); !errors.Is(err, full) {
			t.Errorf("bring: %v", err)
		}
		if err := o.fetches[0].Prefetch(inTime(t, time.Second), blocksTo(3)); !errors.Is(err, full) {
			t.Errorf("prefetch: %v", err)
		}
	})
}

// brokenSource cannot be read.
type brokenSource struct{}

func (brokenSource) Size() int64                          { return 1 << 20 }
func (brokenSource) ReadBlocks(dst []byte, _ int64) error { return errors.New("input/output error") }

func TestSourceFails(t *testing.T) {
	virtual(t, 1, nil, nil, func(t *testing.T, c *cluster) {
		for seed, do := range []func(f *Fetch) error{
			func(f *Fetch) error { return f.Bring(inTime(t, time.Second), 0, 1) },
			func(f *Fetch) error { return f.Prefetch(inTime(t, time.Second), blocksTo(3)) },
		} {
			id := randomID(uint64(seed))
			if err := c.sender.Serve(id, brokenSource{}); err != nil {
				t.Fatal(err)
			}
			f, err := c.receivers[0].Open(inTime(t, time.Second), c.sender.Origin(), id, 1<<20, newSink(1<<20))
			if err != nil {
				t.Fatal(err)
			}
			if err := do(f); !errors.Is(err, ErrUnreadable) || !errors.Is(err, ErrUnicast) {
				t.Errorf("a source that cannot be read: %v", err)
			}
		}
	})
}

func TestSmallAndLargePackets(t *testing.T) {
	for _, mtu := range []int{576, 1280, 9000} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				c := &cluster{t: t, wire: newWire(1)}
				c.wire.mtu = mtu
				s, err := NewSender(SenderConfig{Address: hostAddress(0), Key: testKey, network: c.wire})
				if err != nil {
					t.Fatal(err)
				}
				r, err := NewReceiver(ReceiverConfig{Self: 1, Address: hostAddress(1), Key: testKey, network: c.wire})
				if err != nil {
					t.Fatal(err)
				}
				c.wire.link(hostAddress(1)).loss = 0.05
				c.sender, c.receivers = s, []*Receiver{r}
				defer c.close()
				m, id := newImage(1, 2<<20), randomID(1)
				if err := s.Serve(id, m); err != nil {
					t.Fatal(err)
				}
				c.prefetchAll(id, m, time.Minute)
				o := openAll(c, 2, 1<<20)
				if err := o.fetches[0].Bring(inTime(t, time.Second), 7, 40); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
