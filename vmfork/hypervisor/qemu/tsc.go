package qemu

import (
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads this CPU's time stamp counter, which a TCG guest sees too.
func rdtsc() uint64

// tscKHz is the rate of the time stamp counter, in kHz, measured once. The
// result is rounded to 50 kHz (20 ppm of a 2.5 GHz clock), so that two runs
// agree on it: checkpoints are kept by it.
var tscKHz = sync.OnceValue(measureTSC)

func measureTSC() int64 {
	// A reading is a pair (clock, counter) taken so close together that
	// nothing came between: of several, the one with the closest bracket.
	read := func() (ns int64, tsc uint64) {
		best := uint64(math.MaxUint64)
		for range 20 {
			var ts unix.Timespec
			before := rdtsc()
			unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts)
			after := rdtsc()
			if after-before < best {
				best, ns, tsc = after-before, ts.Nano(), before+(after-before)/2
			}
		}
		return ns, tsc
	}
	ns0, tsc0 := read()
	time.Sleep(20 * time.Millisecond)
	ns1, tsc1 := read()
	khz := float64(tsc1-tsc0) * 1e6 / float64(ns1-ns0)
	return int64(math.Round(khz/50)) * 50
}
