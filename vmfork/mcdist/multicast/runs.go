package multicast

import (
	"encoding/binary"
	"errors"
)

// run is some blocks that follow each other.
type run struct{ first, n int64 }

// appendRun appends one run to an encoding of runs; end is where the run before it ended, 0 for the first. Distances
// are signed, because blocks are asked for in the order in which they will be needed.
func appendRun(p []byte, end int64, r run) []byte {
	return binary.AppendUvarint(binary.AppendVarint(p, r.first-end), uint64(r.n))
}

// maxRun is how long the encoding of one run can be, in bytes: image sizes are bounded by 2^44.
const maxRun = 2 * binary.MaxVarintLen64

var errRuns = errors.New("malformed runs")

// parseRuns reads runs until the end of p. All must be inside an image of that many blocks, and no more than most
// blocks together.
func parseRuns(p []byte, blocks, most int64) (runs []run, err error) {
	var end int64
	for len(p) > 0 {
		d, a := binary.Varint(p)
		if a <= 0 {
			return nil, errRuns
		}
		n, b := binary.Uvarint(p[a:])
		if b <= 0 {
			return nil, errRuns
		}
		p = p[a+b:]
		if d < -blocks || d > blocks { // so that the sum cannot overflow
			return nil, errRuns
		}
		r := run{end + d, int64(n)}
		if n == 0 || n > uint64(most) || r.first < 0 || r.first > blocks-r.n {
			return nil, errRuns
		}
		most -= r.n
		end = r.first + r.n
		runs = append(runs, r)
	}
	return runs, nil
}

// count returns the number of blocks of some runs.
func count(runs []run) (n int64) {
	for _, r := range runs {
		n += r.n
	}
	return n
}

// extend appends a block to a list of runs.
func extend(runs []run, block int64) []run {
	if last := len(runs) - 1; last >= 0 && runs[last].first+runs[last].n == block {
		runs[last].n++
		return runs
	}
	return append(runs, run{block, 1})
}
