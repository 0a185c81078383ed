package replay

import (
	"math/rand/v2"
	"testing"
)

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		name    string
		numbers []uint64
		want    []bool
	}{
		{"in order", []uint64{0, 1, 2, 3}, []bool{true, true, true, true}},
		{"twice", []uint64{0, 0, 1, 1, 0}, []bool{true, false, true, false, false}},
		{"backwards", []uint64{3, 2, 1, 0, 2}, []bool{true, true, true, true, false}},
		{"oldest that is taken", []uint64{Size, 1, 1}, []bool{true, true, false}},
		{"too old", []uint64{Size + 5, 5, 6}, []bool{true, false, true}},
		{"a leap", []uint64{7, 1 << 40, 7, 1<<40 - 1, 1<<40 - Size + 1}, []bool{true, true, false, true, true}},
		{"the last number", []uint64{^uint64(0), 0}, []bool{false, true}},
	} {
		var w Window
		for i, n := range c.numbers {
			if got := w.Accept(n); got != c.want[i] {
				t.Errorf("%s: packet %d of %v: accepted %v", c.name, i, c.numbers, got)
			}
		}
	}
}

// TestWindowAgainstAll compares with a set of all numbers that ever came.
func TestWindowAgainstAll(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w Window
	seen := map[uint64]bool{}
	var base, highest uint64
	for range 200000 {
		base += r.Uint64N(4)
		if r.IntN(5000) == 0 {
			base += r.Uint64N(3 * Size)
		}
		n := base - min(base, r.Uint64N(Size+Size/4))
		want := !seen[n] && (n >= highest || highest-n < Size)
		if got := w.Accept(n); got != want {
			t.Fatalf("number %d with %d the highest: accepted %v", n, highest, got)
		}
		if want {
			seen[n] = true
			highest = max(highest, n)
		}
	}
	if w.Next() != highest+1 {
		t.Errorf("the highest is %d, but Next says %d", highest, w.Next())
	}
}
