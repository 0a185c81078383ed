package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/clones"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/stage"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// bench is the state of one run of the benchmark.
type bench struct {
	*stage.Stage
	hello       string
	images      string // the cache of guest images
	accel       string
	runs        int
	counts      []int
	piIntervals int64
	piRuns      int
	report      *figures.Report
}

var progress = stage.Progress("launch")

func main() {
	b := &bench{Stage: stage.New("launch")}
	counts := flag.String("n", "1,2,4,8,16,32", "numbers of clones")
	flag.IntVar(&b.runs, "runs", 5, "measurements of each side")
	flag.IntVar(&b.piRuns, "piruns", 3, "measurements of pi on clones and on zero-cost VMs")
	flag.Int64Var(&b.piIntervals, "pi", 0, "intervals for pi; 0 finds what takes about 20 s, less than 0 leaves it out")
	flag.StringVar(&b.accel, "accel", "", "kvm or tcg instead of what the probe says")
	b.Run(func(ctx context.Context) error { return b.run(ctx, *counts) })
}

func (b *bench) run(ctx context.Context, counts string) error {
	for s := range strings.SplitSeq(counts, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-n %s: %q is not a number of clones", counts, s)
		}
		b.counts = append(b.counts, n)
	}
	b.report = b.NewReport()
	b.hello = filepath.Join(b.Examples, "hello")
	// A cache of its own, so that the first run is a first run.
	b.images = filepath.Join(b.Cache, "mpirun-sf")
	if err := os.Setenv("XDG_CACHE_HOME", b.Cache); err != nil {
		return err
	}
	for _, part := range []func(context.Context) error{b.makeGuest, b.cloneAgainstBoot, b.prestarted, b.fetching, b.helloJob, b.piJob} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return b.Report(b.report, b.plot)
}

