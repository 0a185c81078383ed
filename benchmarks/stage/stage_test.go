package stage

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

// command is the command line of a benchmark, until the test ends.
func command(t *testing.T, args ...string) {
	t.Helper()
	flags, was := flag.CommandLine, os.Args
	t.Cleanup(func() { flag.CommandLine, os.Args = flags, was })
	flag.CommandLine, os.Args = flag.NewFlagSet("bench", flag.PanicOnError), append([]string{"bench"}, args...)
}

func TestRunParts(t *testing.T) {
	out := t.TempDir()
	command(t, "-out", out, "-part", "rare", "-note", "so it was", "-bin", "here")
	s := New("some")
	s.KeepCache()
	var tmp string
	part := func(name string) figures.Part {
		return figures.Part{Name: name, Usual: name == "usual", Measure: func(context.Context) error {
			if _, err := os.Stat(s.Tmp); err != nil || s.Cache != filepath.Join(s.Tmp, "cache") || !filepath.IsAbs(s.Binary) {
				t.Errorf("%s is measured with %+v: %v", name, *s, err)
			}
			tmp = s.Tmp
			s.Record.Add("of_"+name, figures.Median("s", name, []float64{1}))
			return nil
		}}
	}
	ready := false
	s.RunParts(figures.Parts{part("usual"), part("rare")}, nil, func() error { ready = true; return nil })
	if _, err := os.Stat(tmp); !ready || tmp == "" || err == nil {
		t.Errorf("ready: %v; %s is left: %v", ready, tmp, err)
	}
	r, err := os.ReadFile(filepath.Join(out, "some.json"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"of_rare": true, "of_usual": false, "; so it was": true} {
		if found := bytes.Contains(r, []byte(text)); found != want {
			t.Errorf("%q is in the results: %v\n%s", text, found, r)
		}
	}
}

func TestReport(t *testing.T) {
	out := t.TempDir()
	command(t, "-out", out, "-note", "so it was")
	s := New("some")
	s.Run(func(context.Context) error {
		r := s.NewReport("quiet")
		r.Add("a", figures.Median("s", "a thing", []float64{1}), "≤ 2")
		return s.Report(r, func(path string) error { return os.WriteFile(path, nil, 0o644) })
	})
	r, err := os.ReadFile(filepath.Join(out, "some.json"))
	if err != nil || !bytes.Contains(r, []byte("quiet")) || !bytes.Contains(r, []byte("so it was")) {
		t.Errorf("%v\n%s", err, r)
	}
	if _, err := os.Stat(filepath.Join(out, "some.svg")); err != nil {
		t.Error(err)
	}
}
