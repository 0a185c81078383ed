package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/clones"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

const (
	netpipeProgram = "/usr/bin/NPmpich2"
	// netpipeRepeats of each message size, in each of seven trials.
	netpipeRepeats = 20
	netpipeLargest = 256 << 10
	// latencySizes are those messages of which latency is that.
	latencySizes = 64
)

// netpipeArguments have NetPIPE measure powers of two and what is halfway, and keep no file.
func netpipeArguments(repeats int) []string {
	return []string{"-p", "0", "-n", strconv.Itoa(repeats), "-u", strconv.Itoa(netpipeLargest), "-o", "/dev/null"}
}

// sample is what NetPIPE says of a message size.
type sample struct {
	usec float64 // half the way to the other and back
	mbps float64
}

// pipe are the measurements of a side.
type pipe struct {
	bySize              map[int][]sample
	latency, throughput []float64 // by round
}

func newPipe() *pipe { return &pipe{bySize: map[int][]sample{}} }

// netpipe measures messages between fresh clones, and between the same when they are warm.
func (b *bench) netpipe(ctx context.Context) error {
	// In a folder of its own, which is shared with the machines.
	dir := filepath.Join(b.Tmp, "netpipe")
	program := filepath.Join(dir, filepath.Base(netpipeProgram))
	data, err := os.ReadFile(netpipeProgram)
	if err != nil {
		return fmt.Errorf("%w: apt install netpipe-mpich2", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		return err
	}
	argv := append([]string{program}, netpipeArguments(netpipeRepeats)...)
	if err := b.warmUp(ctx, dir, append([]string{"-q", "-np", "2", program}, netpipeArguments(1)...)...); err != nil {
		return err
	}
	fresh, warm, again := newPipe(), newPipe(), newPipe()
	for round := range b.rounds {
		// On the same two machines, for any two differ by more than what is sought.
		c, err := clones.Fresh(ctx, clones.Options{Binary: b.Binary, Cache: filepath.Join(b.Cache, "mpirun-sf"), Program: program, Clones: 2})
		if err != nil {
			return err
		}
		for _, p := range []*pipe{fresh, warm, again} {
			var out bytes.Buffer
			if _, err = c.Run(ctx, &out, argv...); err == nil {
				err = p.add(out.String())
			}
			if err != nil {
				return errors.Join(fmt.Errorf("NetPIPE between clones: %w", err), c.End())
			}
		}
		if err := c.End(); err != nil {
			return err
		}
		progress("round %d of %d: %.0f us and %.0f Mbit/s between fresh clones, %.0f us and %.0f Mbit/s when they are warm, %.0f us and %.0f Mbit/s once more", round+1, b.rounds,
			fresh.latency[round], fresh.throughput[round], warm.latency[round], warm.throughput[round], again.latency[round], again.throughput[round])
	}
	what := "NetPIPE for MPICH between two clones that are fresh over that between the same two when they are warm: "
	latency := fmt.Sprintf("time of messages up to %d bytes", latencySizes)
	bandwidth := fmt.Sprintf("bandwidth, the greatest of any size up to %d KB", netpipeLargest>>10)
	b.Record.Add("netpipe_latency_over_zero_cost", figures.Ratio(what+latency, fresh.latency, warm.latency))
	b.Record.Add("netpipe_bandwidth_over_zero_cost", figures.Ratio(what+bandwidth, fresh.throughput, warm.throughput))
	what = "NetPIPE for MPICH between two warm clones over that between the same two before, which is noise: "
	b.Record.Add("netpipe_latency_noise", figures.Ratio(what+latency, again.latency, warm.latency))
	b.Record.Add("netpipe_bandwidth_noise", figures.Ratio(what+bandwidth, again.throughput, warm.throughput))
	for _, side := range []struct {
		name, where string
		*pipe
	}{{"clones", "fresh clones", fresh}, {"zero_cost", "zero-cost machines", warm}} {
		b.Record.Add("netpipe_us_"+side.name, figures.Median("us", "NetPIPE between two "+side.where+": latency", side.latency))
		b.Record.Add("netpipe_mbps_"+side.name, figures.Median("Mbit/s", "NetPIPE between two "+side.where+": bandwidth", side.throughput))
	}
	return b.plotPipes(fresh, warm)
}

// sampleLine is a line of NetPIPE's.
var sampleLine = regexp.MustCompile(`(?m)^\s*[0-9]+:\s+([0-9]+) bytes\s+[0-9]+ times -->\s+([0-9.]+) Mbps in\s+([0-9.]+) usec`)

// samples reads what NetPIPE writes.
func samples(output string) map[int]sample {
	found := map[int]sample{}
	for _, m := range sampleLine.FindAllStringSubmatch(output, -1) {
		size, err1 := strconv.Atoi(m[1])
		mbps, err2 := strconv.ParseFloat(m[2], 64)
		usec, err3 := strconv.ParseFloat(m[3], 64)
		if errors.Join(err1, err2, err3) == nil && size > 0 && usec > 0 {
			found[size] = sample{usec, mbps}
		}
	}
	return found
}

// add adds a run.
func (p *pipe) add(output string) error {
	found := samples(output)
	var small, rates []float64
	for size, s := range found {
		if size <= latencySizes {
			small = append(small, s.usec)
		}
		rates = append(rates, s.mbps)
		p.bySize[size] = append(p.bySize[size], s)
	}
	if len(small) == 0 || found[netpipeLargest].usec == 0 {
		return fmt.Errorf("NetPIPE did not come to its end: %q", strings.TrimSpace(output))
	}
	p.latency, p.throughput = append(p.latency, figures.Median("", "", small).Value), append(p.throughput, slices.Max(rates))
	return nil
}

// plotPipes draws time and bandwidth over the message size.
func (b *bench) plotPipes(fresh, warm *pipe) error {
	for _, plot := range []struct {
		file, title, unit string
		value             func(sample) float64
	}{
		{"mpi-latency.svg", "NetPIPE between two machines: time of a message", "microseconds", func(s sample) float64 { return s.usec }},
		// By the time, for what NetPIPE rounds to 0.00 cannot be drawn.
		{"mpi-bandwidth.svg", "NetPIPE between two machines: bandwidth", "Mbit/s", func(s sample) float64 { return s.mbps }},
	} {
		p := figures.Plot{Title: plot.title, XLabel: "bytes", YLabel: plot.unit}
		for _, side := range []struct {
			name string
			of   *pipe
		}{{"fresh clones", fresh}, {"zero-cost", warm}} {
			s := figures.Series{Name: side.name}
			for _, size := range slices.Sorted(maps.Keys(side.of.bySize)) {
				var values []float64
				for _, one := range side.of.bySize[size] {
					if v := plot.value(one); v > 0 {
						values = append(values, v)
					}
				}
				if len(values) == 0 {
					continue
				}
				f := figures.Median("", "", values)
				s.X, s.Y = append(s.X, float64(size)), append(s.Y, f.Value)
				s.Low, s.High = append(s.Low, f.Spread[0]), append(s.High, f.Spread[1])
			}
			p.Series = append(p.Series, s)
		}
		if err := p.Save(filepath.Join(b.Out, plot.file)); err != nil {
			return err
		}
	}
	return nil
}
