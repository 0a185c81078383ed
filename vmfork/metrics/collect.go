package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What is told. docs/metrics.md explains each to who reads them.
var (
	jobLabels  = []string{"job"}
	hostLabels = []string{"job", "host"}

	jobInfo  = desc("job_info", "A job that runs: who started it, and what.", "job", "user", "command", "version")
	jobRanks = desc("job_ranks", "Ranks of the job.", jobLabels...)
	jobBegan = desc("job_start_time_seconds", "When the job began, in seconds since 1970.", jobLabels...)
	pauses   = desc("fork_pause_seconds", "How long machines stood still to be forked.", jobLabels...)

	machines = desc("machines", "Machines by what they do.", "job", "host", "state")
	clones   = desc("clones", "Clones that the host carries.", hostLabels...)
	up       = desc("host_up", "Whether the host answers the job's coordinator.", hostLabels...)
	trip     = desc("link_round_trip_seconds", "Round trip between the coordinator's daemon and the host's.", hostLabels...)
	reserved = desc("memory_reserved_bytes", "Memory reserved for clones.", hostLabels...)
	copied   = desc("fork_copied_bytes_total", "Memory copied for forks: pages that machines had written.", hostLabels...)

	reads   = desc("reads_total", "Reads that memtap answered: page faults in memory, and reads of disks.", "job", "host", "image")
	bytesBy = desc("image_bytes_total", "Bytes of images by how they came to machines.", "job", "host", "image", "way")
	zeros   = desc("zero_blocks_total", "Blocks of 4 KB that were answered as zeros without a fetch.", "job", "host", "image")
	failed  = desc("read_errors_total", "Reads and writes that failed.", "job", "host", "image")
	latency = desc("read_seconds", "How long reads took; the sum is estimated from the buckets.", "job", "host", "image")

	trafficLabels = []string{"job", "host", "direction", "way", "purpose"}
	movedBytes    = desc("distribution_bytes_total", "Bytes between hosts.", trafficLabels...)
	movedPackets  = desc("distribution_packets_total", "Packets, or writes to streams, between hosts.", trafficLabels...)
	movedBlocks   = desc("distribution_blocks_total", "Blocks of 4 KB between hosts.", trafficLabels...)
	movedEvents   = desc("distribution_events_total", "What happened on the way: duplicates, requests, refused, redials, fallbacks, repairs.", "job", "host", "event")

	machineLabels  = []string{"job", "host", "machine"}
	machineCPU     = desc("hypervisor_cpu_seconds_total", "Processor time of the machine's hypervisor.", machineLabels...)
	machineTouched = desc("machine_touched_bytes", "Memory of the machine that is on its host.", machineLabels...)
	machineOwn     = desc("machine_own_bytes", "Memory of the machine that it shares with no other: it has written it.", machineLabels...)
)

const prefix = "mpirun_sf_"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

// maxLabel bounds what a job can make of a label, in bytes.
const maxLabel = 256

// label makes a label's value of what users wrote.
func label(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxLabel {
		s = strings.ToValidUTF8(s[:maxLabel], "") + "..."
	}
	return s
}

// collector tells states as Prometheus wants them.
type collector []State

// Describe says nothing: which metrics there are follows from the states.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c {
		s.collect(out)
	}
}

