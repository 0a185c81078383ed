package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/vmfork/mcdist"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

const (
	bulkSize  = 64 << 20
	bulkHosts = 4 // that receive
	bulkLoss  = 0.05
)

// cast is how one slice came to all hosts.
type cast struct {
	took  time.Duration
	bytes float64         // that the origin's link carried
	cpu   time.Duration   // of all workers
	other mcdist.Counters // of the first receiver
}

// udpcastOptions are those with which udp-sender was fastest, of the ones that were tried on these links: with and without
// --full-duplex, --max-bitrate a little below the link's rate, slices (--default-slice-size) of 512 and 1024 blocks, and
// --fec 8x8/128, 8x14/128 and 8x8/64. Each round measures all that are here, and the best median counts.
//
// --max-bitrate is of no use, for the sender's own link paces it and nothing is dropped. Where 5 % are lost, parity (--fec) for what is lost costs a little more than to send it again in large
// slices. --async would not wait for receivers, and so not send again what parity cannot repair: that is not the same job.
var udpcastOptions = map[float64][][]string{
	0:        {{}, {"--full-duplex", "--default-slice-size", "512"}},
	bulkLoss: {{"--full-duplex", "--default-slice-size", "512"}, {"--full-duplex", "--default-slice-size", "1024"}},
}

// bulkSide are the measurements of one loss.
type bulkSide struct {
	casts   []cast
	udpcast [][]udpcastRun // by options
}

// bulk measures a slice that all hosts want whole.
func (b *bench) bulk(ctx context.Context) error {
	if err := hasUDPCast(); err != nil {
		return err
	}
	files, err := b.randomSlice(ctx, bulkSize)
	if err != nil {
		return err
	}
	h, err := startHosts(ctx, testcluster.Options{Hosts: bulkHosts + 1, Link: testcluster.Link{Rate: b.rate * 1e6}}, b.Tmp)
	if err != nil {
		return err
	}
	defer h.Close()
	sides := map[float64]*bulkSide{}
	for loss, options := range udpcastOptions {
		sides[loss] = &bulkSide{udpcast: make([][]udpcastRun, len(options))}
	}
	failures := 0
	for n := range b.rounds {
		progress("64 MB to %d hosts: round %d of %d", bulkHosts, n+1, b.rounds)
		for _, loss := range []float64{0, bulkLoss} {
			s := sides[loss]
			if err := h.lose(loss); err != nil {
				return err
			}
			c, err := h.cast(ctx, files)
			if err != nil {
				return err
			}
			s.casts = append(s.casts, c)
			for i, options := range udpcastOptions[loss] {
				u, failed, err := h.tryUDPCast(ctx, files.Data, loss, options)
				failures += failed
				if err != nil {
					return fmt.Errorf("udpcast %s: %w", strings.Join(options, " "), err)
				}
				s.udpcast[i] = append(s.udpcast[i], u)
			}
		}
	}
	b.tellBulk(sides)
	b.Record.Add("udpcast_failures", figures.Median("runs", "of udpcast that ended with an error, and were done again", []float64{float64(failures)}))
	return nil
}

// udpcastTries is how often udpcast is tried: where packets are lost, and on a busy machine, it gives up at times.
const udpcastTries = 3

// tryUDPCast runs udpcast until it does not fail.
func (h *hosts) tryUDPCast(ctx context.Context, path string, loss float64, options []string) (u udpcastRun, failed int, err error) {
	for failed < udpcastTries && ctx.Err() == nil {
		if err = h.lose(0); err != nil {
			break
		}
		if u, err = h.udpcast(ctx, path, bulkSize, func() error { return h.lose(loss) }, options...); err == nil {
			break
		}
		progress("udpcast %s failed: %v", strings.Join(options, " "), err)
		failed++
	}
	if err == nil {
		err = ctx.Err()
	}
	return u, failed, err
}

// lose has each receiver lose a part of all packets.
func (h *hosts) lose(loss float64) error {
	for i := range h.workers[1:] {
		if err := h.SetLoss(i+1, testcluster.Loss{Received: loss}); err != nil {
			return err
		}
	}
	return nil
}

