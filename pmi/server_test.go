package pmi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPutsAreSeenAfterTheBarrier(t *testing.T) {
	j := newJob(t, 4, 2)
	j.each((*client).init)
	j.each(func(c *client) { c.put(fmt.Sprintf("card-%d", c.rank), fmt.Sprintf("address of %d", c.rank)) })
	if v := j.ranks[1].get("card-0"); v != "address of 0" {
		t.Errorf("before the barrier, on the same clone: %s", v)
	}
	if v := j.ranks[2].get("card-0"); v != "(none)" {
		t.Errorf("before the barrier, on another clone: %s", v)
	}
	j.each((*client).barrier)
	j.each(func(c *client) {
		for r := range 8 {
			if v := c.get(fmt.Sprintf("card-%d", r)); v != fmt.Sprintf("address of %d", r) {
				t.Errorf("rank %d sees card-%d = %s", c.rank, r, v)
			}
		}
	})
	// One key put by all: after the barrier all agree on one of the values. And a put can replace what an earlier phase put.
	j.each(func(c *client) { c.put("winner", fmt.Sprint(c.rank)) })
	j.ranks[3].put("card-0", "moved")
	j.each((*client).barrier)
	winner := j.ranks[0].get("winner")
	j.each(func(c *client) {
		if v := c.get("winner"); v != winner || v == "(none)" {
			t.Errorf("rank %d sees winner = %s, rank 0 %s", c.rank, v, winner)
		}
		if v := c.get("card-0"); v != "moved" {
			t.Errorf("rank %d sees card-0 = %s", c.rank, v)
		}
	})
	j.each((*client).finalize)
	j.finish()
	for r := range 8 {
		if s := j.server.RankState(r); s != Finalized {
			t.Errorf("rank %d is %s", r, s)
		}
	}
	if n := len(j.seen("closed")); n != 8 {
		t.Errorf("%d ranks closed", n)
	}
}

func TestBarrierIsOneMessagePerClone(t *testing.T) {
	j := newJob(t, 4, 2)
	j.each((*client).init)
	j.each(func(c *client) { c.put(fmt.Sprintf("card-%d", c.rank), strings.Repeat("x", 800)) })
	up, down := j.up.Load(), j.down.Load()
	j.each((*client).barrier)
	if n := j.up.Load() - up; n != 4 {
		t.Errorf("%d messages up for a barrier of 4 clones", n)
	}
	if n := j.down.Load() - down; n != 4 {
		t.Errorf("%d messages down for a barrier of 4 clones", n)
	}
	j.each(func(c *client) {
		for r := range 8 {
			c.get(fmt.Sprintf("card-%d", r))
		}
		c.get("PMI_process_mapping")
		c.ask("cmd=get_maxes")
		c.ask("cmd=get_appnum")
		c.ask("cmd=get_my_kvsname")
		c.ask("cmd=get_universe_size")
	})
	if n := j.up.Load() - up; n != 4 {
		t.Errorf("%d messages up for what the cache knows", n-4)
	}
	j.each((*client).finalize)
	j.finish()
}

// A barrier with more in it than one frame holds.
func TestLargeBarrier(t *testing.T) {
	j := newJob(t, 2, 4)
	j.each((*client).init)
	j.each(func(c *client) {
		for i := range 100 {
			c.put(fmt.Sprintf("%d-%d", c.rank, i), strings.Repeat("x", MaxValue))
		}
	})
	j.each((*client).barrier)
	up := j.up.Load()
	j.each(func(c *client) {
		for r := range 8 {
			if v := c.get(fmt.Sprintf("%d-99", r)); len(v) != MaxValue {
				t.Errorf("rank %d sees %s", c.rank, v)
			}
		}
	})
	if n := j.up.Load() - up; n != 0 {
		t.Errorf("%d messages up", n)
	}
	j.each((*client).finalize)
	j.finish()
}

