package multicast

import (
	"testing"
	"time"
)

// TestRate holds what flow control and parity are for, in virtual time: that a narrow link is used, that losses cost
// little more than what is lost, and that eight hosts cost what one does. How fast it is in real time is for benchmarks.
func TestRate(t *testing.T) {
	const size, rate = 32 << 20, 25e6
	run := func(hosts int, loss float64) (took time.Duration, sent uint64, used float64) {
		inBubble(t, func(t *testing.T) {
			c := newCluster(t, 9, hosts, func(_ int, l *wireLink) {
				l.rate, l.queue, l.loss = rate, 50*time.Millisecond, loss
			}, nil)
			defer c.close()
			m, id := newImage(4, size), randomID(4)
			if err := c.sender.Serve(id, m); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c.prefetchAll(id, m, time.Minute)
			took, sent = time.Since(began), c.sender.Counters().MulticastSent
			l := c.wire.link(hostAddress(1))
			c.wire.mu.Lock()
			defer c.wire.mu.Unlock()
			used = float64(l.bytes) / took.Seconds() / rate
		})
		t.Logf("%d hosts, loss of %v: %v, %d bytes multicast, link used to %.2f", hosts, loss, took, sent, used)
		return took, sent, used
	}
	clean, _, used := run(4, 0)
	if used < 0.85 {
		t.Errorf("the link is used to %.2f", used)
	}
	if lossy, _, _ := run(4, 0.05); lossy > clean*5/4 {
		t.Errorf("%v with losses of 5 %%, %v without", lossy, clean)
	}
	_, one, _ := run(1, 0)
	if _, eight, _ := run(8, 0); eight > one*11/10 {
		t.Errorf("%d bytes to eight hosts, %d to one", eight, one)
	}
	if lossy, _, _ := run(8, 0.3); lossy > clean*5/2 {
		t.Errorf("%v with losses of 30 %%, %v without", lossy, clean)
	}
}

// TestRateFollowsTheLink changes what the link carries while it is used.
func TestRateFollowsTheLink(t *testing.T) {
	virtual(t, 2, func(_ int, l *wireLink) { l.rate, l.queue = 5e6, 50*time.Millisecond }, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 4, 64<<20)
		for i := range o.fetches {
			go o.fetches[i].Prefetch(inTime(t, time.Minute), blocksTo(64<<8))
		}
		near := func(what string, want float64) {
			t.Helper()
			if got := float64(c.sender.Counters().Rate); got < 0.7*want || got > 1.5*want {
				t.Errorf("%s: the rate is %.1f MB/s", what, got/1e6)
			}
		}
		time.Sleep(time.Second)
		near("a link of 5 MB/s", 5e6)
		set := func(rate float64) {
			c.wire.mu.Lock()
			defer c.wire.mu.Unlock()
			for _, l := range c.wire.links {
				if l.rate > 0 {
					l.rate = rate
				}
			}
		}
		set(20e6)
		time.Sleep(1200 * time.Millisecond)
		near("of 20 MB/s", 20e6)
		set(5e6)
		time.Sleep(60 * time.Millisecond)
		set(20e6)
		time.Sleep(350 * time.Millisecond)
		near("of 20 MB/s, after a moment at 5", 20e6)
		set(2e6)
		time.Sleep(time.Second)
		near("of 2 MB/s", 2e6)
	})
}

// TestPolicedLink is a link that drops what is too much instead of queueing it, and loses some packets anyway.
func TestPolicedLink(t *testing.T) {
	for _, rate := range []float64{10e6, 2e6} {
		virtual(t, 2, func(_ int, l *wireLink) {
			l.rate, l.queue, l.loss = rate, 8*time.Millisecond, 0.02
		}, nil, func(t *testing.T, c *cluster) {
			m, id := newImage(4, 16<<20), randomID(4)
			if err := c.sender.Serve(id, m); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			c.prefetchAll(id, m, time.Minute)
			took, sent := time.Since(began), c.sender.Counters().MulticastSent
			t.Logf("%.0f MB/s: took %v, %d bytes multicast", rate/1e6, took, sent)
			// 11.3 MB after compression.
			if best := time.Duration(12e6 / rate * 1e9); took > 2*best {
				t.Errorf("took %v; %v is possible", took, best)
			}
			if sent > 20e6 {
				t.Errorf("%d bytes were sent: most of it was lost", sent)
			}
		})
	}
}

// TestNetworkBecomesWorse loses a tenth of all packets from some time on, at any rate.
func TestNetworkBecomesWorse(t *testing.T) {
	virtual(t, 2, func(_ int, l *wireLink) { l.rate, l.queue = 10e6, 50*time.Millisecond }, nil, func(t *testing.T, c *cluster) {
		o := openAll(c, 4, 64<<20)
		for i := range o.fetches {
			go o.fetches[i].Prefetch(inTime(t, time.Minute), blocksTo(64<<8))
		}
		time.Sleep(time.Second)
		c.wire.mu.Lock()
		for _, l := range c.wire.links {
			l.loss = 0.1
		}
		c.wire.mu.Unlock()
		time.Sleep(1500 * time.Millisecond)
		if rate := c.sender.Counters().Rate; rate < 7e6 {
			t.Errorf("the rate is %.1f MB/s on a link of 10", float64(rate)/1e6)
		}
	})
}
