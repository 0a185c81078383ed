package main

import (
	"bufio"
	"bytes"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
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
