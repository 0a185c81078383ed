package mcdist

import (
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

func percentile(times []time.Duration, p int) time.Duration {
	times = slices.Sorted(slices.Values(times))
	return times[min(len(times)*p/100, len(times)-1)].Round(10 * time.Microsecond)
}

func TestOverANetwork(t *testing.T) {
	for _, c := range []struct {
		name string
		mode Mode
		deaf bool
		line string
	}{
		{"unicast", Unicast, false, ""},
		{"tree", Tree, false, ""},
		{"multicast", Multicast, false, "multicast reaches 4 of 4 hosts: using multicast"},
		{"auto", Auto, false, "multicast reaches 4 of 4 hosts: using multicast"},
		{"auto without multicast", Auto, true, "multicast reaches 0 of 4 hosts: using tree"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := onHosts(t, testcluster.Options{Hosts: 5, Link: testcluster.Link{Rate: 1e9}, NoMulticast: c.deaf}, c.mode, 20000)
			if c.line != "" {
				if r := h.do(0, command{Do: "line"}); r.Line != c.line {
					t.Errorf("it was found that %q", r.Line)
				}
			}
			// Cut for a second, in the middle of everything.
			var ends []func() result
			for i := 1; i < 5; i++ {
				ends = append(ends, h.begin(i, command{Do: "prefetch", First: 0, N: 8000}))
				ends = append(ends, h.begin(i, command{Do: "bring", First: 10000, N: 8, Count: 100, Stride: 50, Pause: 5 * time.Millisecond}))
			}
			time.Sleep(50 * time.Millisecond)
			if err := h.cluster.Cut(2); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if err := h.cluster.Heal(2); err != nil {
				t.Fatal(err)
			}
			for _, end := range ends {
				end()
			}
			id := testID()
			object := command{Do: "publish", ID: hex.EncodeToString(id[:]), N: 500, To: []int{1, 2, 3, 4}}
			h.do(0, object)
			object.Do = "receive"
			h.all(object)
			for i, r := range h.all(command{Do: "count"}) {
				if i > 0 {
					got := int64(0)
					for _, f := range r.Counters.Received {
						got += f.Urgent.Blocks + f.Bulk.Blocks
					}
					if got < 8800 {
						t.Errorf("host %d counts %d blocks", i, got)
					}
				}
			}
		})
	}
}

// BenchmarkNetwork is five hosts at a switch: faults alone and beside bulk of all, bulk, a push, and an object.
func BenchmarkNetwork(b *testing.B) {
	for _, rate := range []int64{1e8, 1e9} {
		for _, mode := range []Mode{Unicast, Tree, Multicast} {
			b.Run(fmt.Sprintf("%v-%dMbit", mode, rate/1e6), func(b *testing.B) {
				for b.Loop() {
					benchmarkNetwork(b, rate, mode)
				}
			})
		}
	}
}

func benchmarkNetwork(b *testing.B, rate int64, mode Mode) {
	const blocks, bulkBlocks = 60000, 6000
	h := onHosts(b, testcluster.Options{Hosts: 5, Link: testcluster.Link{Rate: rate}}, mode, blocks)
	if mode == Multicast {
		h.all(command{Do: "listen"})
	}
	µs := func(times []time.Duration, p int, what string) {
		b.ReportMetric(float64(percentile(times, p))/1e3, what)
	}
	bring := command{Do: "bring", First: 20000, N: 1, Count: 200, Stride: 7, Pause: time.Millisecond}
	alone := h.do(1, bring).Each
	µs(alone, 50, "fault-p50-µs")
	µs(alone, 99, "fault-p99-µs")

	before := sentBy(h)
	var ends []func() result
	for i := 1; i < 5; i++ {
		ends = append(ends, h.begin(i, command{Do: "prefetch", N: bulkBlocks}))
	}
	bring.First, bring.Count = 30000, 100
	beside := h.do(1, bring).Each
	µs(beside, 50, "beside-p50-µs")
	µs(beside, 90, "beside-p90-µs")
	took := time.Duration(0)
	for _, end := range ends {
		took = max(took, end().Took)
	}
	figures := func(what string, before [2]int64, took time.Duration) {
		after := sentBy(h)
		b.ReportMetric(took.Seconds(), what+"-s")
		b.ReportMetric(float64(after[0]-before[0])/1e6, what+"-origin-MB")
		b.ReportMetric(float64(after[1]-before[1])/1e6, what+"-all-MB")
	}
	figures("bulk", before, took)

	before, start := sentBy(h), time.Now()
	h.do(0, command{Do: "push", First: 40000, N: bulkBlocks, To: []int{1, 2, 3, 4}})
	for i := 2; i < 5; i++ {
		ends[i-1] = h.begin(i, command{Do: "await", N: 2 * bulkBlocks})
	}
	for _, end := range ends[1:] {
		end()
	}
	figures("push", before, time.Since(start))

	id := testID()
	object := command{Do: "publish", ID: hex.EncodeToString(id[:]), N: 1000, To: []int{1, 2, 3, 4}}
	before, start = sentBy(h), time.Now()
	h.do(0, object)
	object.Do = "receive"
	h.all(object)
	figures("object", before, time.Since(start))
}

// sentBy is what the origin has sent, and what all hosts have, in bytes.
func sentBy(h *hosts) (sent [2]int64) {
	for i, host := range h.cluster.Hosts() {
		t, err := host.Traffic()
		if err != nil {
			h.t.Fatal(err)
		}
		if i == 0 {
			sent[0] = t.SentBytes
		}
		sent[1] += t.SentBytes
	}
	return sent
}
