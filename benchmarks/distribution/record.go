package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

// promises are what the specification says of figures.
var promises = map[string]string{
	"descriptor_8_over_1_hosts":     "≤ 1.5",
	"wire_bytes_multicast_8_over_1": "≤ 1.3",
	"fetch_us_p50_unicast":          "< 400",
	"rate_over_link":                "≥ 0.8",
	"loss5_over_loss0":              "≤ 1.5",
	"over_udpcast":                  "≥ 1",
	"hang_rate":                     "0",
}

// record is the report of all parts, of which one run may measure only some. What the file has of the others stays.
type record struct {
	path   string
	part   string
	kept   map[string]kept   // figures of the file and of this run
	notes  map[string]string // by part
	report *figures.Report   // of this machine
}

// kept is a figure and the part that it belongs to.
type kept struct {
	figures.Figure
	Part string `json:"part"`
}

// file is distribution.json: the form of all benchmarks, and beside each figure the part that measured it.
type file struct {
	Figures map[string]kept `json:"figures"`
	Machine figures.Machine `json:"machine"`
}

// openRecord reads the file at path, if there is one.
func openRecord(path string) (*record, error) {
	r := &record{path: path, kept: map[string]kept{}, notes: map[string]string{}, report: figures.New()}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s is not from this benchmark, move it away: %w", path, err)
	}
	maps.Copy(r.kept, f.Figures)
	for _, note := range f.Machine.Notes {
		if part, _, ok := strings.Cut(note, ": "); ok {
			r.notes[part] = note
		}
	}
	return r, nil
}

// begin begins a part. What the file had of it goes.
func (r *record) begin(part, note string) {
	r.part = part
	maps.DeleteFunc(r.kept, func(_ string, k kept) bool { return k.Part == part })
	load, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(load))
	r.notes[part] = fmt.Sprintf("%s: measured %s, load averages before it %s", part, time.Now().UTC().Format(time.DateTime), strings.Join(fields[:min(3, len(fields))], " "))
	if note != "" {
		r.notes[part] += "; " + note
	}
}

// add records a figure of the part.
func (r *record) add(name string, f figures.Figure) { r.kept[name] = kept{f, r.part} }

// save writes the file.
func (r *record) save() error {
	r.report.Machine.Notes = slices.Sorted(maps.Values(r.notes))
	data, err := json.MarshalIndent(file{r.kept, r.report.Machine}, "", "  ")
	if err != nil {
		return fmt.Errorf("save figures: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return fmt.Errorf("save figures: %w", err)
	}
	return os.WriteFile(r.path, append(data, '\n'), 0o644)
}

// print writes the table of some parts.
func (r *record) print(w io.Writer, parts []string) error {
	for _, promised := range []bool{true, false} {
		for _, name := range slices.Sorted(maps.Keys(r.kept)) {
			k := r.kept[name]
			if (promises[name] != "") == promised && slices.Contains(parts, k.Part) {
				r.report.Add(name, k.Figure, promises[name])
			}
		}
	}
	return r.report.Print(w)
}