func TestAbort(t *testing.T) {
	j := newJob(t, 2, 2)
	j.each((*client).init)
	j.ranks[0].send("cmd=barrier_in")
	j.ranks[3].send("cmd=barrier_in")
	j.ranks[2].send("cmd=abort exitcode=7 message=out of \x1b[31mluck=1")
	j.ranks[3].send("cmd=abort exitcode=-1") // another thread of a rank that is in the barrier
	j.ranks[1].send("cmd=abort error_msg=enough")
	waitFor(t, "three aborts", func() bool { return len(j.seen("abort")) == 3 })
	got := j.seen("abort")
	slices.Sort(got)
	want := []string{`abort 1 1 "enough"`, `abort 2 7 "out of ?[31mluck=1"`, `abort 3 -1 ""`}
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// A rank that dies holds up only who waits for it in a barrier, and that until the launcher ends the job.
func TestDeathOfARank(t *testing.T) {
	j := newJob(t, 2, 2)
	j.each((*client).init)
	j.ranks[3].send("cmd=barrier_in")
	j.ranks[1].conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if s, err := j.server.WaitClosed(ctx, 1); s != Initialized || err != nil {
		t.Errorf("rank 1 is %s, %v", s, err)
	}
	j.ranks[3].conn.Close() // one that dies inside the barrier
	if s, err := j.server.WaitClosed(ctx, 3); s != Initialized || err != nil {
		t.Errorf("rank 3 is %s, %v", s, err)
	}
	for _, r := range []int{0, 2} {
		j.ranks[r].put(fmt.Sprintf("from-%d", r), "x")
		if v := j.ranks[r].get("never"); v != "(none)" {
			t.Errorf("get: %s", v)
		}
	}
	j.ranks[0].send("cmd=barrier_in")
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if _, err := j.server.WaitClosed(short, 0); err == nil || !strings.Contains(err.Error(), "rank 0 (initialized)") {
		t.Errorf("waiting for a rank that lives: %v", err)
	}
	j.cancel() // the launcher's decision
	if err := within(t, j.ended[0]); err == nil || !strings.Contains(err.Error(), "local ranks 1") {
		t.Errorf("rank 0: %v", err)
	}
	for i := range j.runs { // well or not: the goodbyes may overtake the end of the context
		_ = within(t, j.runs[i])
		_ = within(t, j.serves[i])
	}
}

// When a clone's stream is lost, its ranks count as closed and its proxy's ranks are hung up on; the others live.
func TestLossOfAClone(t *testing.T) {
	j := newJob(t, 2, 1)
	j.each((*client).init)
	j.proxies[1].upstream.Close()
	if err := within(t, j.serves[1]); err == nil || !strings.Contains(err.Error(), "ranks 1 were connected") {
		t.Errorf("Serve: %v", err)
	}
	if err := within(t, j.ended[1]); err == nil {
		t.Error("rank 1 ended well")
	}
	if j.ranks[1].hear() != "EOF" {
		t.Error("rank 1 was not hung up on")
	}
	if s, err := j.server.WaitClosed(t.Context(), 1); s != Initialized || err != nil {
		t.Errorf("rank 1 is %s, %v", s, err)
	}
	j.ranks[0].finalize()
	if err := within(t, j.serves[0]); err != nil {
		t.Error(err)
	}
}

func TestServeRefuses(t *testing.T) {
	group := Group{Size: 4, KVSName: "kvs_7"}
	good := message{kind: kindHello, version: protocolVersion, name: "kvs_7", size: 4, ranks: []int{0, 1}}
	for name, test := range map[string]struct {
		spoil func(m *message)
		want  string
	}{
		"version":     {func(m *message) { m.version = 1 }, "speaks version 1"},
		"group":       {func(m *message) { m.name = "kvs_8" }, "expected kvs_7"},
		"size":        {func(m *message) { m.size = 5 }, "of 5 ranks"},
		"ranks":       {func(m *message) { m.ranks = []int{2, 3} }, "serves ranks 2-3, expected 0-1"},
		"not a hello": {func(m *message) { *m = message{kind: kindInit} }, "instead of hello"},
	} {
		t.Run(name, func(t *testing.T) {
			launcher, agent := net.Pipe()
			served := make(chan error, 1)
			go func() { served <- NewServer(group, NewNames(), Events{}).Serve(t.Context(), launcher, []int{0, 1}) }()
			m := good
			test.spoil(&m)
			_, _ = agent.Write(appendFrame(nil, m))
			answer, err := readMessage(bufio.NewReader(agent))
			if err != nil || answer.kind != kindRefuse || !strings.Contains(answer.text, test.want) {
				t.Errorf("answer %s %q, %v", answer.kind, answer.text, err)
			}
			agent.Close()
			if err := within(t, served); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

func TestRunSaysWhyItWasRefused(t *testing.T) {
	launcher, agent := net.Pipe()
	go func() {
		_ = NewServer(Group{Size: 2, KVSName: "a"}, NewNames(), Events{}).Serve(t.Context(), launcher, []int{0})
	}()
	proxy := NewProxy(Group{Size: 2, KVSName: "b"}, agent, []int{0})
	ran := make(chan error, 1)
	go func() { ran <- proxy.Run(t.Context()) }()
	_, theirs := net.Pipe()
	if err := proxy.ServeRank(t.Context(), 0, theirs); err == nil {
		t.Error("ServeRank ended well")
	}
	if err := within(t, ran); err == nil || !strings.Contains(err.Error(), "refused by the launcher") {
		t.Errorf("Run: %v", err)
	}
}

func TestBadArguments(t *testing.T) {
	good := Group{Size: 4, KVSName: "k"}
	for name, test := range map[string]struct {
		group Group
		ranks []int
		want  string
	}{
		"group":    {Group{}, []int{0}, "process group of 0 ranks"},
		"none":     {good, nil, "no ranks"},
		"outside":  {good, []int{4}, "rank 4 in a group of 4"},
		"negative": {good, []int{-1}, "rank -1"},
		"twice":    {good, []int{1, 1}, "twice"},
	} {
		launcher, agent := net.Pipe()
		if err := NewServer(test.group, NewNames(), Events{}).Serve(t.Context(), launcher, test.ranks); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Serve: %v", name, err)
		}
		if err := NewProxy(test.group, agent, test.ranks).Run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Run: %v", name, err)
		}
	}
	j := newJob(t, 1, 1)
	j.ranks[0].init()
	a, b := net.Pipe()
	defer a.Close()
	if err := j.server.Serve(t.Context(), b, []int{0}); err == nil || !strings.Contains(err.Error(), "already served") {
		t.Errorf("Serve of a rank that is served: %v", err)
	}
	for _, r := range []int{0, 1} {
		a, b := net.Pipe()
		defer a.Close()
		if err := j.proxies[0].ServeRank(t.Context(), r, b); err == nil || !strings.Contains(err.Error(), "already served") {
			t.Errorf("ServeRank(%d): %v", r, err)
		}
	}
	if _, err := j.server.WaitClosed(t.Context(), 1); err == nil {
		t.Error("waited for a rank that is not")
	}
}

// A launcher that gives up says on what.
func TestErrorsNameWhatTheyWaitedFor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	launcher, _ := net.Pipe()
	err := NewServer(Group{Size: 2, KVSName: "k"}, NewNames(), Events{}).Serve(ctx, launcher, []int{0, 1})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ranks 0-1") || !strings.Contains(err.Error(), "hello") {
		t.Errorf("Serve: %v", err)
	}

	j := newJob(t, 2, 1)
	j.each((*client).init)
	j.ranks[0].send("cmd=barrier_in")
	waitFor(t, "barrier message", func() bool { return strings.Contains(j.server.waitingFor(j.server.ranks[0].peer), "barrier") })
	if got := j.server.waitingFor(j.server.ranks[0].peer); got != "ranks 0 waited in barrier WORLD:0 for ranks 1" {
		t.Error(got)
	}
	j.cancel()
	if err := within(t, j.ended[0]); !strings.Contains(fmt.Sprint(err), "other clones") {
		t.Errorf("ServeRank: %v", err)
	}
}

// waitFor polls for what has no channel to wait on.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s after 10 s", what)
		}
	}
}

// BenchmarkRoundTripsSaved runs MPICH's start-up and end on 4 clones of 2 ranks: how many times a rank asks, and how many
// messages leave the clones for it.
func BenchmarkRoundTripsSaved(b *testing.B) {
	var asked, up int64
	for b.Loop() {
		j := newJob(b, 4, 2)
		j.each(func(c *client) {
			c.init()
			for _, line := range []string{"cmd=get_maxes", "cmd=get_appnum", "cmd=get_my_kvsname"} {
				c.ask(line)
			}
			c.get(mappingKey)
			c.barrier()
			c.put(fmt.Sprintf("-allgather-shm-1-%d", c.rank), strings.Repeat("A", 540))
			c.barrier()
			for r := range 8 {
				c.get(fmt.Sprintf("-allgather-shm-1-%d", r))
			}
			c.barrier()
			c.finalize()
		})
		j.finish()
		asked += 8 * (5 + 3 + 1 + 8 + 1)
		up += j.up.Load()
	}
	b.ReportMetric(float64(asked)/float64(b.N), "requests/op")
	b.ReportMetric(float64(up)/float64(b.N), "upstream-messages/op")
}
