package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/vmfork/descriptor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// forkHosts are the numbers of hosts that get clones. The origin is one more.
var forkHosts = []int{1, 2, 4, 8}

// forkModes are the ways to distribute; the first is what a user gets who asks for nothing.
var forkModes = []mcdist.Mode{mcdist.Auto, mcdist.Multicast, mcdist.Unicast, mcdist.Tree}

// forked is how a fork's state came to some hosts.
type forked struct {
	Published
	first      float64 // ms until every host had the descriptor; the first of a job, when only links were there
	again      float64 // the same for another one of the same job
	workingSet float64 // ms from the first Export until every host had the working set as well
	bytes      float64 // that the origin's link carried for the first descriptor and the working set
	cpu        float64 // ms of processor time of a host that gets the next descriptor, the mean of all
}

// fork measures how a guest's state comes to hosts: its descriptor, and the pages that its clones will read first. There
// are no machines here. The part ready has them.
func (b *bench) fork(ctx context.Context) error {
	if err := b.warmUp(ctx, 1); err != nil {
		return err
	}
	args, err := b.checkpoint()
	if err != nil {
		return err
	}
	h, err := startHosts(ctx, testcluster.Options{Hosts: forkHosts[len(forkHosts)-1] + 1, Link: testcluster.Link{Rate: b.forkRate * 1e6}}, b.Tmp)
	if err != nil {
		return err
	}
	defer h.Close()
	samples := map[mcdist.Mode]map[int][]forked{}
	for _, mode := range forkModes {
		samples[mode] = map[int][]forked{}
	}
	for n := range b.rounds {
		progress("descriptor and working set to hosts: round %d of %d", n+1, b.rounds)
		for _, k := range forkHosts {
			for _, mode := range forkModes {
				f, err := h.fork(ctx, mode, k, args)
				if err != nil {
					return fmt.Errorf("%v to %d hosts: %w", mode, k, err)
				}
				samples[mode][k] = append(samples[mode][k], f)
			}
		}
	}
	b.tellFork(samples)
	return errors.Join(b.plotFork(samples), h.end(ctx))
}

// fork distributes a checkpoint to k hosts.
func (h *hosts) fork(ctx context.Context, mode mcdist.Mode, k int, args ForkArgs) (f forked, err error) {
	if _, err = h.begin(ctx, k+1, mode); err != nil {
		return f, err
	}
	origin, others := h.workers[0], h.workers[1:k+1]
	for host := range others {
		args.To = append(args.To, host+1)
	}
	before, err := h.traffic(0)
	if err != nil {
		return f, err
	}
	if err = origin.call(ctx, "Export", args, &f.Published); err != nil {
		return f, err
	}
	since := func(times []int64) (last float64) {
		for _, t := range times {
			last = max(last, ms(time.Duration(t-f.At)))
		}
		return last
	}
	times, err := each[int64](ctx, others, "Import", f.ID)
	if err != nil {
		return f, err
	}
	f.first = since(times)
	if times, err = each[int64](ctx, others, "WorkingSet", 0); err != nil {
		return f, err
	}
	f.workingSet = since(times)
	after, err := h.traffic(0)
	if err != nil {
		return f, err
	}
	f.bytes = after - before
	time.Sleep(50 * time.Millisecond) // what nobody waits for ends meanwhile
	cpu, err := each[time.Duration](ctx, others, "CPU", 0)
	if err != nil {
		return f, err
	}
	var again Published
	if err = origin.call(ctx, "Again", args.To, &again); err != nil {
		return f, err
	}
	if times, err = each[int64](ctx, others, "Receive", again.ID); err != nil {
		return f, err
	}
	f.At = again.At
	f.again = since(times)
	used, err := each[time.Duration](ctx, others, "CPU", 0)
	for i := range used {
		f.cpu += ms(used[i]-cpu[i]) / float64(k)
	}
	return f, err
}

// checkpoint finds the newest checkpoint of the cache that has a working set and one virtual CPU.
func (b *bench) checkpoint() (args ForkArgs, err error) {
	traces, err := filepath.Glob(filepath.Join(b.Cache, "mpirun-sf", "images", "*", "checkpoints", "*", "trace"))
	if err != nil {
		return args, err
	}
	var newest time.Time
	for _, path := range traces {
		st, err := os.Stat(path)
		if err != nil {
			return args, err
		}
		d, err := descriptor.Load(filepath.Join(filepath.Dir(path), "descriptor"))
		if err != nil {
			return args, err
		}
		if d.VCPUs == 1 && st.ModTime().After(newest) {
			newest, args.Folder = st.ModTime(), filepath.Dir(path)
		}
	}
	if args.Folder == "" {
		return args, fmt.Errorf("there is no checkpoint with a working set in %s", b.Cache)
	}
	args.Root = filepath.Join(args.Folder, "..", "..", "root.img")
	return args, nil
}

