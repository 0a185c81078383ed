package allocator

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestMemoryIsAHardLimit(t *testing.T) {
	l := Local{t.TempDir()}
	free, err := available()
	if err != nil {
		t.Fatal(err)
	}
	each := free / 4
	g, err := l.Reserve("a", Demand{Clones: 100, VCPUs: 1, Memory: each})
	if err != nil {
		t.Fatal(err)
	}
	if g.Clones < 2 || g.Clones > 3 {
		t.Fatalf("%d clones of %d MB fit into %d MB", g.Clones, each>>20, free>>20)
	}
	// What one job reserved, another does not get.
	h, err := l.Reserve("b", Demand{Clones: 100, VCPUs: 1, Memory: each})
	if err != nil {
		t.Fatal(err)
	}
	if h.Clones >= g.Clones {
		t.Errorf("the second job got %d clones, the first %d", h.Clones, g.Clones)
	}
	g.Release()
	h.Release()
	g.Release()
	if left, _ := filepath.Glob(filepath.Join(l.Dir, "*.job")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCoresAreSoftUnlessStrict(t *testing.T) {
	l := Local{t.TempDir()}
	d := Demand{Clones: 4 * runtime.NumCPU(), VCPUs: 1, Memory: 1 << 20}
	g, err := l.Reserve("soft", d)
	if err != nil || g.Clones != d.Clones {
		t.Fatalf("%+v, %v", g, err)
	}
	g.Release()
	d.Strict = true
	if g, err = l.Reserve("strict", d); err != nil || g.Clones != runtime.NumCPU() {
		t.Fatalf("%+v, %v", g, err)
	}
	g.Release()
}

func TestDeadJobsReserveNothing(t *testing.T) {
	l := Local{t.TempDir()}
	if err := os.WriteFile(filepath.Join(l.Dir, "dead.job"), []byte(`{"pid":1,"memory":1000000000000000}`), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := l.Reserve("next", Demand{Clones: 1, VCPUs: 1, Memory: 1 << 20})
	if err != nil || g.Clones != 1 {
		t.Fatalf("%+v, %v", g, err)
	}
	defer g.Release()
	if _, err := os.Stat(filepath.Join(l.Dir, "dead.job")); err == nil {
		t.Error("the dead job's reservation is still there")
	}
}

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
