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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// bench is the state of one run of the benchmark.
type bench struct {
	binary, examples string
	out              string // folder of results
	tmp              string
	cache            string       // XDG_CACHE_HOME of jobs
	warm             map[int]bool // the cache has a guest with so many virtual CPUs
	rounds           int
	jobs             int // of the part hang
	rate             int64
	forkRate         int64
	record           *record
}

// part is what can be measured alone.
type part struct {
	name    string
	usual   bool // measured where none is named
	measure func(*bench, context.Context) error
}

// parts are all of them, in their order.
var parts = []part{
	{"fetch", true, (*bench).fetch},
	{"bulk", true, (*bench).bulk},
	{"fork", true, (*bench).fork},
	{"ready", true, (*bench).ready},
	{"hang", false, (*bench).hang},
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == workerArgument {
		if err := beWorker(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench-distribution: a host's worker:", err)
			os.Exit(1)
		}
		return
	}
	// Hosts, machines and gigabytes go with whoever has enough of it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-distribution:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b := &bench{warm: map[int]bool{}}
	var names []string
	for _, p := range parts {
		if p.usual {
			names = append(names, p.name)
		}
	}
	chosen := flag.String("part", strings.Join(names, ","), "what to measure; there is hang too, which takes long")
	note := flag.String("note", "", "what is to be known of this run, for distribution.json")
	bin := flag.String("bin", "bin", "folder with mpirun-sf and examples/")
	flag.StringVar(&b.out, "out", "benchmarks/results", "folder for distribution.json and the plots")
	flag.StringVar(&b.cache, "cache", "", "folder for guest images that is kept; without it there is one for this run")
	flag.IntVar(&b.rounds, "rounds", 5, "measurements of each side")
	flag.IntVar(&b.jobs, "jobs", 200, "jobs of the part hang")
	flag.Int64Var(&b.rate, "rate", 300, "Mbit/s of the links of the part bulk")
	flag.Int64Var(&b.forkRate, "fork-rate", 200, "Mbit/s of the links of the part fork")
	flag.Parse()
	names = strings.Split(*chosen, ",")
	for _, name := range names {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("-part %s: there is no part %q", *chosen, name)
		}
	}
	if b.rounds < 1 || b.jobs < 1 || b.rate < 1 || b.forkRate < 1 {
		return errors.New("-rounds, -jobs, -rate and -fork-rate are at least 1")
	}
	dir, err := filepath.Abs(*bin)
	if err != nil {
		return err
	}
	b.binary, b.examples = filepath.Join(dir, "mpirun-sf"), filepath.Join(dir, "examples")
	// Not /tmp, which may be RAM: what comes from other hosts lies on disk there, too.
	if b.tmp, err = os.MkdirTemp("/var/tmp", "mpirun-sf-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.tmp)
	if b.cache == "" {
		b.cache = filepath.Join(b.tmp, "cache")
	} else if b.cache, err = filepath.Abs(b.cache); err != nil {
		return err
	}
	if b.record, err = openRecord(filepath.Join(b.out, "distribution.json")); err != nil {
		return err
	}
	for _, p := range parts {
		if !slices.Contains(names, p.name) {
			continue
		}
		began := time.Now()
		b.record.begin(p.name, *note)
		if err := p.measure(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		// Each part is kept, whatever becomes of the next.
		if err := b.record.save(); err != nil {
			return err
		}
		progress("%s took %v", p.name, time.Since(began).Round(time.Second))
	}
	return b.record.print(os.Stdout, names)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-distribution: "+format+"\n", args...)
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
	files = SliceArgs{filepath.Join(b.tmp, fmt.Sprintf("random-%d", size)), filepath.Join(b.tmp, fmt.Sprintf("random-%d.map", size))}
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
func (b *bench) environ() string { return "XDG_CACHE_HOME=" + b.cache }

// warmUp makes the guest of the examples with a number of virtual CPUs, and its checkpoint with a working set, as the
// first job of a user does.
func (b *bench) warmUp(ctx context.Context, vcpus int) error {
	if b.warm[vcpus] {
		return nil
	}
	progress("making the guest image and a checkpoint with %d virtual CPUs", vcpus)
	for range 2 { // what the first one reads, the second one uses
		cmd := exec.CommandContext(ctx, b.binary, "-q", "-np", fmt.Sprint(vcpus), "-ppn", fmt.Sprint(vcpus), filepath.Join(b.examples, "hello"))
		cmd.Dir, cmd.Stderr, cmd.Env = b.examples, os.Stderr, append(os.Environ(), b.environ())
		cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(unix.SIGTERM) }, limit
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("make the guest: %w", err)
		}
	}
	b.warm[vcpus] = true
	return nil
}
