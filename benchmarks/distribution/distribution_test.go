package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

func TestClonesReady(t *testing.T) {
	const said = `mpirun-sf: multicast reaches 8 of 8 hosts: using multicast
mpirun-sf: 2 clones ready in 0.31 s
mpirun-sf:   clone-1: vCPUs running after 41 ms, ready after 240 ms
mpirun-sf:   clone-2: vCPUs running after 57 ms, ready after 203 ms
`
	if running, ready, clones := clonesReady(said); running != 57 || ready != 240 || clones != 2 {
		t.Errorf("running %v, ready %v, %d clones", running, ready, clones)
	}
	if _, _, clones := clonesReady("mpirun-sf: no clones here\n"); clones != 0 {
		t.Errorf("%d clones of none", clones)
	}
	if way := wayLine.FindString(said); way != "multicast reaches 8 of 8 hosts: using multicast" {
		t.Errorf("the way is %q", way)
	}
}

func TestLinesOfUDPCast(t *testing.T) {
	const said = "Udp-sender 20120424\nStarting transfer: 00000014\nbytes=  1\rbytes=  2\r\nTransfer complete."
	s := bufio.NewScanner(iotest.OneByteReader(strings.NewReader(said)))
	s.Split(linesAndReturns)
	var lines []string
	for s.Scan() {
		if s.Text() != "" {
			lines = append(lines, s.Text())
		}
	}
	if want := []string{"Udp-sender 20120424", "Starting transfer: 00000014", "bytes=  1", "bytes=  2", "Transfer complete."}; !slices.Equal(lines, want) {
		t.Errorf("%q", lines)
	}
	if got := lastLine("one\rtwo\n"); got != "two" {
		t.Errorf("the last line is %q", got)
	}
	if got := lastLine("\n"); got != "" {
		t.Errorf("the last line of none is %q", got)
	}
}

func TestDiscardNotesWhenAllWasThere(t *testing.T) {
	var at int64
	before := now()
	n, err := discard(iotest.HalfReader(bytes.NewReader(make([]byte, 5000))), 5000, &at)
	if err != nil || n != 5000 || at < before || at > now() {
		t.Errorf("%d bytes at %d, %v", n, at, err)
	}
	at = 0
	if n, err := discard(bytes.NewReader(make([]byte, 4999)), 5000, &at); err != nil || n != 4999 || at != 0 {
		t.Errorf("%d bytes at %d, %v", n, at, err)
	}
}

func TestPercentile(t *testing.T) {
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(100-i)*time.Microsecond)
	}
	if p := percentile(times, 99); p != 100 {
		t.Errorf("%v", p)
	}
	if p := percentile(times, 50); p != 51 {
		t.Errorf("%v", p)
	}
	if p := percentile(nil, 50); p != 0 {
		t.Errorf("%v of nothing", p)
	}
}

func TestAPartReplacesOnlyItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "distribution.json")
	for _, step := range []struct {
		part  string
		names []string
		note  string
	}{
		{"fetch", []string{"a", "old"}, ""},
		{"bulk", []string{"b"}, "a note"},
		{"fetch", []string{"a"}, ""},
	} {
		r, err := openRecord(path)
		if err != nil {
			t.Fatal(err)
		}
		r.begin(step.part, step.note)
		for _, name := range step.names {
			r.add(name, figures.Median("ms", step.part, []float64{1, 2, 3}))
		}
		if err := r.save(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := openRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.kept) != 2 || r.kept["a"].Part != "fetch" || r.kept["b"].Part != "bulk" || r.kept["b"].Value != 2 {
		t.Errorf("the file has %v", r.kept)
	}
	if len(r.notes) != 2 || !strings.HasSuffix(r.notes["bulk"], "; a note") {
		t.Errorf("the file has the notes %q", r.notes)
	}
	var table bytes.Buffer
	if err := r.print(&table, []string{"bulk"}); err != nil {
		t.Fatal(err)
	}
	if s := table.String(); !strings.Contains(s, "\nb ") || strings.Contains(s, "\na ") {
		t.Errorf("the table of bulk is\n%s", s)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openRecord(path); err == nil {
		t.Error("a damaged file was read")
	}
}
