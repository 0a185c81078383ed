package mcdist

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// inEachMode runs a test on clusters that distribute in different ways.
func inEachMode(t *testing.T, hosts int, test func(t *testing.T, c *cluster)) {
	for mode := range Mode(len(modes)) {
		t.Run(mode.String(), func(t *testing.T) {
			test(t, newCluster(t, hosts, func(config *Config) { config.Mode = mode }))
		})
	}
}

// everyone opens a slice at all hosts but the origin, 0.
func (c *cluster) everyone(id ID, m *memory) (fetches []*Fetch, copies []*copyOf) {
	for host := 1; host < len(c.nodes); host++ {
		f, s := c.open(host, 0, id, m)
		fetches, copies = append(fetches, f), append(copies, s)
	}
	return fetches, copies
}

func TestFaultsAndBulkOfMany(t *testing.T) {
	inEachMode(t, 5, func(t *testing.T, c *cluster) {
		m := newMemory(3000)
		id := c.serve(0, m)
		fetches, copies := c.everyone(id, m)
		ctx := within(t)
		var wg sync.WaitGroup
		for i, f := range fetches {
			wg.Go(func() {
				if err := f.Prefetch(ctx, blocksFrom(int64(i)*100, 2000)); err != nil {
					t.Error(err)
				}
			})
			for k := range int64(40) {
				wg.Go(func() {
					if err := f.Bring(ctx, k*61, 8); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		for i, s := range copies {
			s.has(int64(i)*100, 2000)
			for k := range int64(40) {
				s.has(k*61, 8)
			}
		}
	})
}

func TestAPushReachesAll(t *testing.T) {
	inEachMode(t, 5, func(t *testing.T, c *cluster) {
		m := newMemory(2000)
		id := c.serve(0, m)
		_, copies := c.everyone(id, m)
		if err := c.nodes[0].Push(id, []int{1, 2, 3, 4}, slices.Collect(blocksFrom(7, 1900))); err != nil {
			t.Fatal(err)
		}
		for _, s := range copies {
			eventually(t, "what is pushed comes", func() bool { return s.count() >= 1900 })
			s.has(7, 1900)
		}
	})
}

func TestAnObjectReachesAll(t *testing.T) {
	inEachMode(t, 5, func(t *testing.T, c *cluster) {
		for _, size := range []int{0, 1, 200_001, 5 << 20} {
			id, data := testID(), newMemory(size/4096 + 1).data[:size]
			var wg sync.WaitGroup
			for _, n := range c.nodes[1:] {
				wg.Go(func() {
					got, err := n.Receive(within(t), 0, id)
					if err != nil {
						t.Error(err)
					} else if !bytes.Equal(got, data) {
						t.Errorf("%d bytes came with another content", size)
					}
				})
			}
			if err := c.nodes[0].Publish(id, data, []int{1, 2, 3}); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			c.nodes[0].Withdraw(id)
		}
	})
}

func TestACutOfManyIsSurvived(t *testing.T) {
	inEachMode(t, 4, func(t *testing.T, c *cluster) {
		m := newMemory(3000)
		id := c.serve(0, m)
		fetches, copies := c.everyone(id, m)
		ctx := within(t)
		var wg sync.WaitGroup
		for _, f := range fetches {
			wg.Go(func() {
				if err := f.Prefetch(ctx, blocksFrom(0, 3000)); err != nil {
					t.Error(err)
				}
			})
		}
		eventually(t, "bulk comes", func() bool { return copies[2].count() > 10 })
		c.sever(0, 3)
		c.sever(1, 3)
		for k := range int64(10) {
			wg.Go(func() {
				if err := fetches[2].Bring(ctx, k*251, 8); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(300 * time.Millisecond)
		c.heal(0, 3)
		c.heal(1, 3)
		wg.Wait()
		for _, s := range copies {
			s.has(0, 3000)
		}
	})
}

func TestASlowReceiverDelaysNobodyForEver(t *testing.T) {
	inEachMode(t, 4, func(t *testing.T, c *cluster) {
		m := newMemory(1500)
		id := c.serve(0, m)
		fetches, copies := c.everyone(id, m)
		copies[0].before = func(int64, int64) error {
			time.Sleep(5 * time.Millisecond)
			return nil
		}
		ctx := within(t)
		var wg sync.WaitGroup
		for _, f := range fetches {
			wg.Go(func() {
				if err := f.Prefetch(ctx, blocksFrom(0, 1500)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, s := range copies {
			s.has(0, 1500)
		}
	})
}

func TestWithdrawReachesAll(t *testing.T) {
	inEachMode(t, 4, func(t *testing.T, c *cluster) {
		m := newMemory(4000)
		id := c.serve(0, m)
		fetches, copies := c.everyone(id, m)
		ctx := within(t)
		done := make(chan error, len(fetches))
		for _, f := range fetches {
			go func() { done <- f.Prefetch(ctx, blocksFrom(0, 4000)) }()
		}
		eventually(t, "bulk comes", func() bool { return copies[0].count() > 10 })
		c.nodes[0].Withdraw(id)
		if n := m.inside.Load(); n != 0 {
			t.Errorf("%d reads go on after Withdraw", n)
		}
		for range fetches {
			if err := <-done; err != nil && !errors.Is(err, ErrWithdrawn) {
				t.Error(err)
			}
		}
	})
}

func TestTheSameIDAgain(t *testing.T) {
	inEachMode(t, 4, func(t *testing.T, c *cluster) {
		m := newMemory(100)
		id := c.serve(0, m)
		for range 5 {
			for host := 1; host < 4; host++ {
				s := newCopy(t, m)
				f, err := c.nodes[host].Open(0, id, m.Size(), s)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.nodes[host].Open(0, id, m.Size(), s); err == nil {
					t.Error("it was opened twice")
				}
				if err := f.Bring(within(t), 0, 100); err != nil {
					t.Fatal(err)
				}
				s.has(0, 100)
				f.Close()
			}
		}
	})
}

func TestModeText(t *testing.T) {
	for mode := range Mode(len(modes)) {
		text, err := mode.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got Mode
		if err := got.UnmarshalText(text); err != nil || got != mode {
			t.Errorf("%s was read as %v, %v", text, got, err)
		}
	}
	var m Mode
	if err := m.UnmarshalText([]byte("anycast")); err == nil || !strings.Contains(err.Error(), "multicast, unicast or tree") {
		t.Errorf("anycast: %v", err)
	}
}

// TestManyHosts has as many hosts as a large job, and all of them want everything at once.
func TestManyHosts(t *testing.T) {
	inEachMode(t, 24, func(t *testing.T, c *cluster) {
		const blocks = 500
		m := newMemory(blocks)
		id := c.serve(0, m)
		fetches, copies := c.everyone(id, m)
		object, data := testID(), newMemory(50).data
		var to []int
		for host := 1; host < 24; host++ {
			to = append(to, host)
		}
		if err := c.nodes[0].Publish(object, data, to); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i, f := range fetches {
			wg.Go(func() {
				got, err := c.nodes[i+1].Receive(within(t), 0, object)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("host %d received %d bytes, %v", i+1, len(got), err)
				}
				if err := f.Prefetch(within(t), blocksFrom(0, blocks)); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				for b := int64(0); b < blocks; b += 50 {
					if err := f.Bring(within(t), b, 8); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, s := range copies {
			s.has(0, blocks)
		}
		sent := int64(0)
		for _, flow := range c.nodes[0].Counters().Sent {
			sent += flow.Total().Bytes
		}
		t.Logf("the origin sent %.1f MB for %.1f MB", float64(sent)/1e6, float64((blocks+50)*4096)/1e6)
	})
}
