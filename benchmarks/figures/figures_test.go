package figures

import (
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestMedianAndRatio(t *testing.T) {
	if f := Median("ms", "x", []float64{9, 1, 5}); f.Value != 5 || f.Spread != [2]float64{1, 9} || f.Runs != 3 {
		t.Errorf("%+v", f)
	}
	if f := Median("ms", "x", []float64{1, 2, 3, 10}); f.Value != 2.5 {
		t.Errorf("%+v", f)
	}
	f := Ratio("x", []float64{2, 4, 6}, []float64{1, 2, 4})
	if f.Value != 2 || f.Spread != [2]float64{1.5, 2} || f.Runs != 3 {
		t.Errorf("%+v", f)
	}
}

func TestSaveKeepsTheFormThatBenchmarksShare(t *testing.T) {
	r := New("a note")
	r.Add("a_over_b", Median("ratio", "a over b", []float64{0.5}), "≤ 1")
	path := filepath.Join(t.TempDir(), "results", "x.json")
	if err := r.Save(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Figures map[string]map[string]any
		Machine map[string]any
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"value", "unit", "of", "spread", "runs"} {
		if _, ok := got.Figures["a_over_b"][key]; !ok {
			t.Errorf("%s is missing", key)
		}
	}
	if got.Machine["cores"] == nil {
		t.Error("the machine is missing")
	}
}

func TestPlotIsWellFormed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.svg")
	p := Plot{Title: "a < b & c", Series: []Series{{Name: "one", X: []float64{1, 2, 4}, Y: []float64{3, 5, 20}, Low: []float64{2, 5, 11}, High: []float64{4, 6, 200}}}}
	if err := p.Save(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
