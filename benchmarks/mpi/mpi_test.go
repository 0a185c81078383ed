package main

import (
	"os"
	"strings"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/stage"
)

// saidByNetPIPE is what NPmpich2 3.7.2 writes, on both of its streams.
const saidByNetPIPE = `Using no perturbations

0: clone-1

1: clone-2
Now starting the main loop
  0:       1 bytes     50 times -->      0.00 Mbps in    4186.54 usec
 11:      64 bytes     50 times -->    761.34 Mbps in       0.64 usec
 36:  262144 bytes     20 times -->    500.25 Mbps in   15993.00 usec
`

func TestSamplesOfNetPIPE(t *testing.T) {
	got := samples(saidByNetPIPE)
	if len(got) != 3 || got[1] != (sample{4186.54, 0}) || got[64] != (sample{0.64, 761.34}) || got[256<<10] != (sample{15993, 500.25}) {
		t.Errorf("%v", got)
	}
	p := newPipe()
	if err := p.add(saidByNetPIPE); err != nil {
		t.Fatal(err)
	}
	if p.latency[0] != (4186.54+0.64)/2 || p.throughput[0] != 761.34 || len(p.bySize[64]) != 1 {
		t.Errorf("%+v", p)
	}
	cut := saidByNetPIPE[:strings.Index(saidByNetPIPE, " 36:")]
	if err := p.add(cut); err == nil || len(p.latency) != 1 {
		t.Errorf("a run that was cut short was taken: %v", err)
	}
}

func FuzzSamples(f *testing.F) {
	f.Add(saidByNetPIPE)
	f.Add("  0: 99999999999999999999 bytes 5 times --> 1.0 Mbps in 1.2.3 usec")
	f.Fuzz(func(t *testing.T, output string) {
		for size, s := range samples(output) {
			if size <= 0 || !(s.usec > 0) || !(s.mbps >= 0) {
				t.Errorf("%d bytes: %+v", size, s)
			}
		}
	})
}

func TestHelloOfAllRanks(t *testing.T) {
	const two = "hello from rank 1 of 2 on clone-2: sum 1, allreduce 5 us\nhello from rank 0 of 2 on clone-1: sum 1, allreduce 5 us\n"
	if err := saidHello(two, 2); err != nil {
		t.Error(err)
	}
	for output, ranks := range map[string]int{"": 1, two: 4, strings.Repeat(two[:strings.IndexByte(two, '\n')+1], 2): 2} {
		if err := saidHello(output, ranks); err == nil {
			t.Errorf("%q was taken for that of %d ranks", output, ranks)
		}
	}
}

func TestPlotsOfNetPIPE(t *testing.T) {
	b := &bench{Stage: &stage.Stage{Out: t.TempDir()}}
	p := newPipe()
	for range 3 {
		if err := p.add(saidByNetPIPE); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.plotPipes(p, p); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mpi-latency.svg", "mpi-bandwidth.svg"} {
		svg, err := os.ReadFile(b.Out + "/" + name)
		if err != nil || !strings.Contains(string(svg), ">64K<") || strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
			t.Errorf("%s: %v\n%s", name, err, svg)
		}
	}
}
