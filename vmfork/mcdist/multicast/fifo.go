package multicast

import "slices"

// fifo is a queue of blocks in which each is at most once.
type fifo struct {
	in   blockSet
	runs []run // in order; blocks that were removed are still in them
	head int
}

func (f *fifo) has(block int64) bool { return f.in.has(block) }
func (f *fifo) len() int64           { return f.in.n }

func (f *fifo) add(block int64) {
	if f.in.add(block) {
		if f.head > len(f.runs)/2 {
			f.runs, f.head = append(f.runs[:0], f.runs[f.head:]...), 0
		}
		f.runs = extend(f.runs, block)
	}
}

func (f *fifo) remove(block int64) { f.in.remove(block) }

// take removes blocks from the front, at most most and only as long as their runs fit a batch.
func (f *fifo) take(most int64) (runs []run) {
	var n int64
	var end int64
	size := 0
	for n < most && f.head < len(f.runs) {
		r := &f.runs[f.head]
		if r.n == 0 {
			f.head++
			continue
		}
		b := r.first
		if f.in.has(b) {
			if last := len(runs) - 1; last < 0 || runs[last].first+runs[last].n != b {
				if last >= 0 {
					size += len(appendRun(nil, end, runs[last]))
					end = runs[last].first + runs[last].n
				}
				// A run's length never needs more than one byte: a batch has fewer blocks than 128.
				if size+len(appendRun(nil, end, run{b, 1})) > maxBatchRuns {
					return runs
				}
			}
			f.in.remove(b)
			runs = extend(runs, b)
			n++
		}
		r.first, r.n = r.first+1, r.n-1
	}
	return runs
}

// counterPool is the push mechanism of section 3.5: each request for a block adds a counter that starts at the block
// after it. They are cycled through; each turn sends one block and moves that counter on. No block is sent that was sent
// before, for whatever reason.
type counterPool struct {
	counters []int64
	turn     int
}

// maxCounters bounds the pool. Any number that is greater than that of the clients does about the same, the paper found.
const maxCounters = 256

func (c *counterPool) add(block int64) {
	if len(c.counters) < maxCounters {
		c.counters = append(c.counters, block)
		return
	}
	c.turn %= maxCounters
	c.counters[c.turn] = block
	c.turn++
}

// pushSteps bounds how many blocks that need not be sent are passed over at once, for a lock is held.
const pushSteps = 4096

// take moves counters on until it has most blocks, or none is left, or it has passed over many.
func (c *counterPool) take(most int, blocks int64, need func(block int64) bool) (list []int64) {
	for steps := 0; len(list) < most && len(c.counters) > 0 && steps < pushSteps; steps++ {
		c.turn %= len(c.counters)
		b := c.counters[c.turn]
		if b >= blocks {
			c.counters = append(c.counters[:c.turn], c.counters[c.turn+1:]...)
			continue
		}
		c.counters[c.turn]++
		if slices.Contains(list, b) || !need(b) {
			continue
		}
		list = append(list, b)
		c.turn++
	}
	return list
}
