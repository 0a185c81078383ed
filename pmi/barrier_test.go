package pmi

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseMembers(t *testing.T) {
	for _, test := range []struct {
		name string
		want members
		err  string
	}{
		{"WORLD", members{name: "WORLD:0"}, ""},
		{"WORLD:17", members{name: "WORLD:17"}, ""},
		{"NODE:3", members{name: "NODE:3", node: true}, ""},
		{"3,1,3:9", members{name: "1,3:9", list: []int{1, 3}}, ""},
		{"2", members{name: "2:0", list: []int{2}}, ""},
		{"", members{}, "no rank of 4"},
		{"0,4", members{}, `"4" is no rank of 4`},
		{"0,-1", members{}, "no rank of 4"},
		{"0,,1", members{}, "no rank of 4"},
		{"node", members{}, "no rank of 4"},
		{"WORLD:a b", members{}, "printable"},
		{strings.Repeat("1,", maxBarrierName), members{}, "at most"},
	} {
		got, err := parseMembers(test.name, 4)
		if !reflect.DeepEqual(got, test.want) || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%.40q: %+v, %v", test.name, got, err)
		}
	}
}

func FuzzParseMembers(f *testing.F) {
	for _, name := range []string{"WORLD:17", "NODE", "3,1,3:9", "0:0", ":", "1,,2", "+1"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		m, err := parseMembers(name, 4)
		if err != nil {
			return
		}
		again, err := parseMembers(m.name, 4)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%q means %+v, which became %+v, %v", name, m, again, err)
		}
	})
}

func (c *client) barrierOf(group string) {
	c.t.Helper()
	c.expect("cmd=barrier_in group="+group, "cmd=barrier_out group="+group)
}

// Ranks that wait for each other in parts of the group see what was put, and disturb nobody else.
func TestBarriersOfGroups(t *testing.T) {
	j := newJob(t, 3, 2)
	j.each((*client).init)
	j.each(func(c *client) { c.put(fmt.Sprintf("card-%d", c.rank), fmt.Sprint(c.rank)) })
	j.each(func(c *client) {
		switch c.rank {
		case 0:
			c.barrierOf("0,2:5")
		case 2:
			c.barrierOf("2,0:5") // who names them in another order means the same
		}
	})
	up := j.up.Load()
	j.each(func(c *client) {
		if c.rank >= 4 {
			c.barrierOf("NODE:0")
		}
	})
	if n := j.up.Load() - up; n != 0 {
		t.Errorf("%d messages left for a barrier of one clone", n)
	}
	j.each(func(c *client) {
		switch c.rank {
		case 0, 2:
			for r := range 4 { // both clones' puts went up, members' or not
				if v := c.get(fmt.Sprintf("card-%d", r)); v != fmt.Sprint(r) {
					t.Errorf("rank %d sees card-%d = %s", c.rank, r, v)
				}
			}
		}
	})
	if v := j.ranks[4].get("card-5"); v != "5" {
		t.Errorf("rank 4 sees card-5 = %s", v)
	}
	up = j.up.Load()
	j.each((*client).barrier)
	j.each(func(c *client) {
		for r := range 6 {
			if v := c.get(fmt.Sprintf("card-%d", r)); v != fmt.Sprint(r) {
				t.Errorf("rank %d sees card-%d = %s", c.rank, r, v)
			}
		}
	})
	if n := j.up.Load() - up; n != 3 {
		t.Errorf("%d messages up for a barrier of 3 clones and what it brought", n)
	}
	j.each((*client).finalize)
	j.finish()
}

// Several threads of a rank wait in barriers of their own, and the rank goes on asking.
func TestBarriersAtOnce(t *testing.T) {
	j := newJob(t, 2, 1)
	j.each((*client).init)
	a, b := j.ranks[0], j.ranks[1]
	for _, group := range []string{"WORLD:1", "0,1:2", "WORLD:3", "WORLD:3"} {
		a.send("cmd=barrier_in group=" + group)
	}
	a.put("k", "v")
	if v := a.get("k"); v != "v" {
		t.Errorf("k = %s", v)
	}
	for _, group := range []string{"WORLD:3", "0,1:2", "WORLD:1", "WORLD:3"} {
		b.send("cmd=barrier_in group=" + group)
		want := "cmd=barrier_out group=" + group
		if got := b.hear(); got != want {
			t.Errorf("rank 1 heard %q, want %q", got, want)
		}
		if got := a.hear(); got != want {
			t.Errorf("rank 0 heard %q, want %q", got, want)
		}
	}
	j.each((*client).finalize)
	j.finish()
}

func TestTooManyBarriers(t *testing.T) {
	j := newJob(t, 2, 1)
	j.each((*client).init)
	for i := range maxBarriers + 1 {
		j.ranks[0].send(fmt.Sprintf("cmd=barrier_in group=WORLD:%d", i))
	}
	if got := j.ranks[0].hear(); got != "EOF" {
		t.Errorf("heard %q", got)
	}
	if err := within(t, j.ended[0]); err == nil || !strings.Contains(err.Error(), "wait at once") {
		t.Errorf("ServeRank: %v", err)
	}
}

// A value that is put while others still wait is not lost to the older one that the barrier brings.
func TestPutInABarrier(t *testing.T) {
	j := newJob(t, 2, 1)
	j.each((*client).init)
	a, b := j.ranks[0], j.ranks[1]
	a.put("k", "old")
	a.send("cmd=barrier_in group=WORLD:1")
	a.put("k", "new")
	b.barrierOf("WORLD:1")
	if got := a.hear(); got != "cmd=barrier_out group=WORLD:1" {
		t.Errorf("heard %q", got)
	}
	if v := a.get("k"); v != "new" {
		t.Errorf("rank 0 sees %s", v)
	}
	j.each((*client).barrier)
	if v := b.get("k"); v != "new" {
		t.Errorf("rank 1 sees %s", v)
	}
	j.each((*client).finalize)
	j.finish()
}

// Failed ranks are named to those who ask, at once and to all.
func TestMarkDead(t *testing.T) {
	j := newJob(t, 2, 1)
	j.each((*client).init)
	for _, want := range []string{"", "1", "1,0"} {
		j.each(func(c *client) {
			if v := c.get(deadKey); v != want {
				t.Errorf("rank %d sees %q, want %q", c.rank, v, want)
			}
		})
		j.server.MarkDead(1)
		if want != "" {
			j.server.MarkDead(0)
		}
		j.server.MarkDead(2)
	}
}
