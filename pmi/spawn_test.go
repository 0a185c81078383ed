package pmi

import (
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// block is one program of a PMI-1 spawn.
func block(lines ...string) string { return "mcmd=spawn\n" + strings.Join(lines, "\n") + "\nendcmd" }

func TestSpawn(t *testing.T) {
	names := NewNames()
	j := startJob(t, names, 1, Group{Size: 2, KVSName: "kvs_7"})
	j.each((*client).init)
	c := j.ranks[1]
	c.expect("cmd=publish_name service=ocean port=tag#1$", "cmd=publish_result info=ok rc=0 msg=success")
	c.send(block("nprocs=2", "execname=./a b", "totspawns=2", "spawnssofar=1", "arg1=x = y", "arg2=", "argcnt=2", "preput_num=1",
		"preput_key_0=PARENT", "preput_val_0=tag#0$", "info_num=3", "info_key_0=wdir", "info_val_0=/tmp", "info_key_1=hosts",
		"info_val_1=one, two,", "info_key_2=color", "info_val_2=deep blue"))
	c.send(block("nprocs=1", "execname=c", "totspawns=2", "spawnssofar=2", "argcnt=0", "preput_num=1", "preput_key_0=PARENT", "preput_val_0=tag#0$"))
	r := j.spawned()
	want := []SpawnApp{
		{Argv: []string{"./a b", "x = y", ""}, Ranks: 2, Info: []Pair{{"wdir", "/tmp"}, {"hosts", "one, two,"}, {"color", "deep blue"}}},
		{Argv: []string{"c"}, Ranks: 1},
	}
	if r.Rank != 1 || r.Ranks() != 3 || !reflect.DeepEqual(r.Apps, want) || !slices.Equal(r.Preput, []Pair{{"PARENT", "tag#0$"}}) {
		t.Errorf("asked for %+v, %v by rank %d", r.Apps, r.Preput, r.Rank)
	}
	if got := r.Apps[0].Hosts(); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("hosts %q", got)
	}

	// Meanwhile everything else goes on: the other rank, and the new ones.
	j.ranks[0].put("k", "v")
	g := r.Group("kvs_8", nil)
	if want := (Group{Size: 3, KVSName: "kvs_8", Apps: []int{2, 1}, Preput: []Pair{{"PARENT", "tag#0$"}}, Spawner: "kvs_7"}); !reflect.DeepEqual(g, want) {
		t.Errorf("group %+v, want %+v", g, want)
	}
	k := startJob(t, names, 2, g)
	k.each(func(c *client) {
		c.init()
		c.expect("cmd=get_my_kvsname", "cmd=my_kvsname kvsname=kvs_8")
		c.expect("cmd=get_appnum", fmt.Sprintf("cmd=appnum appnum=%d", c.rank/2))
		c.expect("cmd=get kvsname=kvs_8 key=PARENT", "cmd=get_result rc=0 msg=success value=tag#0$")
		c.expect("cmd=get kvsname=kvs_8 key=k", "cmd=get_result rc=-1 msg=key_k_not_found value=unknown") // a space of its own
		c.expect("cmd=lookup_name service=ocean", "cmd=lookup_result port=tag#1$ info=ok rc=0 msg=success")
		c.barrier()
		c.finalize()
	})
	k.finish()
	r.Answer("kvs_8", nil, nil)
	r.Answer("kvs_9", nil, errors.New("only the first answer counts"))
	if got := c.hear(); got != "cmd=spawn_result rc=0" {
		t.Errorf("heard %q", got)
	}
	j.each(func(c *client) { c.barrier(); c.finalize() })
	j.finish()
}

