package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

const (
	fetchRate   = 1e9 // bits/s of each link
	fetchBlocks = 200 // in a round
	fetchWindow = 8   // blocks, as memtap reads around a fault unless told
	// A pause between faults, so that each finds the network at rest.
	fetchPause = time.Millisecond
)

// fetch measures what a page costs that is on another host, and beside it what the wires take by themselves.
func (b *bench) fetch(ctx context.Context) error {
	for _, side := range []struct {
		suffix string
		delay  time.Duration // of each link; a question and its answer cross four
		of     string
	}{
		{"", 50 * time.Microsecond, "1 Gbit/s, wires with 0.2 ms from a host to another and back"},
		{"_one_way", 100 * time.Microsecond, "1 Gbit/s, wires with 0.2 ms from a host to another, 0.4 ms and back"},
	} {
		if err := b.fetchOver(ctx, side.delay, side.suffix, side.of); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) fetchOver(ctx context.Context, delay time.Duration, suffix, of string) error {
	const size = 64 << 20
	files, err := b.randomSlice(ctx, size)
	if err != nil {
		return err
	}
	h, err := startHosts(ctx, testcluster.Options{Hosts: 2, Link: testcluster.Link{Rate: fetchRate, Delay: delay}}, b.Tmp)
	if err != nil {
		return err
	}
	defer h.Close()
	origin, host := h.workers[0], h.workers[1]
	var echo Ports
	if err := origin.call(ctx, "Echo", origin.host.Address, &echo); err != nil {
		return err
	}
	if _, err := h.begin(ctx, 2, mcdist.Unicast); err != nil {
		return err
	}
	if err := origin.call(ctx, "Serve", files, new(int)); err != nil {
		return err
	}
	var id slice.ID
	if err := host.call(ctx, "Open", files, &id); err != nil {
		return err
	}
	next := int64(0) // nothing is brought twice
	bring := func(blocks, count int64) (times []time.Duration, err error) {
		args := RangeArgs{ID: id, First: next, Blocks: blocks, Count: count, Stride: blocks + 3, Pause: fetchPause}
		next += count * args.Stride
		err = host.call(ctx, "Bring", args, &times)
		return times, err
	}
	if _, err := bring(1, 20); err != nil { // connections are made
		return err
	}
	type round struct{ wire, page, one, ninetyNine, window float64 }
	var rounds []round
	var perTrip []float64
	for n := range b.rounds {
		progress("%s: round %d of %d", of, n+1, b.rounds)
		var pings Pings
		if err := host.call(ctx, "Ping", PingArgs{echo, fetchBlocks / 2, fetchPause}, &pings); err != nil {
			return err
		}
		one, err := bring(1, fetchBlocks)
		if err != nil {
			return err
		}
		var before, after mcdist.Counters
		if err := host.call(ctx, "Counters", 0, &before); err != nil {
			return err
		}
		window, err := bring(fetchWindow, fetchBlocks/4)
		if err != nil {
			return err
		}
		if err := host.call(ctx, "Counters", 0, &after); err != nil {
			return err
		}
		brought := after.Received[mcdist.ByUnicast].Urgent.Blocks - before.Received[mcdist.ByUnicast].Urgent.Blocks
		perTrip = append(perTrip, float64(brought)/float64(after.RoundTrips.Urgent-before.RoundTrips.Urgent))
		rounds = append(rounds, round{
			figures.Median("", "", micros(pings.Datagrams)).Value, figures.Median("", "", micros(pings.Pages)).Value,
			figures.Median("", "", micros(one)).Value, percentile(one, 99), figures.Median("", "", micros(window)).Value,
		})
	}
	add := func(name, what string, value func(round) float64) {
		var values []float64
		for _, r := range rounds {
			values = append(values, value(r))
		}
		b.Record.Add(name+suffix, figures.Median("µs", what+": "+of, values))
	}
	add("wire_round_trip_us", "ping-pong of 64 bytes over UDP, medians of the rounds", func(r round) float64 { return r.wire })
	add("wire_page_us", "64 bytes there and 4 KB back over plain TCP, medians of the rounds", func(r round) float64 { return r.page })
	add("fetch_us_p50_unicast", "Fetch.Bring of one page that is on another host, over TLS, medians of the rounds", func(r round) float64 { return r.one })
	add("fetch_us_p99_unicast", "the same, 99th percentiles of the rounds", func(r round) float64 { return r.ninetyNine })
	add("fetch_window_us_p50_unicast", fmt.Sprintf("Fetch.Bring of %d pages at once, medians of the rounds", fetchWindow), func(r round) float64 { return r.window })
	b.Record.Add("pages_per_round_trip"+suffix, figures.Median("pages", fmt.Sprintf("pages that came for each round trip that somebody waited for, where windows of %d pages were wanted: %s", fetchWindow, of), perTrip))
	return h.end(ctx)
}

// percentile is that of times, in microseconds.
func percentile(times []time.Duration, p int) float64 {
	if len(times) == 0 {
		return 0
	}
	times = slices.Sorted(slices.Values(times))
	return us(times[min(len(times)*p/100, len(times)-1)])
}