// tellFork makes the part's figures.
func (b *bench) tellFork(samples map[mcdist.Mode]map[int][]forked) {
	all := func(mode mcdist.Mode, k int, value func(forked) float64) (values []float64) {
		for _, f := range samples[mode][k] {
			values = append(values, value(f))
		}
		return values
	}
	first, again := func(f forked) float64 { return f.first }, func(f forked) float64 { return f.again }
	workingSet, bytes := func(f forked) float64 { return f.workingSet }, func(f forked) float64 { return f.bytes }
	f := samples[mcdist.Auto][1][0]
	links := fmt.Sprintf("links of %d Mbit/s", b.forkRate)
	what := fmt.Sprintf("a booted guest's descriptor of %d bytes (%d are device state, %d the maps of its slices)", f.Bytes, f.State, f.Maps)
	set := fmt.Sprintf("a working set of %.1f MB, %.1f MB of it not zeros", float64(f.Blocks*slice.BlockSize)/1e6, float64(f.NotZeros*slice.BlockSize)/1e6)
	for _, side := range []struct {
		suffix string
		mode   mcdist.Mode
	}{{"", mcdist.Auto}, {"_multicast", mcdist.Multicast}, {"_unicast", mcdist.Unicast}, {"_tree", mcdist.Tree}} {
		ratio := func(name, of string, value func(forked) float64) {
			b.Record.Add(name, figures.Ratio(of, all(side.mode, 8, value), all(side.mode, 1, value)))
		}
		where := fmt.Sprintf("%v, %s", side.mode, links)
		ratio("descriptor"+side.suffix+"_8_over_1_hosts", "time from Export until 8 hosts have "+what+", the first of a job, over the same for 1 host; all hosts share this machine's cores: "+where, first)
		ratio("descriptor_again"+side.suffix+"_8_over_1_hosts", "the same for the next descriptor of the job: "+where, again)
		ratio("working_set"+side.suffix+"_8_over_1_hosts", "until they have "+set+", too: "+where, workingSet)
		if side.mode != mcdist.Auto {
			ratio("wire_bytes"+side.suffix+"_8_over_1", fmt.Sprintf("bytes that the origin's link carried both ways, by the counters of the switch's port, for %s and %s to 8 hosts over 1: %v", what, set, side.mode), bytes)
		}
		for _, k := range forkHosts {
			at := fmt.Sprintf("%s_%dhosts", side.suffix, k)
			b.Record.Add("descriptor_ms"+at, figures.Median("ms", fmt.Sprintf("until %d hosts have the descriptor: %s", k, where), all(side.mode, k, first)))
			b.Record.Add("descriptor_again_ms"+at, figures.Median("ms", fmt.Sprintf("until %d hosts have the next descriptor of the job: %s", k, where), all(side.mode, k, again)))
			b.Record.Add("working_set_ms"+at, figures.Median("ms", fmt.Sprintf("until %d hosts have the working set, too: %s", k, where), all(side.mode, k, workingSet)))
			if side.mode == mcdist.Auto {
				b.Record.Add("descriptor_cpu_ms"+at, figures.Median("ms", fmt.Sprintf("processor time of each of %d hosts for the next descriptor: %s", k, where), all(side.mode, k, func(f forked) float64 { return f.cpu })))
			}
			b.Record.Add("wire_bytes"+at, figures.Median("bytes", fmt.Sprintf("that the origin's link carried for %d hosts: %s", k, where), all(side.mode, k, bytes)))
		}
	}
}

// plotFork draws times and bytes over the number of hosts.
func (b *bench) plotFork(samples map[mcdist.Mode]map[int][]forked) error {
	draw := func(file, title, unit string, value func(forked) float64) error {
		p := figures.Plot{Title: title, XLabel: "hosts", YLabel: unit}
		for _, mode := range forkModes {
			s := figures.Series{Name: mode.String()}
			for _, k := range forkHosts {
				var values []float64
				for _, f := range samples[mode][k] {
					values = append(values, value(f))
				}
				f := figures.Median(unit, "", values)
				s.X, s.Y = append(s.X, float64(k)), append(s.Y, f.Value)
				s.Low, s.High = append(s.Low, f.Spread[0]), append(s.High, f.Spread[1])
			}
			p.Series = append(p.Series, s)
		}
		return p.Save(filepath.Join(b.Out, file))
	}
	return errors.Join(
		draw("distribution-time.svg", "From Export until every host has the working set", "milliseconds", func(f forked) float64 { return f.workingSet }),
		draw("distribution-bytes.svg", "What the origin's link carries for that", "MB", func(f forked) float64 { return f.bytes / 1e6 }),
	)
}
