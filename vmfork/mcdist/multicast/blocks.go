package multicast

import "math/bits"

// blockSet is a set of blocks of an image, which may be large and is mostly not touched.
type blockSet struct {
	chunks map[int64]*[chunkBlocks / 64]uint64
	n      int64
}

const chunkBlocks = 4096

func (s *blockSet) has(block int64) bool {
	c := s.chunks[block/chunkBlocks]
	return c != nil && c[block%chunkBlocks/64]&(1<<(block%64)) != 0
}

// add reports whether the block was not there.
func (s *blockSet) add(block int64) bool {
	c := s.chunks[block/chunkBlocks]
	if c == nil {
		if s.chunks == nil {
			s.chunks = make(map[int64]*[chunkBlocks / 64]uint64)
		}
		c = new([chunkBlocks / 64]uint64)
		s.chunks[block/chunkBlocks] = c
	}
	word, bit := &c[block%chunkBlocks/64], uint64(1)<<(block%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	s.n++
	return true
}

// remove reports whether the block was there.
func (s *blockSet) remove(block int64) bool {
	c := s.chunks[block/chunkBlocks]
	if c == nil {
		return false
	}
	word, bit := &c[block%chunkBlocks/64], uint64(1)<<(block%64)
	if *word&bit == 0 {
		return false
	}
	*word &^= bit
	s.n--
	return true
}

// missing returns the blocks of a range that are not in the set.
func (s *blockSet) missing(first, n int64) (runs []run) {
	for b := first; b < first+n; {
		if b%64 == 0 && b+64 <= first+n {
			var word uint64
			if c := s.chunks[b/chunkBlocks]; c != nil {
				word = c[b%chunkBlocks/64]
			}
			if word == ^uint64(0) {
				b += 64
				continue
			}
			if skip := bits.TrailingZeros64(^word); skip > 0 {
				b += int64(skip)
				continue
			}
		}
		if !s.has(b) {
			runs = extend(runs, b)
		}
		b++
	}
	return runs
}

// marks remembers for each block the counter of the packet that completed it when it was last sent to the group.
type marks map[int64]*[chunkBlocks]uint64

// inFlight is the mark of a block whose packets are being made.
const inFlight = ^uint64(0)

// get returns one above the counter; 0 if the block was never sent.
func (m marks) get(block int64) uint64 {
	if c := m[block/chunkBlocks]; c != nil {
		return c[block%chunkBlocks]
	}
	return 0
}

func (m marks) set(r run, counter uint64) {
	for b := r.first; b < r.first+r.n; b++ {
		c := m[b/chunkBlocks]
		if c == nil {
			c = new([chunkBlocks]uint64)
			m[b/chunkBlocks] = c
		}
		c[b%chunkBlocks] = counter
	}
}
