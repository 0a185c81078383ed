package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// someJobs are two jobs at a moment.
func someJobs() []metrics.State {
	began := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	seconds := func(n float64) metrics.Seconds { return metrics.Seconds(n * float64(time.Second)) }
	return []metrics.State{
		{
			Job: "a1", User: "ada", Command: []string{"./app", "-x"}, Ranks: 2, Began: began, Taken: began.Add(100 * time.Second),
			Hosts: []metrics.Host{{Name: "h1", Up: true}, {Name: "h2", Reason: "it has not answered for 10s"}},
			Machines: []metrics.Machine{
				{Member: 1, Name: "clone-1", Host: "h1", IP: netip.MustParseAddr("10.1.0.2"), State: metrics.Running, VCPUs: 1, CPU: seconds(50), Touched: 300 << 20, Own: 9 << 20, Faults: 400},
				{Member: 2, Name: "clone-2", Host: "h2", IP: netip.MustParseAddr("10.1.0.3"), State: metrics.Starting, VCPUs: 1},
			},
		},
		{
			Job: "b2", User: "eve\x1b[2J", Command: []string{"vm", "run"}, Began: began, Taken: began.Add(26 * time.Hour),
			Hosts:    []metrics.Host{{Name: "h1", Up: true}},
			Machines: []metrics.Machine{{Name: "parent\n", Host: "h1", State: metrics.Forking, VCPUs: 16, CPU: seconds(26 * 3600 * 1.5), Touched: 1500, Own: 0}},
		},
	}
}

func TestPSText(t *testing.T) {
	const want = `JOB  USER     RANKS    AGE  HOSTS  COMMAND
a1   ada          2  1m40s  h1,h2  ./app -x
  MACHINE  HOST  IP        VCPUS  CPU%  TOUCHED   OWN  FAULTS/S  STATE
  clone-1  h1    10.1.0.2      1  50.0     300M  9.0M       4.0  running
  clone-2  h2    10.1.0.3      1   0.0       0B    0B       0.0  starting
  a1: host h2 does not answer: it has not answered for 10s
b2   eve?[2J      -  1d02h  h1     vm run
  MACHINE  HOST  IP  VCPUS   CPU%  TOUCHED  OWN  FAULTS/S  STATE
  parent?  h1    -      16  150.0     1.5K   0B       0.0  forking
`
	if got := psText(someJobs()); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := psText(nil); got != "JOB  USER  RANKS  AGE  HOSTS  COMMAND\n" {
		t.Errorf("without jobs: %q", got)
	}
}

func TestPSJSON(t *testing.T) {
	for _, states := range [][]metrics.State{nil, someJobs()} {
		var b bytes.Buffer
		if err := psJSON(&b, states); err != nil {
			t.Fatal(err)
		}
		var again []metrics.State
		if err := json.Unmarshal(b.Bytes(), &again); err != nil || again == nil || len(again) != len(states) {
			t.Errorf("%s: %v", b.String(), err)
		}
	}
}

func TestTopLines(t *testing.T) {
	states := someJobs()
	now := states[0].Taken
	got := topLines(now, nil, states, errors.New("ask job c3 what it does: no answer\nand another"), 0)
	want := `mpirun-sf top - 12:01:40  2 jobs, 3 machines on 2 hosts, 2.0 processors, 4 faults/s
a1: host h2 does not answer: it has not answered for 10s
ask job c3 what it does: no answer
and another

JOB  MACHINE  HOST  IP        VCPUS   CPU%  TOUCHED   OWN  FAULTS/S  STATE
b2   parent?  h1    -            16  150.0     1.5K    0B       0.0  forking
a1   clone-1  h1    10.1.0.2      1   50.0     300M  9.0M       4.0  running
a1   clone-2  h2    10.1.0.3      1    0.0       0B    0B       0.0  starting`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("%s\nwant\n%s", text, want)
	}
	// The next picture is of what happened since.
	later := someJobs()
	later[0].Taken = later[0].Taken.Add(2 * time.Second)
	later[0].Machines[0].CPU += metrics.Seconds(4 * time.Second)
	later[0].Machines[0].Faults += 7
	got = topLines(now, map[string]metrics.State{"a1": states[0], "b2": states[1]}, later, nil, 40)
	if !strings.HasPrefix(got[4], "a1   clone-1") || !strings.Contains(strings.Join(topLines(now, map[string]metrics.State{"a1": states[0]}, later, nil, 0), "\n"), "200.0     300M  9.0M       3.5") {
		t.Errorf("%q", got)
	}
	for _, line := range got {
		if len(line) > 40 {
			t.Errorf("%q is longer than the terminal is wide", line)
		}
	}
}

func TestTopEnds(t *testing.T) {
	reads := 0
	v := &view{interval: time.Millisecond, count: 3, read: func(context.Context) ([]metrics.State, error) { reads++; return someJobs(), nil }}
	var out bytes.Buffer
	v.out = &out
	if err := v.run(t.Context(), nil); err != nil || reads != 3 || strings.Count(out.String(), "mpirun-sf top") != 3 || strings.Contains(out.String(), "\033") {
		t.Errorf("%d pictures: %q (%v)", reads, out.String(), err)
	}
	for _, key := range "qQ\x03" {
		keys := make(chan byte, 3)
		keys <- 'x'
		keys <- ' '
		keys <- byte(key)
		v := &view{interval: time.Hour, read: v.read, out: &out, size: func() (int, int) { return 80, 3 }}
		reads = 0
		out.Reset()
		if err := v.run(t.Context(), keys); err != nil || reads != 2 {
			t.Errorf("%q: %d pictures, %v", key, reads, err)
		}
		if text := out.String(); strings.Count(text, "\r\n") != 2*2 || !strings.HasSuffix(text, "\033[J") {
			t.Errorf("on a terminal of three lines: %q", text)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.run(ctx, nil); err != nil {
		t.Error(err)
	}
}

func TestSizesAndAges(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1.0K", 1 << 20: "1.0M", 10 << 20: "10M", 1000 << 20: "1.0G", 1 << 62: "4.0E"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 3 * time.Hour: "3h00m", 49 * time.Hour: "2d01h"} {
		if got := age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
