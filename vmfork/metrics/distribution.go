package metrics

import (
	"encoding/json"
	"fmt"
	"math"
	"sync"
	"time"
)

// Seconds is a duration that is a number of seconds in JSON.
type Seconds time.Duration

// Duration is the same.
func (s Seconds) Duration() time.Duration { return time.Duration(s) }

// MarshalJSON writes a number.
func (s Seconds) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(s).Seconds()) }

// UnmarshalJSON reads one.
func (s *Seconds) UnmarshalJSON(text []byte) error {
	var f float64
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	if math.Abs(f) > math.MaxInt64/1e9/2 {
		return fmt.Errorf("%g seconds are too many", f)
	}
	*s = Seconds(math.Round(f * 1e9))
	return nil
}

// Distribution says how often something took how long.
type Distribution struct {
	Count   int64    `json:"count"`
	Sum     Seconds  `json:"sum"`
	Buckets []Bucket `json:"buckets,omitempty"` // by rising UpTo, those that count nothing left out
}

// Bucket counts what no earlier one does.
type Bucket struct {
	UpTo  Seconds `json:"up_to"`
	Count int64   `json:"count"`
}

// add enters n that took at most upTo, and about typical.
func (d *Distribution) add(upTo, typical time.Duration, n int64) {
	if n <= 0 {
		return
	}
	d.Count += n
	if float64(d.Sum)+float64(typical)*float64(n) < math.MaxInt64/2 {
		d.Sum += Seconds(int64(typical) * n)
	}
	d.Buckets = append(d.Buckets, Bucket{Seconds(upTo), n})
}

// bounds of a Histogram's buckets: a fork's pause is between milliseconds and
// seconds.
var bounds = func() (all []time.Duration) {
	for d := time.Millisecond; d < 2*time.Minute; d *= 2 {
		all = append(all, d, d*3/2)
	}
	return all
}()

// Histogram counts durations between a millisecond and two minutes. The zero one
// is ready.
type Histogram struct {
	mu     sync.Mutex
	counts map[int]int64
	sum    time.Duration
}

// Observe counts one.
func (h *Histogram) Observe(d time.Duration) {
	i := 0
	for i < len(bounds)-1 && d > bounds[i] {
		i++
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = map[int]int64{}
	}
	h.counts[i]++
	h.sum += d
}

// Distribution is what was counted so far.
func (h *Histogram) Distribution() (d Distribution) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, upTo := range bounds {
		d.add(upTo, 0, h.counts[i])
	}
	d.Sum = Seconds(h.sum)
	return d
}