// of is so many clones of hello's guest; expect hypervisor processes are started ahead.
func (b *bench) of(n, expect int) clones.Options {
	return clones.Options{Binary: b.Binary, Cache: b.images, Accel: b.accel, Program: b.hello, Clones: n, Expect: expect}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

// makeGuest makes the image and the checkpoint, as a first run does.
func (b *bench) makeGuest(ctx context.Context) error {
	progress("making the guest image and its checkpoint")
	h, err := clones.Begin(ctx, b.of(1, 0))
	if err != nil {
		return err
	}
	return h.End()
}

// sample are the measurements of one number of clones.
type sample struct{ running, ready, resume []float64 }

// cloneAgainstBoot measures clones, cold boots and resumes in turns.
func (b *bench) cloneAgainstBoot(ctx context.Context) error {
	spec := guest.Spec{Program: b.hello, Agent: b.Binary}
	image, err := guest.Build(ctx, &guest.Cache{Dir: b.images}, spec, nil)
	if err != nil {
		return err
	}
	defer image.Release()
	suspended, err := b.suspend(ctx, image)
	if err != nil {
		return fmt.Errorf("suspend a guest: %w", err)
	}
	samples := map[int]*sample{}
	var boots, boots8, clone8, cpu []float64
	for run := range b.runs {
		boot, err := b.coldBoot(ctx)
		if err != nil {
			return err
		}
		boots = append(boots, ms(boot))
		for _, n := range b.counts {
			progress("run %d of %d: %d clones", run+1, b.runs, n)
			s := samples[n]
			if s == nil {
				s = &sample{}
				samples[n] = s
			}
			h, err := clones.Begin(ctx, b.of(n, 0))
			if err != nil {
				progress("%d clones are left out: %v", n, err)
				continue
			}
			c, all, err := h.Clone(ctx, h.Ticket)
			if err != nil {
				h.End()
				return err
			}
			running := time.Duration(0)
			for _, t := range c.Running {
				running = max(running, t)
			}
			s.running, s.ready = append(s.running, ms(running)), append(s.ready, ms(all))
			if n == 8 {
				clone8, boots8 = append(clone8, ms(all)), append(boots8, ms(boot))
				for _, t := range c.CPU {
					cpu = append(cpu, ms(t))
				}
			}
			if err := h.End(); err != nil {
				return err
			}
			if n <= 8 { // all of RAM, n times: more does not fit everywhere
				resumed, err := b.resume(ctx, image, suspended, n)
				if err != nil {
					return fmt.Errorf("resume %d guests: %w", n, err)
				}
				s.resume = append(s.resume, ms(resumed))
			}
		}
	}
	b.report.Add("boot_ms", figures.Median("ms", "cold boot of the guest until its agent answers", boots), "")
	for _, n := range b.counts {
		s := samples[n]
		if len(s.ready) == 0 {
			continue
		}
		b.report.Add(fmt.Sprintf("clone%d_running_ms", n), figures.Median("ms", fmt.Sprintf("%d clones from a checkpoint, until all vCPUs run", n), s.running), "")
		b.report.Add(fmt.Sprintf("clone%d_ready_ms", n), figures.Median("ms", fmt.Sprintf("%d clones from a checkpoint, until all have their identity", n), s.ready), "")
		if len(s.resume) > 0 {
			b.report.Add(fmt.Sprintf("resume%d_running_ms", n), figures.Median("ms", fmt.Sprintf("%d guests resumed with all of their RAM, until all vCPUs run", n), s.resume), "")
		}
	}
	if len(clone8) > 0 {
		b.report.Add("clone8_over_boot", figures.Ratio("8 clones ready over one cold boot", clone8, boots8), "≤ 0.33")
		b.report.Add("qemu_cpu_ms_per_clone", figures.Median("ms", "processor time of a clone's QEMU until its vCPUs run, 8 at once", cpu), "≤ 60")
	}
	return nil
}

func (b *bench) coldBoot(ctx context.Context) (time.Duration, error) {
	d, err := sfld.Start(ctx, b.Binary, sfld.Options{Job: "boot", Cache: b.images, Accel: b.accel}, func(sfld.Notice) {})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	p, err := d.Prepare(ctx, sfld.PrepareArgs{Program: b.hello, VCPUs: 1, Memory: clones.Memory, ColdBoot: true})
	return p.BootTime, err
}

// prestarted measures one clone whose hypervisor process waits for it.
func (b *bench) prestarted(ctx context.Context) error {
	var running []float64
	for range 2 * b.runs {
		h, err := clones.Begin(ctx, b.of(1, 1))
		if err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond) // the process starts meanwhile
		c, _, err := h.Clone(ctx, h.Ticket)
		if err != nil {
			h.End()
			return err
		}
		running = append(running, ms(c.Running[1]))
		if err := h.End(); err != nil {
			return err
		}
	}
	b.report.Add("prestarted_running_ms", figures.Median("ms", "one clone, request to vCPUs running, QEMU process started ahead", running), "≤ 30")
	return nil
}

// fetching measures what clones fetch, and what the next one on a host does.
func (b *bench) fetching(ctx context.Context) error {
	var four, next []float64
	for range b.runs {
		h, err := clones.Begin(ctx, b.of(4, 0))
		if err != nil {
			return err
		}
		bytes, err := b.fetchedByHello(ctx, h, h.Ticket)
		h.End()
		if err != nil {
			return err
		}
		four = append(four, bytes/clones.Memory)

		if h, err = clones.Begin(ctx, b.of(1, 0)); err != nil {
			return err
		}
		first, err := b.fetchedByHello(ctx, h, h.Ticket)
		if err == nil {
			var more ticket.Ticket
			if more, err = h.Request(ctx, 1); err == nil {
				var second float64
				second, err = b.fetchedByHello(ctx, h, more)
				next = append(next, (second-first)/first)
			}
		}
		h.End()
		if err != nil {
			return err
		}
	}
	b.report.Add("hello_fetched_fraction", figures.Median("ratio", "bytes fetched for hello on 4 fresh clones of one host, over the guest's RAM", four), "≤ 0.08")
	b.report.Add("next_clone_fetched_fraction", figures.Median("ratio", "bytes fetched by one more clone on that host for hello, over the first's", next), "≤ 0.1")
	return nil
}

// fetchedByHello makes the clones of a ticket, runs hello on them and returns
// what all of the host's clones have fetched by then.
func (b *bench) fetchedByHello(ctx context.Context, h *clones.Clones, t ticket.Ticket) (float64, error) {
	if _, _, err := h.Clone(ctx, t); err != nil {
		return 0, err
	}
	if err := h.Connect(ctx, t, b.hello); err != nil {
		return 0, err
	}
	if _, err := h.Run(ctx, io.Discard, b.hello); err != nil {
		return 0, err
	}
	n, err := h.Fetched(ctx)
	return float64(n), err
}

