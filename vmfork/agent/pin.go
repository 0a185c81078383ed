package agent

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bind says which processors a process may run on: those of a list, or its share of
// those that the agent may run on. These are counted one by one, or core by core
// with all of its threads.
type Bind struct {
	CPUs  []int `json:"cpus,omitempty"` // if there are any, these
	Cores bool  `json:"cores,omitempty"`
	Each  int   `json:"each,omitempty"`  // so many
	Index int   `json:"index,omitempty"` // and so many times Each are others' before
}

// start calls begin on a thread that may run where b says: what is started inherits
// that, from its first instruction on.
func (b *Bind) start(begin func() error) error {
	if b == nil {
		return begin()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("ask for the processors to run on: %w", err)
	}
	var during unix.CPUSet
	for _, n := range b.choose(&before, threadsOf) {
		during.Set(n)
	}
	if err := unix.SchedSetaffinity(0, &during); err != nil {
		return fmt.Errorf("bind to processors: %w", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	return begin()
}

// choose are the processors, of those that are allowed. threads are those of a
// processor's core.
func (b *Bind) choose(allowed *unix.CPUSet, threads func(cpu int) []int) (chosen []int) {
	if len(b.CPUs) > 0 {
		return b.CPUs
	}
	var units [][]int
	seen := map[int]bool{}
	for cpu, found := 0, allowed.Count(); found > 0; cpu++ {
		if !allowed.IsSet(cpu) {
			continue
		}
		found--
		if seen[cpu] {
			continue
		}
		unit := []int{cpu}
		if b.Cores {
			unit = append(unit, threads(cpu)...)
		}
		unit = slices.DeleteFunc(unit, func(n int) bool { return seen[n] || !allowed.IsSet(n) })
		slices.Sort(unit)
		unit = slices.Compact(unit)
		for _, n := range unit {
			seen[n] = true
		}
		units = append(units, unit)
	}
	for k := range min(max(1, b.Each), len(units)) {
		chosen = append(chosen, units[(b.Index*max(1, b.Each)+k)%len(units)]...)
	}
	return chosen
}

// threadsOf are the processors of a processor's core, as far as the kernel says so.
func threadsOf(cpu int) (threads []int) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu))
	if err != nil {
		return nil
	}
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		var first, last int
		if n, _ := fmt.Sscanf(part, "%d-%d", &first, &last); n == 0 {
			return nil
		}
		for n := first; n <= cmp.Or(last, first); n++ {
			threads = append(threads, n)
		}
	}
	return threads
}
