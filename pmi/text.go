package pmi

import (
	"fmt"
	"strings"
	"unicode"
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

// isToken reports whether s can stand as a value inside a PMI line: printable ASCII without spaces.
func isToken(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// word turns a text into one value of a PMI line, which is read up to the next space.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '=' {
			return '_'
		}
		return r
	}, clip(s))
}

// printable makes a guest's text safe for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// clip shortens s for an error message: what a rank sends must not fill a log.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
