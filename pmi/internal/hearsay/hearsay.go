// Package hearsay has the rules for text that a rank, or a helper in its clone, has sent: which of it may go on to others as it
// is, and how it is quoted to a person. Ranks run whatever a user runs, so nothing that they say may break a line of a protocol,
// steer a terminal or fill a log.
package hearsay

import (
	"strings"
	"unicode"
)

// IsToken reports whether s can stand as a value inside a line of PMI, and as a name: printable ASCII without spaces. The empty
// text can.
func IsToken(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Printable makes one line of s, safe for a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// Lines makes s safe for a terminal, and keeps its lines.
func Lines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Printable(line)
	}
	return strings.Join(lines, "\n")
}

// most is how many bytes of a text an error quotes.
const most = 80

// Clip shortens s for an error.
func Clip(s string) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
