package figures

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
)

// Record is the report of a benchmark in parts, of which one run may measure only some. What its file has of the others
// stays.
type Record struct {
	path     string
	promises map[string]string
	part     string
	kept     map[string]kept   // figures of the file and of this run
	notes    map[string]string // by part
	report   *Report           // of this machine
}

// kept is a figure and the part that it belongs to.
type kept struct {
	Figure
	Part string `json:"part"`
}

// file is the file of a record: the form of all benchmarks, and beside each figure the part that measured it.
type file struct {
	Figures map[string]kept `json:"figures"`
	Machine Machine         `json:"machine"`
}

// OpenRecord reads the file at path, if there is one. promises are what the specification says of figures, by name: "≤ 1.5".
func OpenRecord(path string, promises map[string]string) (*Record, error) {
	r := &Record{path: path, promises: promises, kept: map[string]kept{}, notes: map[string]string{}, report: New()}
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

// Begin begins a part. What the file had of it goes. note, if not empty, is what is to be known of this run.
func (r *Record) Begin(part, note string) {
	r.part = part
	maps.DeleteFunc(r.kept, func(_ string, k kept) bool { return k.Part == part })
	load, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(load))
	r.notes[part] = fmt.Sprintf("%s: measured %s, load averages before it %s", part, time.Now().UTC().Format(time.DateTime), strings.Join(fields[:min(3, len(fields))], " "))
	if note != "" {
		r.notes[part] += "; " + note
	}
}

// Add records a figure of the part.
func (r *Record) Add(name string, f Figure) { r.kept[name] = kept{f, r.part} }

// Figure is a figure of the file or of this run, and 0 of one that is in neither.
func (r *Record) Figure(name string) Figure { return r.kept[name].Figure }

// Save writes the file.
func (r *Record) Save() error {
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

// Print writes the table of some parts, with what was promised first.
func (r *Record) Print(w io.Writer, parts []string) error {
	for _, promised := range []bool{true, false} {
		for _, name := range slices.Sorted(maps.Keys(r.kept)) {
			k := r.kept[name]
			if (r.promises[name] != "") == promised && slices.Contains(parts, k.Part) {
				r.report.Add(name, k.Figure, r.promises[name])
			}
		}
	}
	return r.report.Print(w)
}
