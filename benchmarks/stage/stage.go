// Package stage is what every benchmark stands on: a command line with the options that all of them have, the folders that it
// works in, and an end that leaves nothing behind.
//
// # Flow
//
//  1. [New] adds the options of all benchmarks to the command line; a benchmark adds its own.
//  2. [Stage.Run] reads it, makes the folders, and has the benchmark measure, until that is done or a signal comes.
//  3. A benchmark in parts, of which one run may measure only some, has [Stage.RunParts] do that. Others end with
//     [Stage.Report].
package stage

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

// Stage is one run of a benchmark. Its folders are absolute paths, and there once it runs.
type Stage struct {
	Binary   string          // mpirun-sf
	Examples string          // folder of the examples, compiled for MPICH
	Out      string          // folder of results
	Tmp      string          // folder that goes with the run; it is on a disk, for /tmp may be RAM
	Cache    string          // XDG_CACHE_HOME of jobs
	Record   *figures.Record // of a benchmark in parts

	name string
	bin  string
	note string // what the user says is to be known of this run
}

// New is the stage of a benchmark by name, such as "mpi". Its results are in a file of that name.
func New(name string) *Stage {
	s := &Stage{name: name}
	flag.StringVar(&s.bin, "bin", "bin", "folder with mpirun-sf and examples/")
	flag.StringVar(&s.Out, "out", "benchmarks/results", fmt.Sprintf("folder for %s.json and the plots", name))
	flag.StringVar(&s.note, "note", "", fmt.Sprintf("what is to be known of this run, for %s.json", name))
	return s
}

// KeepCache adds an option to keep guest images. Without it they are made in each run, as a first run of a user does.
func (s *Stage) KeepCache() {
	flag.StringVar(&s.Cache, "cache", "", "folder for guest images that is kept; without it there is one for this run")
}

// Progress tells on standard error what a benchmark by name does.
func Progress(name string) func(format string, args ...any) {
	return func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "bench-"+name+": "+format+"\n", args...)
	}
}

// Run runs the benchmark. Where it fails the process ends, with status 1.
func (s *Stage) Run(measure func(context.Context) error) {
	flag.Parse()
	// Hosts, machines and gigabytes go with whoever has enough of it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	err := s.open()
	if err == nil {
		err = measure(ctx)
	}
	if err = errors.Join(err, os.RemoveAll(s.Tmp)); err != nil {
		Progress(s.name)("%v", err)
		os.Exit(1)
	}
}

func (s *Stage) open() error {
	dir, err := filepath.Abs(s.bin)
	if err != nil {
		return err
	}
	s.Binary, s.Examples = filepath.Join(dir, "mpirun-sf"), filepath.Join(dir, "examples")
	if s.Tmp, err = os.MkdirTemp("/var/tmp", "mpirun-sf-bench-"); err != nil {
		return err
	}
	if s.Cache == "" {
		s.Cache = filepath.Join(s.Tmp, "cache")
		return nil
	}
	s.Cache, err = filepath.Abs(s.Cache)
	return err
}

// RunParts runs those parts of the benchmark that an option names. promises are what the specification says of figures.
// ready, which may be nil, is called before anything is measured.
func (s *Stage) RunParts(parts figures.Parts, promises map[string]string, ready func() error) {
	names := flag.String("part", parts.Usual(), fmt.Sprintf("what to measure, of %s", parts.Names()))
	s.Run(func(ctx context.Context) error {
		chosen, err := parts.Choose(*names)
		if err != nil {
			return err
		}
		if ready != nil {
			if err := ready(); err != nil {
				return err
			}
		}
		if s.Record, err = figures.OpenRecord(s.results("json"), promises); err != nil {
			return err
		}
		return s.Record.Measure(ctx, chosen, s.note, Progress(s.name))
	})
}

// results is the path of a file of results: NAME.json or NAME.svg.
func (s *Stage) results(kind string) string { return filepath.Join(s.Out, s.name+"."+kind) }

// NewReport is an empty report with notes, and the user's.
func (s *Stage) NewReport(notes ...string) *figures.Report {
	if s.note != "" {
		notes = append(notes, s.note)
	}
	return figures.New(notes...)
}

// Report writes what was found: the file of figures, the plot, and the table on standard output.
func (s *Stage) Report(r *figures.Report, plot func(path string) error) error {
	if err := r.Save(s.results("json")); err != nil {
		return err
	}
	if err := plot(s.results("svg")); err != nil {
		return err
	}
	return r.Print(os.Stdout)
}
