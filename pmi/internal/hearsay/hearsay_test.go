package hearsay

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestIsToken(t *testing.T) {
	for s, want := range map[string]bool{"": true, "kvs_1": true, "a=b;c": true, "~": true, "two words": false, "a\n": false, "\x7f": false, "é": false} {
		if IsToken(s) != want {
			t.Errorf("IsToken(%q) = %v", s, !want)
		}
	}
}

func TestClip(t *testing.T) {
	whole := strings.Repeat("x", most)
	if Clip(whole) != whole || Clip(whole+"y") != whole+"..." {
		t.Errorf("%q", Clip(whole+"y"))
	}
}

// Whatever a rank sends, no line of it obeys, and the lines stay what they were.
func FuzzShown(f *testing.F) {
	f.Add("Grüße, rank 3\nof 4")
	f.Add("\x1b]0;title\a\x1b[2J\r")
	f.Add("\xff\xfe\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Count(Lines(s), "\n") != strings.Count(s, "\n") {
			t.Errorf("Lines(%q) = %q", s, Lines(s))
		}
		for _, shown := range []string{Printable(s), strings.ReplaceAll(Lines(s), "\n", "")} {
			if !utf8.ValidString(shown) {
				t.Errorf("%q is shown as %q", s, shown)
			}
			for _, r := range shown {
				if !unicode.IsPrint(r) {
					t.Errorf("%q is shown as %q", s, shown)
				}
			}
		}
	})
}
