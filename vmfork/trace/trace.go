package trace

import (
	"sync"
	"time"
)

// Event is something that took time.
type Event struct {
	Name     string         `json:"name"`
	Host     string         `json:"host"`
	Machine  string         `json:"machine,omitempty"` // "" for the host's daemon, or the launcher
	Begin    time.Time      `json:"begin"`             // by the host's clock
	Duration time.Duration  `json:"duration"`          // nanoseconds
	Args     map[string]any `json:"args,omitempty"`    // what else is to be shown
}

// DefaultLimit is how many events are kept unless told otherwise: 20 MB or so.
const DefaultLimit = 100_000

// Collector keeps events. It may be used from many goroutines, and if it is nil,
// too.
type Collector struct {
	host  string
	limit int

	mu      sync.Mutex
	events  []Event
	dropped int64
	ahead   map[string]time.Duration // clocks of other hosts, by name
}

// New makes a collector for what happens on host. limit 0 is DefaultLimit.
func New(host string, limit int) *Collector {
	if limit <= 0 {
		limit = DefaultLimit
	}
	return &Collector{host: host, limit: limit, ahead: map[string]time.Duration{}}
}

// Span is an event that has begun. A nil one ends without an effect.
type Span struct {
	c *Collector
	e Event
}

// Begin begins an event of a machine, or of the daemon if that is "".
func (c *Collector) Begin(name, machine string) *Span {
	if c == nil {
		return nil
	}
	return &Span{c, Event{Name: name, Host: c.host, Machine: machine, Begin: time.Now()}}
}

// Set adds something to be shown with the event. It returns the span.
func (s *Span) Set(key string, value any) *Span {
	if s != nil {
		if s.e.Args == nil {
			s.e.Args = map[string]any{}
		}
		s.e.Args[key] = value
	}
	return s
}

// End ends the event, once.
func (s *Span) End() {
	if s == nil || s.c == nil {
		return
	}
	s.e.Duration = time.Since(s.e.Begin)
	s.c.Add(s.e)
	s.c = nil
}

// Add enters events, of this or of other hosts.
func (c *Collector) Add(events ...Event) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	room := max(0, c.limit-len(c.events))
	if len(events) > room {
		c.dropped += int64(len(events) - room)
		events = events[:room]
	}
	c.events = append(c.events, events...)
}

// Drain takes the events out, for a collector on another host.
func (c *Collector) Drain() []Event {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	events := c.events
	c.events = nil
	return events
}

// Clock says how far a host's clock is ahead of this one's.
func (c *Collector) Clock(host string, ahead time.Duration) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead[host] = ahead
}

// Dropped is how many events were too many.
func (c *Collector) Dropped() int64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}
