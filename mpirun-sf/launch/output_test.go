package launch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// pieces records each write.
type pieces struct {
	mu  sync.Mutex // guards all
	all []string
}

func (p *pieces) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, string(b))
	return len(b), nil
}

func TestLineWriter(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for name, c := range map[string]struct {
		prefix string
		in     []string // writes
		want   []string // writes of whole lines
	}{
		"nothing":          {"", nil, nil},
		"an empty line":    {"", []string{"\n"}, []string{"\n"}},
		"a line":           {"", []string{"one\n"}, []string{"one\n"}},
		"lines in a write": {"", []string{"one\ntwo\n"}, []string{"one\n", "two\n"}},
		"a line in writes": {"", []string{"o", "n", "e\ntw", "o\n"}, []string{"one\n", "two\n"}},
		"no end":           {"", []string{"one\ntwo"}, []string{"one\n", "two"}},
		"zero bytes":       {"", []string{"a\x00b\r\n"}, []string{"a\x00b\r\n"}},
		"label":            {"[3] ", []string{"one\n\ntwo\n"}, []string{"[3] one\n", "[3] \n", "[3] two\n"}},
		"label, no end":    {"[3] ", []string{"one"}, []string{"[3] one\n"}},
		"label, nothing":   {"[3] ", nil, nil},
		"too long":         {"", []string{long, "yz\n"}, []string{long, "yz\n"}},
		"label, too long":  {"[3] ", []string{long, "yz\n"}, []string{"[3] " + long + "\n", "[3] yz\n"}},
		"as long as can be": {"[3] ", []string{long[:maxLine-1], "\n"}, []string{
			"[3] " + long[:maxLine-1] + "\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var out pieces
			w := &lineWriter{out: &out, mu: new(sync.Mutex), prefix: []byte(c.prefix)}
			for _, s := range c.in {
				if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
					t.Fatalf("wrote %d bytes of %d: %v", n, len(s), err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%.40q", out.all) != fmt.Sprintf("%.40q", c.want) || strings.Join(out.all, "") != strings.Join(c.want, "") {
				t.Errorf("wrote %.40q, want %.40q", out.all, c.want)
			}
		})
	}
}

// Lines of ranks that write at the same time, in pieces of any size, are whole,
// and in order for each rank.
func TestLinesAreNeverTorn(t *testing.T) {
	var out pieces
	var mu sync.Mutex
	var wg sync.WaitGroup
	const lines = 200
	for rank := range 4 {
		wg.Go(func() {
			var all strings.Builder
			for n := range lines {
				fmt.Fprintf(&all, "line %d %s.\n", n, strings.Repeat("x", rand.IntN(200)))
			}
			w := &lineWriter{out: &out, mu: &mu, prefix: fmt.Appendf(nil, "[%d] ", rank)}
			for rest := all.String(); rest != ""; {
				n := min(len(rest), 1+rand.IntN(100))
				w.Write([]byte(rest[:n]))
				rest = rest[n:]
			}
			w.Close()
		})
	}
	wg.Wait()
	whole := regexp.MustCompile(`^\[(\d)\] line (\d+) x*\.\n$`)
	next := map[string]int{}
	for _, p := range out.all {
		m := whole.FindStringSubmatch(p)
		if m == nil {
			t.Fatalf("a torn line: %q", p)
		}
		if m[2] != fmt.Sprint(next[m[1]]) {
			t.Fatalf("line %s of rank %s came where %d was to come", m[2], m[1], next[m[1]])
		}
		next[m[1]]++
	}
	if len(out.all) != 4*lines {
		t.Errorf("%d lines of %d came", len(out.all), 4*lines)
	}
}

type fullDisk struct{ writes int }

func (f *fullDisk) Write([]byte) (int, error) {
	f.writes++
	return 0, errors.New("no space left on device")
}

func TestLineWriterError(t *testing.T) {
	w := &lineWriter{out: &fullDisk{}, mu: new(sync.Mutex)}
	if _, err := w.Write([]byte("one\ntwo\n")); err == nil {
		t.Error("an error of the output was lost")
	}
	w.Write([]byte("three"))
	if err := w.Close(); err == nil {
		t.Error("an error of the output's end was lost")
	}
}