func (s State) collect(out chan<- prometheus.Metric) {
	job := label(s.Job)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{job}, labels...)...)
	}
	count := func(d *prometheus.Desc, n int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append([]string{job}, labels...)...)
	}
	gauge(jobInfo, 1, label(s.User), label(strings.Join(s.Command, " ")), label(s.Version))
	gauge(jobRanks, float64(s.Ranks))
	gauge(jobBegan, float64(s.Began.UnixMilli())/1000)
	out <- s.Pauses.metric(pauses, bounds, job)

	type place struct{ host, state string }
	number, carried := map[place]int{}, map[string]int{}
	seen := map[string]bool{}
	for _, h := range s.Hosts {
		host := label(h.Name)
		if seen[host] {
			continue // two of one name would spoil all that is told
		}
		seen[host] = true
		carried[host] = 0
		isUp := 0.0
		if h.Up {
			isUp = 1
		}
		gauge(up, isUp, host)
		if h.Trip > 0 {
			gauge(trip, h.Trip.Duration().Seconds(), host)
		}
		gauge(reserved, float64(h.Reserved), host)
		count(copied, h.Copied, host)
		h.Memory.collect("memory", host, job, count, out)
		h.Disks.collect("disk", host, job, count, out)
		h.Moved.collect(host, count)
	}
	named := map[[2]string]bool{}
	for _, m := range s.Machines {
		host, name := label(m.Host), label(m.Name)
		number[place{host, label(m.State)}]++
		if m.Member != 0 {
			carried[host]++
		}
		if named[[2]string{host, name}] {
			continue
		}
		named[[2]string{host, name}] = true
		out <- prometheus.MustNewConstMetric(machineCPU, prometheus.CounterValue, m.CPU.Duration().Seconds(), job, host, name)
		gauge(machineTouched, float64(m.Touched), host, name)
		gauge(machineOwn, float64(m.Own), host, name)
	}
	for p, n := range number {
		gauge(machines, float64(n), p.host, p.state)
	}
	for host, n := range carried {
		gauge(clones, float64(n), host)
	}
}

func (p Paging) collect(image, host, job string, count func(*prometheus.Desc, int64, ...string), out chan<- prometheus.Metric) {
	count(reads, p.Reads, host, image)
	// Of what was fetched, what was brought from other hosts is told apart, so that the ways can be added up.
	count(bytesBy, max(0, p.Fetched-p.Far), host, image, "here")
	count(bytesBy, p.Far, host, image, "far")
	count(bytesBy, p.Ahead, host, image, "ahead")
	count(bytesBy, p.Pushed, host, image, "pushed")
	count(bytesBy, p.Written, host, image, "written")
	count(zeros, p.ZeroBlocks, host, image)
	count(failed, p.Errors, host, image)
	out <- p.Latency.metric(latency, readBounds, job, host, image)
}

func (m Moved) collect(host string, count func(*prometheus.Desc, int64, ...string)) {
	seen := map[[2]string]bool{}
	for _, t := range m.Traffic {
		way, purpose := label(t.Way), label(t.Purpose)
		if seen[[2]string{way, purpose}] {
			continue
		}
		seen[[2]string{way, purpose}] = true
		for direction, a := range map[string]Amount{"sent": t.Sent, "received": t.Received} {
			count(movedBytes, a.Bytes, host, direction, way, purpose)
			count(movedPackets, a.Packets, host, direction, way, purpose)
			count(movedBlocks, a.Blocks, host, direction, way, purpose)
		}
	}
	for event, n := range map[string]int64{
		"duplicate": m.Duplicates, "request": m.Requests, "refused": m.Refused,
		"redial": m.Redials, "fallback": m.Fallbacks, "repair": m.Repairs,
	} {
		count(movedEvents, n, host, event)
	}
}

// metric tells all buckets, whether they count anything or not: Prometheus adds
// up and compares those of many jobs and times, which must have the same. Of the
// last bound it is not told, for its bucket has what is longer, too.
func (d Distribution) metric(as *prometheus.Desc, bounds []time.Duration, labels ...string) prometheus.Metric {
	cumulative := map[float64]uint64{}
	var n uint64
	next := 0
	for _, bound := range bounds[:len(bounds)-1] {
		for next < len(d.Buckets) && d.Buckets[next].UpTo.Duration() <= bound {
			n += uint64(max(0, d.Buckets[next].Count))
			next++
		}
		cumulative[bound.Seconds()] = n
	}
	for _, b := range d.Buckets[next:] {
		n += uint64(max(0, b.Count))
	}
	return prometheus.MustNewConstHistogram(as, n, d.Sum.Duration().Seconds(), cumulative, labels...)
}
