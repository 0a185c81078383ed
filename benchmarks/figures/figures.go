// Package figures is the form in which every benchmark reports: a table on the
// terminal, a JSON file, and an SVG plot.
package figures

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Figure is one number: the median of Runs measurements of Of, in Unit, that
// lay between Spread[0] and Spread[1].
type Figure struct {
	Value  float64    `json:"value"`
	Unit   string     `json:"unit"`
	Of     string     `json:"of"`
	Spread [2]float64 `json:"spread"`
	Runs   int        `json:"runs"`
}

// Median makes a figure of measurements.
func Median(unit, of string, values []float64) Figure {
	if len(values) == 0 {
		return Figure{Unit: unit, Of: of}
	}
	v := slices.Sorted(slices.Values(values))
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return Figure{m, unit, of, [2]float64{v[0], v[len(v)-1]}, len(v)}
}

// Ratio makes a figure of two sides that were measured in turns, in one run:
// the ratio of their medians, and the spread of the ratios pair by pair.
func Ratio(of string, over, under []float64) Figure {
	n := min(len(over), len(under))
	pairs := make([]float64, n)
	for i := range n {
		pairs[i] = over[i] / under[i]
	}
	f := Median("ratio", of, pairs)
	if n > 0 {
		f.Value = Median("", "", over).Value / Median("", "", under).Value
	}
	return f
}

// Report is what one benchmark found.
type Report struct {
	Figures map[string]Figure `json:"figures"`
	Machine Machine           `json:"machine"`

	order  []string
	limits map[string]string
}

// Machine is where it was measured.
type Machine struct {
	CPU    string    `json:"cpu"`
	Cores  int       `json:"cores"`
	Memory string    `json:"memory"`
	Kernel string    `json:"kernel"`
	Date   time.Time `json:"date"`
	Notes  []string  `json:"notes,omitempty"`
}

// New is an empty report of this machine.
func New(notes ...string) *Report {
	field := func(path, key string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &Report{
		Figures: map[string]Figure{}, limits: map[string]string{},
		Machine: Machine{
			CPU: field("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Memory: field("/proc/meminfo", "MemTotal"),
			Kernel: strings.TrimSpace(string(kernel)), Date: time.Now().UTC().Truncate(time.Second), Notes: notes,
		},
	}
}

// Add records a figure. limit, if not empty, is what was promised of it: "≤ 0.33".
func (r *Report) Add(name string, f Figure, limit string) {
	if _, ok := r.Figures[name]; !ok {
		r.order = append(r.order, name)
	}
	r.Figures[name], r.limits[name] = f, limit
}

// Print writes the table.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FIGURE\tVALUE\tSPREAD\tRUNS\tPROMISED\tOF")
	for _, name := range r.order {
		f := r.Figures[name]
		fmt.Fprintf(t, "%s\t%.4g %s\t%.4g … %.4g\t%d\t%s\t%s\n", name, f.Value, f.Unit, f.Spread[0], f.Spread[1], f.Runs, r.limits[name], f.Of)
	}
	return t.Flush()
}

// Save writes the JSON file.
func (r *Report) Save(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("save figures: %w", err)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("save figures: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
