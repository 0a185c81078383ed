package launch

import (
	"fmt"
	"slices"
	"strings"
)

// block is a run of ranks: each of nodes clones from first on has each of them.
type block struct{ first, nodes, each int }

// mapping writes PMI_process_mapping for the ranks of places, wherever these lie:
// blocks in the order of ranks, as few as there can be. MPICH begins anew with the
// first when it has come to the end, so what repeats itself is written once. Places
// without ranks have no number, since MPICH numbers nodes by what it finds here.
func mapping(places []Place, np int) string {
	node := make([]int, np)
	n := 0
	for _, p := range places {
		for _, rank := range p.Ranks {
			if rank < np {
				node[rank] = n
			}
		}
		if len(p.Ranks) > 0 {
			n++
		}
	}
	var all []block
	for rank := 0; rank < np; {
		each := 1
		for rank+each < np && node[rank+each] == node[rank] {
			each++
		}
		if last := len(all) - 1; last >= 0 && all[last].first+all[last].nodes == node[rank] && all[last].each == each {
			all[last].nodes++
		} else {
			all = append(all, block{node[rank], 1, each})
		}
		rank += each
	}
	for period := 1; period <= len(all)/2; period++ {
		if len(all)%period == 0 && slices.Equal(all[period:], all[:len(all)-period]) {
			all = all[:period]
			break
		}
	}
	var b strings.Builder
	b.WriteString("(vector")
	for _, one := range all {
		fmt.Fprintf(&b, ",(%d,%d,%d)", one.first, one.nodes, one.each)
	}
	return b.String() + ")"
}