// command runs the launcher as a user does and returns how long that took.
func (b *bench) command(ctx context.Context, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, b.Binary, append([]string{"-q"}, args...)...)
	cmd.Dir, cmd.Stderr = b.Examples, os.Stderr
	begin := time.Now()
	err := cmd.Run()
	return time.Since(begin), err
}

// against runs a program in turns on fresh clones, fork and join included, and
// on zero-cost VMs.
func (b *bench) against(ctx context.Context, runs int, argv ...string) (forked, warm []float64, err error) {
	for run := range runs {
		progress("%s on clones and on zero-cost VMs, run %d of %d", filepath.Base(argv[0]), run+1, runs)
		took, err := b.command(ctx, append([]string{"-np", "4"}, argv...)...)
		if err != nil {
			return nil, nil, err
		}
		forked = append(forked, took.Seconds())
		h, err := clones.Warm(ctx, b.of(4, 0))
		if err != nil {
			return nil, nil, err
		}
		took, err = h.Run(ctx, io.Discard, argv...)
		h.End()
		if err != nil {
			return nil, nil, err
		}
		warm = append(warm, took.Seconds())
	}
	return forked, warm, nil
}

func (b *bench) helloJob(ctx context.Context) error {
	forked, warm, err := b.against(ctx, b.runs, b.hello)
	if err != nil {
		return err
	}
	b.report.Add("hello_s", figures.Median("s", "mpirun-sf -np 4 hello, fork and join included", forked), "")
	b.report.Add("hello_zero_cost_s", figures.Median("s", "hello on 4 zero-cost VMs", warm), "")
	return nil
}

func (b *bench) piJob(ctx context.Context) error {
	if b.piIntervals < 0 {
		return nil
	}
	pi := filepath.Join(b.Examples, "pi")
	if b.piIntervals == 0 {
		h, err := clones.Warm(ctx, b.of(4, 0))
		if err != nil {
			return err
		}
		defer h.End()
		// From two sizes follows what an interval takes, start-up aside.
		const small, large = 20_000_000, 120_000_000
		t1, err := h.Run(ctx, io.Discard, pi, strconv.Itoa(small))
		if err != nil {
			return err
		}
		t2, err := h.Run(ctx, io.Discard, pi, strconv.Itoa(large))
		if err != nil {
			return err
		}
		each := max((t2-t1).Seconds(), 0.01) / (large - small)
		b.piIntervals = int64(20 / each)
		h.End()
	}
	forked, warm, err := b.against(ctx, b.piRuns, pi, strconv.FormatInt(b.piIntervals, 10))
	if err != nil {
		return err
	}
	b.report.Add("pi_s", figures.Median("s", fmt.Sprintf("mpirun-sf -np 4 pi %d, fork and join included", b.piIntervals), forked), "")
	b.report.Add("pi_zero_cost_s", figures.Median("s", "the same on 4 zero-cost VMs", warm), "")
	b.report.Add("job_over_zero_cost", figures.Ratio("pi of about 20 s on 4 clones, fork included, over the same on zero-cost VMs", forked, warm), "≤ 1.07")
	return nil
}

// plot draws the times over the number of clones.
func (b *bench) plot(path string) error {
	p := figures.Plot{Title: "From a checkpoint to n clones on one host", XLabel: "clones", YLabel: "milliseconds"}
	boot := b.report.Figures["boot_ms"]
	for _, side := range []struct{ name, format string }{
		{"clones: vCPUs run", "clone%d_running_ms"}, {"clones: ready", "clone%d_ready_ms"}, {"resume, all of RAM", "resume%d_running_ms"}, {"one cold boot", ""},
	} {
		s := figures.Series{Name: side.name}
		for _, n := range b.counts {
			f, ok := boot, true
			if side.format != "" {
				f, ok = b.report.Figures[fmt.Sprintf(side.format, n)]
			}
			if ok {
				s.X, s.Y = append(s.X, float64(n)), append(s.Y, f.Value)
				s.Low, s.High = append(s.Low, f.Spread[0]), append(s.High, f.Spread[1])
			}
		}
		if len(s.X) > 0 {
			p.Series = append(p.Series, s)
		}
	}
	return p.Save(path)
}
