package mpichshim

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const patternText = "In it %r is the rank, %g the process group, %p the number of the host, %h its name, %t the seconds since the start, %% a percent sign."

// Pattern is a text that is different for each rank. The zero value is none.
type Pattern struct{ parts []part }

// part is a text, or what one letter stands for.
type part struct {
	text   string
	letter byte // 0 for a text
}

// Source is whose output it is.
type Source struct {
	Rank, Group int
	Node        int    // the number of its host, of those that have ranks
	Host        string // as the user named it
}

// Given is whether there is a pattern.
func (p Pattern) Given() bool { return len(p.parts) > 0 }

// parse reads a pattern. An empty one is a pattern, too.
func (p *Pattern) parse(s string) error {
	p.parts = []part{{}}
	for {
		text, rest, found := strings.Cut(s, "%")
		p.parts = append(p.parts, part{text: text})
		if !found {
			return nil
		}
		if rest == "" {
			return fmt.Errorf("%q ends with half of a pair: %%%% is a percent sign", s)
		}
		switch letter := rest[0]; letter {
		case '%':
			p.parts = append(p.parts, part{text: "%"})
		case 'r', 'g', 'p', 'h', 't':
			p.parts = append(p.parts, part{letter: letter})
		default:
			return fmt.Errorf("%%%c stands for nothing; there are %%r, %%g, %%p, %%h, %%t and %%%%", letter)
		}
		s = rest[1:]
	}
}

// Resolve is the text for a source, since being the time since the job began.
func (p Pattern) Resolve(s Source, since time.Duration) string {
	var b strings.Builder
	for _, part := range p.parts {
		switch part.letter {
		case 0:
			b.WriteString(part.text)
		case 'r':
			b.WriteString(strconv.Itoa(s.Rank))
		case 'g':
			b.WriteString(strconv.Itoa(s.Group))
		case 'p':
			b.WriteString(strconv.Itoa(s.Node))
		case 'h':
			b.WriteString(s.Host)
		case 't':
			b.WriteString(strconv.Itoa(int(since / time.Second)))
		}
	}
	return b.String()
}
