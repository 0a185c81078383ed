package pmi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// maxBarrierName is the longest name of a barrier, in bytes: PMI 1.2 names its ranks.
const maxBarrierName = 8 << 10

// maxBarriers is how many barriers a rank may be in at once: each is a thread of it.
const maxBarriers = 16

// members are the ranks of a barrier, as barrier_in group= names them: "WORLD", "NODE", or ranks with commas between them,
// each followed by nothing or by ":TAG", which tells barriers of several threads apart (PMI 1.2, PMI_Barrier_group).
type members struct {
	name string // the same for all who mean the same barrier
	node bool   // the ranks of one clone
	list []int  // in order, each once; none is all ranks
}

// world is the barrier of everybody: PMI-1.1's barrier_in, and PMI-2's fence.
const world = "WORLD"

// parseMembers parses a barrier's name in a group of so many ranks.
func parseMembers(name string, size int) (members, error) {
	who, tag, _ := strings.Cut(name, ":")
	if len(name) > maxBarrierName || !hearsay.IsToken(name) {
		return members{}, fmt.Errorf("barrier of group %q: must be at most %d printable characters", hearsay.Clip(name), maxBarrierName)
	}
	if tag == "" {
		tag = "0" // what MPICH's client writes for none
	}
	switch who {
	case world:
		return members{name: world + ":" + tag}, nil
	case "NODE":
		return members{name: "NODE:" + tag, node: true}, nil
	}
	var list []int
	for word := range strings.SplitSeq(who, ",") {
		r, err := strconv.ParseInt(word, 10, 32)
		if err != nil || r < 0 || int(r) >= size {
			return members{}, fmt.Errorf("barrier of group %q: %q is no rank of %d", hearsay.Clip(name), hearsay.Clip(word), size)
		}
		list = append(list, int(r))
	}
	slices.Sort(list)
	list = slices.Compact(list)
	var b strings.Builder
	for _, r := range list {
		fmt.Fprintf(&b, "%d,", r)
	}
	return members{name: strings.TrimSuffix(b.String(), ",") + ":" + tag, list: list}, nil
}

// of lists which of these ranks are members.
func (m members) of(ranks []int) []int {
	if m.list == nil {
		return ranks
	}
	var in []int
	for _, r := range ranks {
		if _, ok := slices.BinarySearch(m.list, r); ok {
			in = append(in, r)
		}
	}
	return in
}

// size is how many ranks there are in a group of so many; for NODE it is not known.
func (m members) size(group int) int {
	if m.list == nil {
		return group
	}
	return len(m.list)
}
