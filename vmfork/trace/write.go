package trace

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
)

// record is an event of the Trace Event Format, in the few kinds that are used
// here: X, a complete event, and M, a name.
type record struct {
	Name  string         `json:"name"`
	Phase string         `json:"ph"`
	Time  float64        `json:"ts"` // microseconds
	Took  *float64       `json:"dur,omitempty"`
	PID   int            `json:"pid"` // the host
	TID   int            `json:"tid"` // the machine
	Args  map[string]any `json:"args,omitempty"`
}

// row is a line of the picture: events of one machine of one host, of which any
// two are one after the other or one in the other, for nothing else can be
// drawn on one line.
type row struct {
	tid  int
	open []time.Time // ends of the events that contain the next one, outermost first
}

// Write writes what was collected as JSON, the times from the first event on, by
// this host's clock.
func (c *Collector) Write(w io.Writer) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	events, ahead, dropped := slices.Clone(c.events), maps.Clone(c.ahead), c.dropped
	c.mu.Unlock()
	for i := range events {
		e := &events[i]
		e.Begin = e.Begin.Add(-ahead[e.Host])
		e.Duration = max(0, e.Duration)
	}
	// What contains another comes before it.
	slices.SortStableFunc(events, func(a, b Event) int {
		return cmp.Or(a.Begin.Compare(b.Begin), cmp.Compare(b.Duration, a.Duration))
	})
	out := bufio.NewWriter(w)
	about, err := json.Marshal(map[string]string{"clock": "of host " + c.host, "dropped": strconv.FormatInt(dropped, 10)})
	if err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	fmt.Fprintf(out, `{"displayTimeUnit":"ms","otherData":%s,"traceEvents":[`, about)
	separator := "\n"
	put := func(r record) error {
		text, err := json.Marshal(r)
		if err != nil { // of the caller's arguments, the only thing that is not known to be right
			r.Args = map[string]any{"error": err.Error()}
			if text, err = json.Marshal(r); err != nil {
				return err
			}
		}
		out.WriteString(separator)
		separator = ",\n"
		_, err = out.Write(text)
		return err
	}
	if err := draw(events, c.host, put); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	out.WriteString("\n]}\n")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	return nil
}

// draw turns events into records: names of hosts and machines as they first
// appear, this host first.
func draw(events []Event, self string, put func(record) error) error {
	if len(events) == 0 {
		return nil
	}
	origin := events[0].Begin
	micros := func(d time.Duration) float64 { return math.Round(float64(d)/10) / 100 }
	type of struct{ host, machine string }
	pids, rows, next := map[string]int{self: 1}, map[of][]*row{}, map[string]int{}
	named := map[string]bool{}
	for _, e := range events {
		pid, ok := pids[e.Host]
		if !ok {
			pid = len(pids) + 1
			pids[e.Host] = pid
		}
		if !named[e.Host] {
			named[e.Host] = true
			if err := nameProcess(put, pid, e.Host); err != nil {
				return err
			}
		}
		lines := rows[of{e.Host, e.Machine}]
		r := fitting(lines, e)
		if r == nil {
			next[e.Host]++
			r = &row{tid: next[e.Host], open: []time.Time{e.Begin.Add(e.Duration)}}
			rows[of{e.Host, e.Machine}] = append(lines, r)
			if err := nameThread(put, pid, r.tid, e.Machine, len(lines)); err != nil {
				return err
			}
		}
		took := micros(e.Duration)
		if err := put(record{e.Name, "X", micros(e.Begin.Sub(origin)), &took, pid, r.tid, e.Args}); err != nil {
			return err
		}
	}
	return nil
}

// fitting finds a row for an event that begins no earlier than those before it.
func fitting(rows []*row, e Event) *row {
	end := e.Begin.Add(e.Duration)
	for _, r := range rows {
		for len(r.open) > 0 && !r.open[len(r.open)-1].After(e.Begin) {
			r.open = r.open[:len(r.open)-1]
		}
		if len(r.open) == 0 || !end.After(r.open[len(r.open)-1]) {
			r.open = append(r.open, end)
			return r
		}
	}
	return nil
}

func nameProcess(put func(record) error, pid int, host string) error {
	err := put(record{Name: "process_name", Phase: "M", PID: pid, Args: map[string]any{"name": "host " + host}})
	if err == nil {
		err = put(record{Name: "process_sort_index", Phase: "M", PID: pid, Args: map[string]any{"sort_index": pid}})
	}
	return err
}

func nameThread(put func(record) error, pid, tid int, machine string, already int) error {
	name := cmp.Or(machine, "daemon")
	if already > 0 {
		name = fmt.Sprintf("%s (%d)", name, already+1)
	}
	sort := tid
	if machine == "" {
		sort = tid - 1<<20 // above the machines
	}
	err := put(record{Name: "thread_name", Phase: "M", PID: pid, TID: tid, Args: map[string]any{"name": name}})
	if err == nil {
		err = put(record{Name: "thread_sort_index", Phase: "M", PID: pid, TID: tid, Args: map[string]any{"sort_index": sort}})
	}
	return err
}
