package allocator

import (
	"bytes"
	"strings"
	"sync"
)

// What a Tail keeps: enough to see why a program gave up.
const (
	tailLines = 10
	tailLine  = 500 // bytes
)

// Tail is a writer that keeps the last lines of a standard error, each without
// what is no text for a terminal.
type Tail struct {
	notice func(line string)

	mu    sync.Mutex
	lines []string
	part  []byte // of a line that has not ended
}

// NewTail calls notice, if there is one, for each whole line as it comes, one
// at a time.
func NewTail(notice func(line string)) *Tail { return &Tail{notice: notice} }

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		t.part = append(t.part, line[:min(len(line), tailLine-len(t.part))]...)
		if ended {
			t.endLine()
		}
		p = rest
	}
	return n, nil
}

func (t *Tail) endLine() {
	line := printable(t.part)
	t.part = t.part[:0]
	if line == "" {
		return
	}
	if len(t.lines) == tailLines {
		t.lines = append(t.lines[:0], t.lines[1:]...)
	}
	t.lines = append(t.lines, line)
	if t.notice != nil {
		t.notice(line)
	}
}

// String is the lines, also one that has not ended, without a line end after
// the last.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := t.lines
	if last := printable(t.part); last != "" {
		lines = append(lines[:len(lines):len(lines)], last)
	}
	return strings.Join(lines, "\n")
}

// printable makes a line of it, without what surrounds it.
func printable(line []byte) string {
	return strings.TrimSpace(strings.ReplaceAll(harmless(string(line)), "\n", ""))
}

// harmless takes out of a far host's text what a terminal would obey. Line ends
// stay.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
		case r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}