// tellBulk makes the part's figures.
func (b *bench) tellBulk(sides map[float64]*bulkSide) {
	links := fmt.Sprintf("%d MB that cannot be compressed, to %d hosts by multicast, links of %d Mbit/s", bulkSize>>20, bulkHosts, b.rate)
	times := map[float64][]float64{}
	for _, loss := range []float64{0, bulkLoss} {
		s := sides[loss]
		suffix, of := "", links
		if loss > 0 {
			suffix, of = "_loss5", links+", of which each host loses 5 % by itself"
		}
		var rates, bytes, cpu []float64
		for _, c := range s.casts {
			times[loss] = append(times[loss], ms(c.took))
			rates = append(rates, bulkSize*8/c.took.Seconds()/float64(b.rate*1e6))
			bytes, cpu = append(bytes, c.bytes/1e6), append(cpu, c.cpu.Seconds())
		}
		b.Record.Add("rate_over_link"+suffix, figures.Median("ratio", "bytes of content in the time until the last host has all, over the link's rate: "+of, rates))
		b.Record.Add("bulk_ms"+suffix, figures.Median("ms", "until the last host has all: "+of, times[loss]))
		b.Record.Add("bulk_wire_mb"+suffix, figures.Median("MB", "that the origin's link carried both ways: "+of, bytes))
		b.Record.Add("bulk_cpu_s"+suffix, figures.Median("s", "processor time of all 5 hosts, without what the kernel does for the links: "+of, cpu))
		var best, bestBytes []float64
		options := ""
		for i, runs := range s.udpcast {
			var values, bytes []float64
			for _, u := range runs {
				values, bytes = append(values, ms(u.took)), append(bytes, u.bytes/1e6)
			}
			if best == nil || figures.Median("", "", values).Value < figures.Median("", "", best).Value {
				best, bestBytes, options = values, bytes, strings.Join(udpcastOptions[loss][i], " ")
			}
		}
		if options == "" {
			options = "no options"
		}
		name := "over_udpcast_loss0"
		if loss > 0 {
			name = "over_udpcast_loss5"
		}
		b.Record.Add(name, figures.Ratio("our rate over that of udpcast with "+options+": "+of, best, times[loss]))
		b.Record.Add("udpcast_ms"+suffix, figures.Median("ms", "the same by udpcast with "+options+": "+of, best))
		b.Record.Add("udpcast_wire_mb"+suffix, figures.Median("MB", "that the origin's link carried for udpcast both ways: "+of, bestBytes))
	}
	b.Record.Add("loss5_over_loss0", figures.Ratio("time where each host loses 5 % over the time without losses: "+links, times[bulkLoss], times[0]))
	lesser := b.Record.Figure("over_udpcast_loss0")
	if f := b.Record.Figure("over_udpcast_loss5"); f.Value < lesser.Value {
		lesser = f
	}
	lesser.Of = "the lesser of both: " + lesser.Of
	b.Record.Add("over_udpcast", lesser)
}

// cast sends a slice to all hosts by multicast.
func (h *hosts) cast(ctx context.Context, files SliceArgs) (c cast, err error) {
	if _, err = h.begin(ctx, len(h.workers), mcdist.Multicast); err != nil {
		return c, err
	}
	origin, receivers := h.workers[0], h.workers[1:]
	if err = origin.call(ctx, "Serve", files, new(int)); err != nil {
		return c, err
	}
	ids, err := each[slice.ID](ctx, receivers, "Open", files)
	if err != nil {
		return c, err
	}
	time.Sleep(200 * time.Millisecond) // as udpcast's receivers do, they join the group before the time begins
	cpu, err := each[time.Duration](ctx, h.workers, "CPU", 0)
	if err != nil {
		return c, err
	}
	before, err := h.traffic(0)
	if err != nil {
		return c, err
	}
	began := now()
	ended, err := each[int64](ctx, receivers, "Prefetch", RangeArgs{ID: ids[0], Blocks: bulkSize / slice.BlockSize})
	if err != nil {
		return c, err
	}
	after, err := h.traffic(0)
	if err != nil {
		return c, err
	}
	for _, t := range ended {
		c.took = max(c.took, time.Duration(t-began))
	}
	c.bytes = after - before
	cpuAfter, err := each[time.Duration](ctx, h.workers, "CPU", 0)
	if err != nil {
		return c, err
	}
	for i := range cpu {
		c.cpu += cpuAfter[i] - cpu[i]
	}
	if err = receivers[0].call(ctx, "Counters", 0, &c.other); err != nil {
		return c, err
	}
	if _, err = each[int](ctx, receivers, "Verify", RangeArgs{ID: ids[0]}); err != nil {
		return c, fmt.Errorf("what came by multicast: %w", err)
	}
	return c, h.end(ctx)
}
