package memtap

import (
	"os/exec"
	"reflect"
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

// TestAddLeavesNothingOut, also of what counters are added later.
func TestAddLeavesNothingOut(t *testing.T) {
	var one Counters
	v := reflect.ValueOf(&one).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Int64 {
			f.SetInt(int64(i) + 1)
		}
	}
	for i := range one.Latency {
		one.Latency[i] = int64(i) + 7
	}
	two := one
	two.Add(one)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Int64 && reflect.ValueOf(two).Field(i).Int() != 2*f.Int() {
			t.Errorf("%s is not added", v.Type().Field(i).Name)
		}
	}
	for i, n := range two.Latency {
		if n != 2*one.Latency[i] {
			t.Errorf("bucket %d is not added", i)
		}
	}
}
