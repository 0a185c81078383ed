package allocator

import (
	"strings"
	"testing"
)

func FuzzParseAvailable(f *testing.F) {
	f.Add("MemTotal:  1 kB\nMemAvailable:   24139972 kB\n")
	f.Add("MemAvailable: -1 kB")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseAvailable(strings.NewReader(s))
		if err == nil && n < 0 {
			t.Fatalf("%q gave %d", s, n)
		}
	})
}
