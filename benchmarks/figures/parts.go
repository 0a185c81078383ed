package figures

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Part is what can be measured alone.
type Part struct {
	Name    string
	Usual   bool // measured where none is named
	Measure func(context.Context) error
}

// Parts are those of a benchmark, in the order in which they are measured.
type Parts []Part

// Usual is the value of an option for parts that names those that are usual: "fetch,bulk".
func (p Parts) Usual() string {
	var names []string
	for _, part := range p {
		if part.Usual {
			names = append(names, part.Name)
		}
	}
	return strings.Join(names, ",")
}

// Names names all of them: "fetch, bulk, hang".
func (p Parts) Names() string {
	var names []string
	for _, part := range p {
		names = append(names, part.Name)
	}
	return strings.Join(names, ", ")
}

// Choose are those parts that are named, parted by commas.
func (p Parts) Choose(names string) (chosen Parts, err error) {
	wanted := strings.Split(names, ",")
	for _, name := range wanted {
		if !slices.ContainsFunc(p, func(part Part) bool { return part.Name == name }) {
			return nil, fmt.Errorf("-part %s: there is no part %q", names, name)
		}
	}
	for _, part := range p {
		if slices.Contains(wanted, part.Name) {
			chosen = append(chosen, part)
		}
	}
	return chosen, nil
}

// Measure measures parts, keeps each one whatever becomes of the next, and writes the table of all of them to stdout.
func (r *Record) Measure(ctx context.Context, parts Parts, note string, progress func(format string, args ...any)) error {
	var names []string
	for _, p := range parts {
		began := time.Now()
		r.Begin(p.Name, note)
		if err := p.Measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		if err := r.Save(); err != nil {
			return err
		}
		names = append(names, p.Name)
		progress("%s took %v", p.Name, time.Since(began).Round(time.Second))
	}
	return r.Print(os.Stdout, names)
}
