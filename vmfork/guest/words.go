package guest

import (
	"io"
	"os"
	"strings"
	"unicode"
)

// scriptLimit is how many bytes of a script are looked at.
const scriptLimit = 1 << 20

// script looks through a script: what interprets it and, of a shell's, each word.
func (s *seeker) script(path string) {
	if s.seen["script "+path] {
		return
	}
	s.seen["script "+path] = true
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return
	}
	b, err := io.ReadAll(io.LimitReader(f, scriptLimit))
	if err != nil {
		return
	}
	text := string(b)
	shell := true
	if strings.HasPrefix(text, "#!") {
		names, err := interpreters(path, s.look)
		if err != nil {
			return
		}
		for _, n := range names {
			s.file(n)
		}
		shell = isShell(names[len(names)-1])
	}
	if shell {
		s.words(text)
	}
}

// words looks at each word of a shell's text.
func (s *seeker) words(text string) {
	for _, w := range splitWords(text) {
		s.word(w)
	}
}

// splitWords parts a shell's text where its words may end, quotes and assignments
// included, without comments and without words that the shell would make something
// else of. It is no parser of the language: a word too many does no harm.
func splitWords(text string) (words []string) {
	for line := range strings.Lines(text) {
		for len(line) > 0 {
			i := strings.IndexFunc(line, endsWord)
			word := line
			if i >= 0 {
				word = line[:i]
			}
			if strings.HasPrefix(word, "#") {
				break
			}
			if word != "" && !strings.ContainsAny(word, "$*?[]\\") {
				words = append(words, word)
			}
			if i < 0 {
				break
			}
			line = line[i+1:]
		}
	}
	return words
}

// endsWord tells of an ASCII character or a blank whether a word ends there.
func endsWord(r rune) bool {
	return r < 0x80 && (unicode.IsSpace(r) || r == 0 || strings.ContainsRune(";|&()<>{}\"'`=", r))
}
