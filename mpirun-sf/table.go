package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

// table is text in columns.
type table struct {
	indent string
	head   []column
	rows   [][]string
}

type column struct {
	name  string
	right bool // numbers
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// lines is the table with its head, no line longer than width, 0 for any.
func (t *table) lines(width int) []string {
	names := make([]string, len(t.head))
	for i, c := range t.head {
		names[i] = c.name
	}
	all := append([][]string{names}, t.rows...)
	widths := make([]int, len(t.head))
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var lines []string
	for _, row := range all {
		var b strings.Builder
		b.WriteString(t.indent)
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				b.WriteString("  ")
			}
			if t.head[i].right {
				b.WriteString(pad + cell)
			} else {
				b.WriteString(cell + pad)
			}
		}
		lines = append(lines, cut(strings.TrimRight(b.String(), " "), width))
	}
	return lines
}

// cut shortens a line to width characters, 0 for any.
func cut(line string, width int) string {
	if width > 0 && utf8.RuneCountInString(line) > width {
		return string([]rune(line)[:width])
	}
	return line
}

// plain takes out what is not for a terminal: names come from users.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return cut(s, 100)
}

// size is bytes in three digits or so.
func size(n int64) string {
	units := "BKMGTPE"
	f, i := float64(n), 0
	for f >= 999.5 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if i > 0 && f < 9.95 {
		return fmt.Sprintf("%.1f%c", f, units[i])
	}
	return fmt.Sprintf("%.0f%c", f, units[i])
}

// age is a time in two units.
func age(d time.Duration) string {
	s := int64(max(0, d) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// machineColumns are what is told of a machine.
var machineColumns = []column{
	{"MACHINE", false}, {"HOST", false}, {"IP", false}, {"VCPUS", true}, {"CPU%", true},
	{"TOUCHED", true}, {"OWN", true}, {"FAULTS/S", true}, {"STATE", false},
}

func machineCells(m metrics.Machine, r metrics.Rate) []string {
	ip := "-"
	if m.IP.IsValid() {
		ip = m.IP.String()
	}
	return []string{
		plain(m.Name), plain(m.Host), ip, fmt.Sprint(m.VCPUs), fmt.Sprintf("%.1f", 100*r.CPU),
		size(m.Touched), size(m.Own), fmt.Sprintf("%.1f", r.Faults), plain(m.State),
	}
}

// silentHosts says which hosts of a job do not answer.
func silentHosts(s metrics.State) (lines []string) {
	for _, h := range s.Hosts {
		if !h.Up {
			line := fmt.Sprintf("%s: host %s does not answer", plain(s.Job), plain(h.Name))
			if h.Reason != "" {
				line += ": " + plain(h.Reason)
			}
			lines = append(lines, line)
		}
	}
	return lines
}
