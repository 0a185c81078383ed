package slurm

import (
	"errors"
	"strings"
)

// Words splits options that a user wrote as one, such as "-p debug -t 10", at
// white space. What is between single or double quotes, or after a backslash, is
// taken as it is; nothing is expanded.
func Words(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	begun, escaped := false, false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			begun, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			begun, quote = true, r
		case strings.ContainsRune(" \t\r\n", r):
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			begun = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("options for Slurm end within quotes, or with a backslash")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}
