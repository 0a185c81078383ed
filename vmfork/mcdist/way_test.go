package mcdist

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// line returns the next notice.
func (c *cluster) line() string {
	c.t.Helper()
	select {
	case line := <-c.lines:
		return line
	case <-time.After(30 * time.Second):
		c.t.Fatal("no notice was given")
		return ""
	}
}

func TestAutoTakesMulticastWhereItIsHeard(t *testing.T) {
	for _, mode := range []Mode{Auto, Multicast} {
		t.Run(mode.String(), func(t *testing.T) {
			c := newCluster(t, 4, func(config *Config) { config.Mode = mode })
			m := newMemory(4000)
			id := c.serve(0, m)
			if line := c.line(); line != "multicast reaches 3 of 3 hosts: using multicast" {
				t.Fatal(line)
			}
			fetches, copies := c.everyone(id, m)
			for _, f := range fetches {
				eventually(t, "the hosts listen", func() bool { return f.cast.Load() != nil })
			}
			var wg sync.WaitGroup
			for _, f := range fetches {
				wg.Go(func() {
					if err := f.Prefetch(within(t), blocksFrom(0, 2000)); err != nil {
						t.Error(err)
					}
					if err := f.Bring(within(t), 3000, 8); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for i, s := range copies {
				s.has(0, 2000)
				s.has(3000, 8)
				if n := c.nodes[i+1].Counters().Received[ByMulticast].Total().Blocks; n == 0 { // how many depends on how busy the machine is
					t.Errorf("host %d has %d blocks by multicast", i+1, n)
				}
			}
			if err := c.nodes[0].Push(id, []int{1, 2, 3}, slices.Collect(blocksFrom(3500, 400))); err != nil {
				t.Fatal(err)
			}
			for _, s := range copies {
				eventually(t, "what is pushed comes", func() bool { return s.count() >= 2408 })
			}
		})
	}
}

// TestADeafHost has a host whose address is none of this machine's, so that its receiver cannot be.
func TestADeafHost(t *testing.T) {
	c := newCluster(t, 4, func(config *Config) {
		config.Mode = Auto
		config.Hosts = slices.Clone(config.Hosts)
		config.Hosts[3].Address = netip.MustParseAddr("192.0.2.3")
	})
	m := newMemory(1000)
	c.nodes[0].Prepare()
	id := c.serve(0, m)
	if line := c.line(); line != "multicast reaches 2 of 3 hosts: using multicast, and unicast for the others" {
		t.Fatal(line)
	}
	fetches, copies := c.everyone(id, m)
	for i, f := range fetches {
		if err := f.Prefetch(within(t), blocksFrom(0, 1000)); err != nil {
			t.Fatal(err)
		}
		copies[i].has(0, 1000)
	}
	if n := c.nodes[3].Counters().Received[ByMulticast].Total().Blocks; n != 0 {
		t.Errorf("a deaf host heard %d blocks", n)
	}
}

func TestAutoDoesWithoutMulticast(t *testing.T) {
	for _, c := range []struct {
		hosts int
		line  string
	}{
		{2, "one other host: using unicast"},
		{3, "multicast reaches 0 of 2 hosts: using unicast"},
		{5, "multicast reaches 0 of 4 hosts: using tree"},
	} {
		t.Run(c.line, func(t *testing.T) {
			cl := newCluster(t, c.hosts, func(config *Config) {
				config.Mode = Auto
				config.Hosts = slices.Clone(config.Hosts)
				for i := 1; i < c.hosts; i++ {
					config.Hosts[i].Address = netip.MustParseAddr("192.0.2.3")
				}
			})
			m := newMemory(1000)
			id := cl.serve(0, m)
			if line := cl.line(); line != c.line {
				t.Fatal(line)
			}
			fetches, copies := cl.everyone(id, m)
			var wg sync.WaitGroup
			for _, f := range fetches {
				wg.Go(func() {
					if err := f.Prefetch(within(t), blocksFrom(0, 1000)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for _, s := range copies {
				s.has(0, 1000)
			}
		})
	}
}

func TestAHeadWithoutAddress(t *testing.T) {
	c := newCluster(t, 3, func(config *Config) {
		config.Mode = Multicast
		config.Hosts = slices.Clone(config.Hosts)
		config.Hosts[0].Address = netip.Addr{}
	})
	m := newMemory(100)
	id := c.serve(0, m)
	c.line()
	f, s := c.open(1, 0, id, m)
	if err := f.Bring(within(t), 0, 100); err != nil {
		t.Fatal(err)
	}
	s.has(0, 100)
}