func TestSpawnAnswers(t *testing.T) {
	j := newJob(t, 1, 1)
	c := j.ranks[0]
	c.init()
	for _, test := range []struct {
		name  string
		codes []int
		err   error
		want  string
	}{
		{"kvs_8", []int{0, 0, 0}, nil, "cmd=spawn_result rc=0"},
		{"kvs_8", []int{0, 42, 0}, nil, "cmd=spawn_result rc=0 errcodes=0,42,0"},
		{"kvs_8", []int{0}, nil, "cmd=spawn_result rc=-1 msg=1_error_codes_for_3_ranks"},
		{"", nil, nil, `cmd=spawn_result rc=-1 msg=the_spawned_group's_KVS_name_is_""`},
		{"", nil, errors.New("no\nroom"), "cmd=spawn_result rc=-1 msg=no_room"},
	} {
		c.send(block("nprocs=3", "execname=a", "totspawns=1"))
		go j.spawned().Answer(test.name, test.codes, test.err)
		if got := c.hear(); got != test.want {
			t.Errorf("%v, %v: heard %q, want %q", test.codes, test.err, got, test.want)
		}
	}
	// More codes than a client can read in one line.
	c.send(block("nprocs=600", "execname=a", "totspawns=1"))
	j.spawned().Answer("kvs_8", append(make([]int, 599), 1), nil)
	if got := c.hear(); got != "cmd=spawn_result rc=-1 msg=too_many_error_codes_for_a_line" {
		t.Errorf("heard %q", got)
	}
	c.finalize()
	j.finish()
}

// A rank that dies while it waits for a new group is reported at once, and an answer that comes later disturbs nobody.
func TestDeathInSpawn(t *testing.T) {
	j := newJob(t, 1, 2)
	j.each((*client).init)
	j.ranks[0].send(block("nprocs=1", "execname=a", "totspawns=1"))
	r := j.spawned()
	j.ranks[0].conn.Close()
	if s, err := j.server.WaitClosed(t.Context(), 0); s != Initialized || err != nil {
		t.Errorf("rank 0 is %s, %v", s, err)
	}
	r.Answer("kvs_8", nil, nil)
	j.ranks[1].put("k", "v")
	j.ranks[1].finalize()
	if err := within(t, j.runs[0]); err != nil {
		t.Error(err)
	}
	r.Answer("kvs_8", nil, nil)
}

// A launcher that does not spawn says so.
func TestNoSpawn(t *testing.T) {
	launcher, agent := net.Pipe()
	g := Group{Size: 1, KVSName: "k"}
	go func() { _ = NewServer(g, nil, Events{}).Serve(t.Context(), launcher, []int{0}) }()
	proxy := NewProxy(g, agent, []int{0})
	go func() { _ = proxy.Run(t.Context()) }()
	ours, theirs := net.Pipe()
	go func() { _ = proxy.ServeRank(t.Context(), 0, theirs) }()
	_, _ = io.WriteString(ours, hello+"\n")
	answer := make([]byte, 1000)
	_, _ = ours.Read(answer)
	_, _ = io.WriteString(ours, block("nprocs=1", "execname=a", "totspawns=1")+"\n")
	n, _ := ours.Read(answer)
	if got := string(answer[:n]); got != "cmd=spawn_result rc=-1 msg=this_launcher_does_not_spawn\n" {
		t.Errorf("heard %q", got)
	}
	ours.Close()
}

func TestFit(t *testing.T) {
	for _, test := range []struct {
		ranks int
		soft  string
		room  int
		want  int
		err   string
	}{
		{4, "", 4, 4, ""},
		{4, "", 3, 0, "4 ranks to start and room for 3"},
		{4, "", -1, 0, "room for 0"},
		{4, "nonsense", 9, 4, ""}, // there is room: it does not matter
		{8, "1:7:2", 6, 5, ""},
		{8, "1:8", 6, 6, ""},
		{8, "7:1:-2", 6, 5, ""},
		{8, "2, 4", 5, 4, ""},
		{8, "2,4,6:8", 1, 0, "allows no fewer"},
		{8, "0:8:4", 3, 0, ""},
		{8, "1:2:0", 3, 0, "stride of 0"},
		{8, "1:2:3:4", 3, 0, "first:last:stride"},
		{8, "x", 3, 0, "not a number"},
	} {
		a := SpawnApp{Ranks: test.ranks}
		if test.soft != "" {
			a.Info = []Pair{{"soft", test.soft}}
		}
		got, err := a.Fit(test.room)
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%d ranks, soft %q, room for %d: %d, %v", test.ranks, test.soft, test.room, got, err)
		}
	}
}

func FuzzFit(f *testing.F) {
	f.Add(8, "1:7:2,3,9:1:-1", 6)
	f.Fuzz(func(t *testing.T, ranks int, soft string, room int) {
		n, err := SpawnApp{Ranks: ranks, Info: []Pair{{"soft", soft}}}.Fit(room)
		if err == nil && n > max(room, ranks) {
			t.Errorf("%d of %d ranks with room for %d and soft %q", n, ranks, room, soft)
		}
	})
}
