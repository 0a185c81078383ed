package figures

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAPartReplacesOnlyItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "x.json")
	for _, step := range []struct {
		part  string
		names []string
		note  string
	}{
		{"fetch", []string{"a", "old"}, ""},
		{"bulk", []string{"b"}, "a note"},
		{"fetch", []string{"a"}, ""},
	} {
		r, err := OpenRecord(path, map[string]string{"b": "≤ 3"})
		if err != nil {
			t.Fatal(err)
		}
		r.Begin(step.part, step.note)
		for _, name := range step.names {
			r.Add(name, Median("ms", step.part, []float64{1, 2, 3}))
		}
		if err := r.Save(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenRecord(path, map[string]string{"b": "≤ 3"})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.kept) != 2 || r.kept["a"].Part != "fetch" || r.kept["b"].Part != "bulk" || r.kept["b"].Value != 2 {
		t.Errorf("the file has %v", r.kept)
	}
	if len(r.notes) != 2 || !strings.HasSuffix(r.notes["bulk"], "; a note") {
		t.Errorf("the file has the notes %q", r.notes)
	}
	if f := r.Figure("b"); f.Value != 2 {
		t.Errorf("b is %v", f)
	}
	var table bytes.Buffer
	if err := r.Print(&table, []string{"bulk"}); err != nil {
		t.Fatal(err)
	}
	if s := table.String(); !strings.Contains(s, "\nb ") || !strings.Contains(s, "≤ 3") || strings.Contains(s, "\na ") {
		t.Errorf("the table of bulk is\n%s", s)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRecord(path, map[string]string{"b": "≤ 3"}); err == nil {
		t.Error("a damaged file was read")
	}
}

func TestPartsAreMeasuredInTheirOrder(t *testing.T) {
	var measured []string
	part := func(name string, usual bool, err error) Part {
		return Part{name, usual, func(context.Context) error { measured = append(measured, name); return err }}
	}
	all := Parts{part("a", true, nil), part("b", true, nil), part("long", false, nil), part("bad", false, errors.New("why"))}
	if all.Usual() != "a,b" {
		t.Errorf("usual are %q", all.Usual())
	}
	if _, err := all.Choose("a,c"); err == nil {
		t.Error("a part was chosen that there is not")
	}
	chosen, err := all.Choose("bad,long,a")
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRecord(filepath.Join(t.TempDir(), "x.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Measure(t.Context(), chosen, "", t.Logf); err == nil || err.Error() != "bad: why" || !slices.Equal(measured, []string{"a", "long", "bad"}) {
		t.Errorf("%v were measured, %v", measured, err)
	}
}
