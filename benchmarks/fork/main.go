package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/stage"
)

// forks is how often each VM is forked. The figures tell its first and its last
// fork apart.
const forks = 3

// cell is one size of VM, and how much of it is written before each fork.
type cell struct {
	memory, dirty int64 // bytes
	name          string
	of            string // in words
}

// percents are the parts of the RAM that are written.
var percents = []int64{0, 10, 50}

func newCell(memory, percent int64) cell {
	return cell{
		memory, memory * percent / 100 / pageSize * pageSize, fmt.Sprintf("%dmb_%dpct", memory>>20, percent),
		fmt.Sprintf("a VM of %d MB that has written %d %% of it", memory>>20, percent),
	}
}

// promised is the cell that a promise is about.
var promised = cell{1 << 30, 256 << 20, "1024mb_256mbdirty", "a VM of 1024 MB that has written 256 MB of it"}

// bench is the state of one run of the benchmark.
type bench struct {
	*stage.Stage
	accel   string
	inGuest string // this program, as it is in the guest
	rounds  int
	sizes   []int64 // bytes of RAM
	report  *figures.Report

	// By cell, and then by the number of the fork in its VM from 0, one of each round.
	samples       map[string]*[forks][]forked
	quiet, around []float64 // longest times without a line, ms
}

var progress = stage.Progress("fork")

func main() {
	if status, is := inVM(os.Args[1:]); is {
		os.Exit(status)
	}
	b := &bench{Stage: stage.New("fork"), samples: map[string]*[forks][]forked{}}
	sizes := flag.String("mb", "256,1024,4096", "sizes of VMs, in MB")
	flag.IntVar(&b.rounds, "rounds", 3, "fresh VMs for each cell")
	flag.StringVar(&b.accel, "accel", "", "kvm or tcg instead of what the probe says")
	b.Run(func(ctx context.Context) error { return b.run(ctx, *sizes) })
}

func (b *bench) run(ctx context.Context, sizes string) error {
	for s := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-mb %s: %q is not a number of megabytes", sizes, s)
		}
		b.sizes = append(b.sizes, int64(n)<<20)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	b.report = b.NewReport("load averages of the machine before the run: " + strings.Join(strings.Fields(string(load))[:3], " "))
	// In the guest there is a folder of that name, too.
	b.inGuest = filepath.Join(b.Tmp, "bench-fork")
	if err := copyOfMyself(b.inGuest); err != nil {
		return fmt.Errorf("make the program for the guest: %w", err)
	}
	for _, part := range []func(context.Context) error{b.makeGuests, b.measure} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	b.tell()
	return b.Report(b.report, b.plot)
}

func copyOfMyself(path string) error {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// makeGuests makes the image, and boots and checkpoints it for each size.
func (b *bench) makeGuests(ctx context.Context) error {
	for _, memory := range slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(b.sizes), promised.memory)))) {
		progress("booting a guest with %d MB", memory>>20)
		v, err := b.start(ctx, memory)
		if err != nil {
			return err
		}
		if err := v.end(); err != nil {
			return err
		}
	}
	return nil
}

// measure measures each cell in each round.
func (b *bench) measure(ctx context.Context) error {
	for round := range b.rounds {
		for _, percent := range percents {
			for _, memory := range b.sizes {
				if err := b.measureCell(ctx, round, newCell(memory, percent)); err != nil {
					return err
				}
			}
		}
		if err := b.measureCell(ctx, round, promised); err != nil {
			return err
		}
	}
	return nil
}

// measureCell forks a fresh VM a few times.
func (b *bench) measureCell(ctx context.Context, round int, c cell) (err error) {
	progress("round %d of %d: %s", round+1, b.rounds, c.of)
	v, err := b.start(ctx, c.memory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.end()) }()
	s := b.samples[c.name]
	if s == nil {
		s = &[forks][]forked{}
		b.samples[c.name] = s
	}
	for n := range s {
		if err := b.dirty(ctx, v, c.dirty); err != nil {
			return err
		}
		f, err := v.fork(ctx)
		if err != nil {
			return fmt.Errorf("fork %d of %s: %w", n+1, c.of, err)
		}
		s[n] = append(s[n], f)
	}
	if c != promised {
		return nil
	}
	before, around, err := b.gaps(ctx, v, c)
	if err != nil {
		return err
	}
	b.quiet, b.around = append(b.quiet, ms(before)), append(b.around, ms(around))
	return nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }
