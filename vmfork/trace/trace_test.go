package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
)

var begin = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func at(ms, took int, host, machine, name string) Event {
	return Event{Name: name, Host: host, Machine: machine, Begin: begin.Add(time.Duration(ms) * time.Millisecond), Duration: time.Duration(took) * time.Millisecond}
}

// read is what a viewer reads.
func read(t *testing.T, c *Collector) (other map[string]string, events []record) {
	t.Helper()
	var text bytes.Buffer
	if err := c.Write(&text); err != nil {
		t.Fatal(err)
	}
	var file struct {
		DisplayTimeUnit string
		OtherData       map[string]string
		TraceEvents     []record
	}
	d := json.NewDecoder(&text)
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil || file.DisplayTimeUnit != "ms" {
		t.Fatalf("%v: %+v", err, file)
	}
	return file.OtherData, file.TraceEvents
}

// picture is a trace in words: for each event, row: name begin+duration.
func picture(events []record) (lines []string) {
	host, row := map[int]string{}, map[string]string{}
	for _, e := range events {
		name, _ := e.Args["name"].(string)
		key := fmt.Sprint(e.PID, " ", e.TID)
		switch {
		case e.Name == "process_name":
			host[e.PID] = name
		case e.Name == "thread_name":
			row[key] = name
		case e.Phase == "X":
			lines = append(lines, fmt.Sprintf("%s/%s: %s %g+%g", host[e.PID], row[key], e.Name, e.Time/1000, *e.Took/1000))
		}
	}
	return lines
}

func TestPicture(t *testing.T) {
	c := New("h1", 0)
	c.Add(
		at(10, 100, "h1", "", "prepare"),
		at(20, 50, "h1", "", "boot"),       // in it
		at(50, 100, "h1", "", "other"),     // across both
		at(110, 5, "h1", "", "after"),      // behind prepare
		at(1030, 20, "h2", "clone-1", "a"), // a clock that is ahead
		at(1035, 5, "h2", "clone-1", "b"),
		at(1041, 0, "h2", "clone-2", "moment"),
	)
	c.Clock("h2", time.Second)
	c.Clock("h3", time.Hour)
	other, events := read(t, c)
	if other["dropped"] != "0" || other["clock"] != "of host h1" {
		t.Errorf("%v", other)
	}
	want := `host h1/daemon: prepare 0+100
host h1/daemon: boot 10+50
host h2/clone-1: a 20+20
host h2/clone-1: b 25+5
host h2/clone-2: moment 31+0
host h1/daemon (2): other 40+100
host h1/daemon: after 100+5`
	if got := strings.Join(picture(events), "\n"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestRowsNestOrFollow(t *testing.T) {
	c := New("h", 0)
	for i := range 300 {
		c.Add(at(i*7%101, i*13%37, "h", "m", "x"))
	}
	_, events := read(t, c)
	rows := map[int][]record{}
	for _, e := range events {
		if e.Phase == "X" {
			rows[e.TID] = append(rows[e.TID], e)
		}
	}
	if len(rows) < 2 {
		t.Error("all is on one row")
	}
	for tid, row := range rows {
		for i, a := range row {
			for _, b := range row[i+1:] {
				if endA, endB := a.Time+*a.Took, b.Time+*b.Took; b.Time < endA && endB > endA {
					t.Fatalf("row %d: %g+%g overlaps %g+%g", tid, a.Time, *a.Took, b.Time, *b.Took)
				}
			}
		}
	}
}

func TestSpans(t *testing.T) {
	var none *Collector
	none.Begin("x", "").Set("a", 1).End()
	none.Add(Event{})
	none.Clock("h", 1)
	if none.Drain() != nil || none.Dropped() != 0 || none.Write(nil) != nil {
		t.Error("no collector collects")
	}
	c := New("h", 3)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			s := c.Begin("boot", "m").Set("pages", 7)
			s.End()
			s.End()
		})
	}
	all.Wait()
	if c.Dropped() != 2 {
		t.Errorf("%d of 5 were too many for 3", c.Dropped())
	}
	events := c.Drain()
	if len(events) != 3 || events[0].Name != "boot" || events[0].Host != "h" || events[0].Machine != "m" || events[0].Args["pages"] != 7 || events[0].Duration < 0 {
		t.Errorf("%+v", events)
	}
	// Over a link.
	text, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	var arrived []Event
	if err := json.Unmarshal(text, &arrived); err != nil || !arrived[0].Begin.Equal(events[0].Begin) || arrived[0].Duration != events[0].Duration {
		t.Errorf("%v: %+v became %+v", err, events[0], arrived[0])
	}
}

func TestOddEvents(t *testing.T) {
	c := New("a\"\xff\n", 0)
	c.Add(Event{}, at(0, -5, "h", "", "back"))
	odd := at(0, 1, "h", "\x00", "<script>\xfe")
	odd.Args = map[string]any{"f": math.NaN()}
	c.Add(odd)
	_, events := read(t, c)
	n := 0
	for _, e := range events {
		if e.Phase == "X" {
			n++
			if *e.Took < 0 {
				t.Errorf("%+v", e)
			}
		}
	}
	if n != 3 {
		t.Errorf("%d of 3 events", n)
	}
	if _, events := read(t, New("h", 0)); len(events) != 0 {
		t.Errorf("an empty trace has %v", events)
	}
	if err := c.Write(full{}); err == nil {
		t.Error("a full disk was not seen")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }
