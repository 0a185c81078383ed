package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/stage"
	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// bench is the state of one run of the benchmark.
type bench struct {
	*stage.Stage
	warm     map[int]bool // the cache has a guest with so many virtual CPUs
	rounds   int
	jobs     int // of the part hang
	rate     int64
	forkRate int64
}

var progress = stage.Progress("distribution")

// promises are what the specification says of figures.
var promises = map[string]string{
	"descriptor_8_over_1_hosts":     "≤ 1.5",
	"wire_bytes_multicast_8_over_1": "≤ 1.3",
	"fetch_us_p50_unicast":          "< 400",
	"rate_over_link":                "≥ 0.8",
	"loss5_over_loss0":              "≤ 1.5",
	"over_udpcast":                  "≥ 1",
	"hang_rate":                     "0",
}

// parts are all that can be measured, in their order.
func (b *bench) parts() figures.Parts {
	return figures.Parts{
		{Name: "fetch", Usual: true, Measure: b.fetch},
		{Name: "bulk", Usual: true, Measure: b.bulk},
		{Name: "fork", Usual: true, Measure: b.fork},
		{Name: "ready", Usual: true, Measure: b.ready},
		{Name: "hang", Measure: b.hang},
	}
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == workerArgument {
		if err := beWorker(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench-distribution: a host's worker:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{Stage: stage.New("distribution"), warm: map[int]bool{}}
	b.KeepCache()
	flag.IntVar(&b.rounds, "rounds", 5, "measurements of each side")
	flag.IntVar(&b.jobs, "jobs", 200, "jobs of the part hang")
	flag.Int64Var(&b.rate, "rate", 300, "Mbit/s of the links of the part bulk")
	flag.Int64Var(&b.forkRate, "fork-rate", 200, "Mbit/s of the links of the part fork")
	b.RunParts(b.parts(), promises, func() error {
		if b.rounds < 1 || b.jobs < 1 || b.rate < 1 || b.forkRate < 1 {
			return errors.New("-rounds, -jobs, -rate and -fork-rate are at least 1")
		}
		return nil
	})
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }
func us(d time.Duration) float64 { return d.Seconds() * 1e6 }

// micros are times in microseconds.
func micros(times []time.Duration) (values []float64) {
	for _, t := range times {
		values = append(values, us(t))
	}
	return values
}

// randomSlice makes a sealed slice of bytes that nothing can compress.
func (b *bench) randomSlice(ctx context.Context, size int64) (files SliceArgs, err error) {
	files = SliceArgs{filepath.Join(b.Tmp, fmt.Sprintf("random-%d", size)), filepath.Join(b.Tmp, fmt.Sprintf("random-%d.map", size))}
	if _, err := os.Stat(files.Map); err == nil {
		return files, nil
	}
	f, err := os.OpenFile(files.Data, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return files, err
	}
	_, err = io.CopyN(f, rand.Reader, size)
	if err = errors.Join(err, f.Close()); err != nil {
		return files, err
	}
	s, _, err := slice.Seal(ctx, files.Data, files.Map, slice.Memory, slice.SealOptions{})
	if err != nil {
		return files, err
	}
	return files, s.Close()
}

// environ has jobs use the benchmark's cache.
func (b *bench) environ() string { return "XDG_CACHE_HOME=" + b.Cache }

// warmUp makes the guest of the examples with a number of virtual CPUs, and its checkpoint with a working set, as the
// first job of a user does.
func (b *bench) warmUp(ctx context.Context, vcpus int) error {
	if b.warm[vcpus] {
		return nil
	}
	progress("making the guest image and a checkpoint with %d virtual CPUs", vcpus)
	for range 2 { // what the first one reads, the second one uses
		cmd := exec.CommandContext(ctx, b.Binary, "-q", "-np", fmt.Sprint(vcpus), "-ppn", fmt.Sprint(vcpus), filepath.Join(b.Examples, "hello"))
		cmd.Dir, cmd.Stderr, cmd.Env = b.Examples, os.Stderr, append(os.Environ(), b.environ())
		cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(unix.SIGTERM) }, limit
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("make the guest: %w", err)
		}
	}
	b.warm[vcpus] = true
	return nil
}
