package pmi

import (
	"fmt"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/pmi/internal/hearsay"
)

// formatRanks writes ranks for a person: "0-3,6".
func formatRanks(ranks []int) string {
	var b strings.Builder
	for i := 0; i < len(ranks); {
		last := i
		for last+1 < len(ranks) && ranks[last+1] == ranks[last]+1 {
			last++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, ranks[i])
		if last > i {
			fmt.Fprintf(&b, "-%d", ranks[last])
		}
		i = last + 1
	}
	return b.String()
}

// word turns a text into one value of a PMI line, which is read up to the next space.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '=' {
			return '_'
		}
		return r
	}, hearsay.Clip(s))
}
