package metrics

import (
	"context"
	"net/netip"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
)

// Source tells the state of a job. State may be called from many goroutines, and
// should answer without a host that does not, before ctx ends.
type Source interface {
	State(ctx context.Context) (State, error)
}

// SourceFunc is a Source that is a function.
type SourceFunc func(ctx context.Context) (State, error)

// State calls f.
func (f SourceFunc) State(ctx context.Context) (State, error) { return f(ctx) }

// State is what a job is and does at one moment. Bytes and counts are of the
// job since its beginning; times are in seconds in the JSON.
type State struct {
	Job     string    `json:"job"`
	Version string    `json:"version"` // of mpirun-sf
	User    string    `json:"user"`    // whose it is
	Command []string  `json:"command"`
	Ranks   int       `json:"ranks"` // 0 for a virtual machine of vm run
	Began   time.Time `json:"began"`
	Taken   time.Time `json:"taken"` // when this was so

	Hosts    []Host    `json:"hosts"` // the coordinator's is the first
	Machines []Machine `json:"machines"`

	Pauses Distribution `json:"fork_pauses"` // how long machines stood still to be forked
}

// Host is one that carries machines of the job.
type Host struct {
	Name     string     `json:"name"`
	Address  netip.Addr `json:"address,omitzero"` // towards the others; none on a job of one host
	Up       bool       `json:"up"`               // it answers: always so of the coordinator's own
	Reason   string     `json:"reason,omitempty"` // why not
	Trip     Seconds    `json:"round_trip"`       // of a question to its daemon, 0: it is the coordinator's, or not known
	CPUs     int        `json:"cpus"`
	Reserved int64      `json:"reserved"` // bytes, for clones

	Memory Paging `json:"memory"`
	Disks  Paging `json:"disks"`
	Copied int64  `json:"copied"` // bytes of pages that machines had written when they were forked
	Moved  Moved  `json:"moved"`
}

// Machine is one of a job's.
type Machine struct {
	Member int        `json:"member"` // its number on the private network; 0 is the parent
	Name   string     `json:"name"`
	Host   string     `json:"host"` // that carries it
	IP     netip.Addr `json:"ip,omitzero"`
	VCPUs  int        `json:"vcpus"`
	State  string     `json:"state"` // one of the States
	Began  time.Time  `json:"began,omitzero"`

	CPU     Seconds `json:"cpu"`     // processor time of its hypervisor
	Memory  int64   `json:"memory"`  // bytes of RAM
	Touched int64   `json:"touched"` // bytes of it that are here
	Own     int64   `json:"own"`     // bytes of them that it has for itself alone: it has written them
	Faults  int64   `json:"faults"`  // reads of its memory and disk that memtap answered
}

// The states of a machine.
const (
	Starting = "starting"
	Running  = "running"
	Forking  = "forking"
	Ending   = "ending"
)

// Paging is what memtap did for a host's machines.
type Paging struct {
	Reads      int64 `json:"reads"`
	Served     int64 `json:"served"`       // bytes answered
	Fetched    int64 `json:"fetched"`      // bytes read from slices for reads
	Far        int64 `json:"far"`          // bytes brought from another host for them
	Ahead      int64 `json:"ahead"`        // bytes brought before anybody waited
	Pushed     int64 `json:"pushed"`       // bytes put into the page cache before anybody waited
	ZeroBlocks int64 `json:"zero_blocks"`  // answered without a slice
	OwnBlocks  int64 `json:"local_blocks"` // of a disk, read from what the machine wrote itself
	Writes     int64 `json:"writes"`
	Written    int64 `json:"written"` // bytes
	Errors     int64 `json:"errors"`

	Latency Distribution `json:"latency"` // of reads
}

// PagingOf is what memtap counted.
func PagingOf(c memtap.Counters) Paging {
	p := Paging{
		Reads: c.Reads, Served: c.BytesServed, Fetched: c.BytesFetched, Far: c.BytesFar, Ahead: c.BytesAhead,
		Pushed: c.BytesPushed, ZeroBlocks: c.ZeroBlocks, OwnBlocks: c.LocalBlocks, Writes: c.Writes, Written: c.BytesWritten, Errors: c.Errors,
	}
	for i, n := range c.Latency {
		// Of those below 2^i µs the middle is between that and its half.
		p.Latency.add(readBounds[i], readBounds[i]*3/4, n)
	}
	return p
}

// readBounds are those of memtap's histogram.
var readBounds = func() (all []time.Duration) {
	for i := range (memtap.Histogram{}) {
		all = append(all, time.Microsecond<<i)
	}
	return all
}()

// Moved is what mcdist did between hosts.
type Moved struct {
	Traffic    []Traffic `json:"traffic"`
	Duplicates int64     `json:"duplicates"` // blocks that came and were there
	Requests   int64     `json:"requests"`
	Refused    int64     `json:"refused"`
	Redials    int64     `json:"redials"`
	Fallbacks  int64     `json:"fallbacks"`
	Repairs    int64     `json:"repairs"`
}

// Traffic is what went one way for one purpose.
type Traffic struct {
	Way      string `json:"way"`     // "unicast", "tree" or "multicast"
	Purpose  string `json:"purpose"` // "urgent", "bulk" or "objects"
	Sent     Amount `json:"sent"`
	Received Amount `json:"received"`
}

// Amount is how much.
type Amount struct {
	Packets int64 `json:"packets"`
	Bytes   int64 `json:"bytes"`
	Blocks  int64 `json:"blocks"`
}

// MovedOf is what mcdist counted.
func MovedOf(c mcdist.Counters) Moved {
	m := Moved{
		Duplicates: c.Duplicates, Requests: c.Requests.Urgent + c.Requests.Bulk + c.Requests.Objects,
		Refused: c.Refused, Redials: c.Redials, Fallbacks: c.Fallbacks, Repairs: c.Repairs,
	}
	for way := range mcdist.Ways {
		sent, received := c.Sent[way], c.Received[way]
		for _, one := range []struct {
			purpose        string
			sent, received mcdist.Traffic
		}{
			{"urgent", sent.Urgent, received.Urgent},
			{"bulk", sent.Bulk, received.Bulk},
			{"objects", sent.Objects, received.Objects},
		} {
			if one.sent != (mcdist.Traffic{}) || one.received != (mcdist.Traffic{}) {
				m.Traffic = append(m.Traffic, Traffic{way.String(), one.purpose, Amount(one.sent), Amount(one.received)})
			}
		}
	}
	return m
}

// Machine finds one by its number.
func (s State) machine(member int) (Machine, bool) {
	for _, m := range s.Machines {
		if m.Member == member {
			return m, true
		}
	}
	return Machine{}, false
}

// Rate is how fast a machine does what it does.
type Rate struct {
	CPU    float64 // processors
	Faults float64 // a second
}

// Rates are those of the machines, by number, between two states of a job: before
// is an earlier one, or an empty one for the time since each machine's
// beginning.
func (s State) Rates(before State) map[int]Rate {
	rates := map[int]Rate{}
	for _, m := range s.Machines {
		from, was := before.Taken, Machine{}
		if earlier, ok := before.machine(m.Member); ok && before.Job == s.Job && earlier.Began.Equal(m.Began) {
			was = earlier
		} else if from = m.Began; from.IsZero() {
			from = s.Began
		}
		if seconds := s.Taken.Sub(from).Seconds(); seconds > 0 {
			rates[m.Member] = Rate{
				CPU:    max(0, (m.CPU-was.CPU).Duration().Seconds()/seconds),
				Faults: max(0, float64(m.Faults-was.Faults)/seconds),
			}
		}
	}
	return rates
}
