package memtap

import (
	"os/exec"
	"testing"
	"time"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestHistogram(t *testing.T) {
	var h Histogram
	if h.Percentile(50) != 0 {
		t.Error("a percentile of nothing")
	}
	for _, d := range []time.Duration{-1, 0, time.Microsecond, 3 * time.Microsecond, 100 * time.Microsecond, time.Hour} {
		h[bucket(d)]++
	}
	for p, want := range map[float64]time.Duration{
		0: time.Microsecond, 30: time.Microsecond, 50: 2 * time.Microsecond, 60: 4 * time.Microsecond,
		80: 128 * time.Microsecond, 100: 1 << 25 * time.Microsecond,
	} {
		if got := h.Percentile(p); got != want {
			t.Errorf("p%v = %v, want %v", p, got, want)
		}
	}
	if h.Count() != 6 {
		t.Errorf("count %d", h.Count())
	}
}
