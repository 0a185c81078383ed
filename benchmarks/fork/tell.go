package main

import (
	"fmt"
	"slices"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

// A measure is one number of a fork.
type measure func(forked) float64

func pause(f forked) float64   { return ms(f.pause) }
func running(f forked) float64 { return ms(f.running) }
func ready(f forked) float64   { return ms(f.ready) }
func dirtied(f forked) float64 { return float64(f.dirtied) }
func copied(f forked) float64  { return float64(f.copied) / 1e6 }
func state(f forked) float64   { return float64(f.state) }

// each is a measure of some forks of one cell: of the one with that number in
// its VM, or of all of them in the order of the rounds if there is none.
func (b *bench) each(cell string, m measure, number ...int) (values []float64) {
	s := b.samples[cell]
	if s == nil {
		return nil
	}
	for round := range b.rounds {
		for n := range s {
			if len(number) == 0 || slices.Contains(number, n) {
				values = append(values, m(s[n][round]))
			}
		}
	}
	return values
}

// tell makes the report's figures.
func (b *bench) tell() {
	add := func(name, unit, of, limit string, values []float64) {
		if len(values) > 0 {
			b.report.Add(name, figures.Median(unit, of, values), limit)
		}
	}
	add("pause_ms_"+promised.name, "ms", "pause of "+promised.of+" since its last fork, all forks", "≤ 100", b.each(promised.name, pause))
	large, small := newCell(4096<<20, 0).name, newCell(256<<20, 0).name
	if over, under := b.each(large, pause), b.each(small, pause); len(over) > 0 && len(under) > 0 {
		b.report.Add("pause_4096_over_256_0pct", figures.Ratio("pause of a VM of 4096 MB that has written nothing over one of 256 MB, all forks", over, under), "≤ 1.3")
	}
	add("gap_ms_"+promised.name, "ms", "longest time without a line from the VM around its fork", "", b.around)
	add("gap_ms_1024mb_unforked", "ms", fmt.Sprintf("longest time without a line from it in %v before", quiet), "", b.quiet)

	cells := []cell{promised}
	for _, memory := range b.sizes {
		for _, percent := range percents {
			c := newCell(memory, percent)
			cells = append(cells, c)
			add("pause_ms_"+c.name+"_first", "ms", "pause of "+c.of+", first fork", "", b.each(c.name, pause, 0))
			add("pause_ms_"+c.name+"_third", "ms", "pause of "+c.of+" again, third fork", "", b.each(c.name, pause, forks-1))
		}
	}
	for _, m := range []struct {
		name, unit, of string
		measure        measure
	}{
		{"running_ms_", "ms", "from the call until the vCPU of its one child runs", running},
		{"ready_ms_", "ms", "until the child has its identity", ready},
		{"dirtied_pages_", "pages", "written since the last fork, by all of the VM", dirtied},
		{"copied_mb_", "MB", "copied of them after the fork", copied},
		{"state_bytes_", "bytes", "device state in the descriptor", state},
	} {
		for _, c := range cells {
			add(m.name+c.name, m.unit, m.of+": "+c.of+", all forks", "", b.each(c.name, m.measure))
		}
	}
}

// plot draws the times over the size of the VM.
func (b *bench) plot(path string) error {
	p := figures.Plot{Title: "Live fork of a running VM into one child", XLabel: "MB of RAM", YLabel: "milliseconds"}
	for _, side := range []struct {
		name    string
		percent int64
		measure measure
	}{
		{"pause, 0 % written", 0, pause}, {"pause, 10 % written", 10, pause}, {"pause, 50 % written", 50, pause},
		{"child runs, 0 %", 0, running}, {"child runs, 50 %", 50, running},
	} {
		s := figures.Series{Name: side.name}
		for _, memory := range b.sizes {
			f := figures.Median("ms", "", b.each(newCell(memory, side.percent).name, side.measure))
			s.X, s.Y = append(s.X, float64(memory>>20)), append(s.Y, f.Value)
			s.Low, s.High = append(s.Low, f.Spread[0]), append(s.High, f.Spread[1])
		}
		p.Series = append(p.Series, s)
	}
	return p.Save(path)
}
