package mcdist

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

func TestParent(t *testing.T) {
	to := []int{3, 1, 4, 5, 9, 2, 6}
	want := map[int]int{3: -1, 1: -1, 4: 3, 5: 3, 9: 1, 2: 1, 6: 4, 7: -1}
	for self, up := range want {
		if got := parent(to, self); got != up {
			t.Errorf("the parent of %d is %d instead of %d", self, got, up)
		}
	}
	// Nobody is anybody's ancestor twice over, nor its own.
	for n := range 40 {
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		for self := range all {
			steps := 0
			for up := self; up != -1; up = parent(all, up) {
				if steps++; steps > 6 {
					t.Fatalf("%d is deeper than 6 in a tree of %d", self, n)
				}
			}
		}
	}
}

// children are those that ask a host in a tree.
func children(to []int, host int) (n int64) {
	for _, self := range to {
		if parent(to, self) == host {
			n++
		}
	}
	return n
}

func treeCluster(t *testing.T, hosts int) (*cluster, []int) {
	c := newCluster(t, hosts, func(config *Config) { config.Mode = Tree })
	var to []int
	for i := 1; i < hosts; i++ {
		to = append(to, i)
	}
	return c, to
}

func TestAnObjectGoesAlongTheTree(t *testing.T) {
	c, to := treeCluster(t, 8)
	id, data := testID(), newMemory(700).data
	if err := c.nodes[0].Publish(id, data, to); err != nil {
		t.Fatal(err)
	}
	for _, host := range to {
		got, err := c.nodes[host].Receive(within(t), 0, id)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("host %d received another content", host)
		}
	}
	sent := c.nodes[0].Counters().Sent
	if n := sent[ByUnicast].Bulk.Blocks + sent[ByTree].Bulk.Blocks; n != fanout*700 {
		t.Errorf("the origin sent %d blocks for %d of an object", n, fanout*700)
	}
	for _, host := range to {
		if n, want := c.nodes[host].Counters().Sent[ByTree].Bulk.Blocks, 700*children(to, host); n != want {
			t.Errorf("host %d sent %d blocks instead of %d", host, n, want)
		}
	}
}

func TestAPushGoesAlongTheTree(t *testing.T) {
	c, to := treeCluster(t, 6)
	m := newMemory(2000)
	id := c.serve(0, m)
	var copies []*copyOf
	for _, host := range to {
		_, s := c.open(host, 0, id, m)
		copies = append(copies, s)
	}
	if err := c.nodes[0].Push(id, to, slices.Collect(blocksFrom(100, 1800))); err != nil {
		t.Fatal(err)
	}
	for _, s := range copies {
		eventually(t, "what is pushed comes", func() bool { return s.count() == 1800 })
		s.has(100, 1800)
	}
	if m.reads.Load() != fanout*1800 {
		t.Errorf("the origin read %d blocks for %d", m.reads.Load(), fanout*1800)
	}
}

func TestAPrefetchByManyGoesAlongTheTree(t *testing.T) {
	c, to := treeCluster(t, 5)
	m := newMemory(1500)
	id := c.serve(0, m)
	done := make(chan error)
	var copies []*copyOf
	for _, host := range to {
		f, s := c.open(host, 0, id, m)
		copies = append(copies, s)
		go func() { done <- f.Prefetch(within(t), blocksFrom(0, 1500)) }()
	}
	for range to {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, s := range copies {
		s.has(0, 1500)
	}
	if m.reads.Load() != fanout*1500 {
		t.Errorf("the origin read %d blocks for %d", m.reads.Load(), fanout*1500)
	}
}

func TestFaultsGoToTheOriginBesideTheTree(t *testing.T) {
	c, to := treeCluster(t, 4)
	m := newMemory(100)
	id := c.serve(0, m)
	f, s := c.open(to[2], 0, id, m)
	if up := f.host(); up != to[0] {
		t.Fatalf("the third receiver asks %d", up)
	}
	if err := f.Bring(within(t), 5, 3); err != nil {
		t.Fatal(err)
	}
	s.has(5, 3)
	if got := c.nodes[to[2]].Counters(); got.Received[ByUnicast].Urgent.Blocks != 3 {
		t.Errorf("received %+v", got.Received)
	}
}

func TestARelayWithoutTheSlice(t *testing.T) {
	c, _ := treeCluster(t, 4)
	m := newMemory(500)
	f, s := c.open(3, 0, c.serve(0, m), m)
	if err := f.Prefetch(within(t), blocksFrom(0, 500)); err != nil {
		t.Fatal(err)
	}
	s.has(0, 500)
	if c.nodes[3].Counters().Fallbacks != 1 {
		t.Error("no fallback was counted")
	}
}

func TestARelayThatIsGone(t *testing.T) {
	for name, end := range map[string]func(*cluster){
		"closed": func(c *cluster) { c.nodes[1].Close() },
		"cut":    func(c *cluster) { c.sever(1, 3); c.sever(1, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			c, to := treeCluster(t, 4)
			m := newMemory(8000)
			id := c.serve(0, m)
			_, one := c.open(1, 0, id, m)
			_, two := c.open(2, 0, id, m)
			_, three := c.open(3, 0, id, m)
			if err := c.nodes[0].Push(id, to, slices.Collect(blocksFrom(0, 8000))); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the relay relays", func() bool { return three.count() > 100 })
			end(c)
			eventually(t, "the others have everything", func() bool { return two.count() == 8000 && three.count() == 8000 })
			three.has(0, 8000)
			if one.count() == 8000 {
				t.Log("the relay had everything before it was gone")
			}
		})
	}
}

func TestASlowRelay(t *testing.T) {
	c, to := treeCluster(t, 4)
	m := newMemory(3000)
	id := c.serve(0, m)
	_, one := c.open(1, 0, id, m)
	stuck := make(chan struct{})
	defer close(stuck)
	one.before = func(int64, int64) error {
		select {
		case <-stuck:
		case <-time.After(30 * time.Second):
		}
		return nil
	}
	_, three := c.open(3, 0, id, m)
	if err := c.nodes[0].Push(id, to, slices.Collect(blocksFrom(0, 3000))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child of a slow relay has everything", func() bool { return three.count() == 3000 })
	three.has(0, 3000)
}
