package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// results are what mpich-suite.json has.
type results struct {
	MPICH   string          `json:"mpich"`
	Machine figures.Machine `json:"machine"`
	Entries []result        `json:"entries"`
}

// result is what came of an entry on all sides.
type result struct {
	Name           string             `json:"name"`
	Folder         string             `json:"folder"`
	ExpectedToFail string             `json:"expected_to_fail,omitempty"`
	Sides          map[string]outcome `json:"sides"`
}

// loadResults reads what earlier runs have found of the entries that there are.
func loadResults(path string, entries []entry) (*results, error) {
	r := &results{MPICH: mpich.Version + ", " + mpich.Device, Machine: figures.New().Machine}
	var before results
	switch data, err := os.ReadFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(data, &before); err != nil {
			return nil, fmt.Errorf("%s is not from this program, move it away: %w", path, err)
		}
	}
	had := map[string]map[string]outcome{}
	if before.MPICH == r.MPICH {
		for _, e := range before.Entries {
			had[e.Name] = e.Sides
		}
	}
	for _, e := range entries {
		one := result{e.name(), e.Folder, e.ExpectedToFail, map[string]outcome{}}
		for side, o := range had[one.Name] {
			one.Sides[side] = o
		}
		r.Entries = append(r.Entries, one)
	}
	return r, nil
}

// save writes them.
func (r *results) save(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// add keeps what came of an entry on a side.
func (r *results) add(entry, side string, o outcome) {
	for _, e := range r.Entries {
		if e.Name == entry {
			e.Sides[side] = o
		}
	}
}

// passed counts the entries that ran on both sides, and how many of them passed on each.
func (r *results) passed(one, other string, of func(result) bool) (both, ones, others int) {
	for _, e := range r.Entries {
		a, ran := e.Sides[one]
		b, ranToo := e.Sides[other]
		if !ran || !ranToo || !of(e) {
			continue
		}
		both++
		if a.Passed {
			ones++
		}
		if b.Passed {
			others++
		}
	}
	return both, ones, others
}

// sidesOf are those of all that have results.
func (r *results) sidesOf(all []side) (have []side) {
	for _, s := range all {
		for _, e := range r.Entries {
			if _, ok := e.Sides[s.name]; ok {
				have = append(have, s)
				break
			}
		}
	}
	return have
}

// heading is where the part of the document begins that is written by this program.
const heading = "## Results\n"

// document replaces the results in the document at path.
func (r *results) document(path string, all []side) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, _, ok := strings.Cut(string(text), heading)
	if !ok {
		return fmt.Errorf("%s has no line %q, after which results belong", path, strings.TrimSpace(heading))
	}
	return os.WriteFile(path, []byte(before+heading+"\n"+r.markdown(r.sidesOf(all))), 0o644)
}

// markdown is the results as tables: how many passed, where the sides differ, what passes nowhere.
func (r *results) markdown(sides []side) string {
	var b strings.Builder
	fmt.Fprintf(&b, "MPICH %s, on %d cores (%s), %s.\n\n", r.MPICH, r.Machine.Cores, r.Machine.CPU, r.Machine.Date.Format("2006-01-02"))
	for _, s := range sides {
		fmt.Fprintf(&b, "- **%s**: %s\n", s.name, s.about)
	}
	row := func(first string, cell func(side) string) {
		b.WriteString("| " + first + " |")
		for _, s := range sides {
			b.WriteString(" " + cell(s) + " |")
		}
		b.WriteString("\n")
	}
	head := func(first string) {
		row(first, func(s side) string { return s.name })
		row("---", func(side) string { return "---" })
	}
	b.WriteString("\n### Entries that pass\n\n")
	head("folder")
	count := func(title, folder string) {
		row(title, func(s side) string {
			ran, passed := 0, 0
			for _, e := range r.Entries {
				if o, ok := e.Sides[s.name]; ok && (folder == "" || e.Folder == folder) {
					ran++
					if o.Passed {
						passed++
					}
				}
			}
			return fmt.Sprintf("%d of %d", passed, ran)
		})
	}
	seen := map[string]bool{}
	for _, e := range r.Entries {
		if !seen[e.Folder] {
			seen[e.Folder] = true
			count("`"+e.Folder+"`", e.Folder)
		}
	}
	count("all", "")
	table := func(title, none string, of func(e result, passed, failed int) bool) {
		fmt.Fprintf(&b, "\n### %s\n\n", title)
		any := false
		for _, e := range r.Entries {
			passed, failed := 0, 0
			for _, s := range sides {
				if o, ok := e.Sides[s.name]; ok && o.Passed {
					passed++
				} else if ok {
					failed++
				}
			}
			if !of(e, passed, failed) {
				continue
			}
			if !any {
				any = true
				head("entry")
			}
			name := "`" + e.Name + "`"
			if e.ExpectedToFail != "" {
				name += " (" + e.ExpectedToFail + ")"
			}
			row(name, func(s side) string { return e.cell(s.name) })
		}
		if !any {
			b.WriteString(none + "\n")
		}
	}
	table("Differences", "There are none.", func(_ result, passed, failed int) bool { return passed > 0 && failed > 0 })
	table("Entries that pass nowhere", "There are none.", func(_ result, passed, failed int) bool { return passed == 0 && failed > 0 })
	b.WriteString("\nA name in parentheses is the ticket under which MPICH's authors expect an entry to fail.\n")
	return b.String()
}

// cell is what a table says of an entry on a side.
func (e result) cell(side string) string {
	o, ok := e.Sides[side]
	switch {
	case !ok:
		return "not run"
	case o.Passed:
		return "passes"
	}
	what := strings.NewReplacer("|", "\\|", "<", "&lt;", "\n", " ").Replace(o.Wrong)
	if o.Failed < o.Runs {
		what = fmt.Sprintf("%d of %d runs fail: %s", o.Failed, o.Runs, what)
	}
	return what
}
