package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/mpich"
)

// options are the command line.
type options struct {
	binary     string // mpirun-sf
	mpiexec    string // the same under the name by which it is MPICH's mpiexec
	cache      string
	buildOnly  bool
	built      bool // a build must be there
	jobs       int
	chosen     *regexp.Regexp
	sides      []string
	runs       int
	ranks      int64
	stretch    float64
	cloneFlags []string
	out, doc   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mpichsuite:", err)
		os.Exit(1)
	}
}

func parseOptions() (o options, err error) {
	bin := flag.String("bin", "bin", "folder with mpirun-sf")
	flag.StringVar(&o.cache, "cache", "", "folder where MPICH is built, and kept; without it one in the user's cache")
	flag.BoolVar(&o.buildOnly, "build", false, "build, and run nothing")
	flag.BoolVar(&o.built, "built", false, "build nothing: fail where there is no build")
	flag.IntVar(&o.jobs, "jobs", runtime.NumCPU(), "compilers at once")
	run := flag.String("run", "", "a regular expression for the entries to run, such as ^spawn/ or ' 2$'; short for some of each kind")
	sides := flag.String("sides", "hydra,clones", "where to run them: hydra, clones, no-clone, mpirun-sf")
	flag.IntVar(&o.runs, "runs", 1, "runs of each entry on each side; it passes if all do")
	flag.Int64Var(&o.ranks, "ranks", 8, "ranks that may run at once: entries with few run beside each other")
	flag.Float64Var(&o.stretch, "stretch", 4, "how much longer than its testlist says an entry may take, on all sides")
	cloneFlags := flag.String("clone-options", "--memory 192M --start-timeout 10m", "more options for clones")
	flag.StringVar(&o.out, "out", "benchmarks/results/mpich-suite.json", "file for results; - for none")
	flag.StringVar(&o.doc, "doc", "docs/mpich-suite.md", "document whose results are replaced; - for none")
	flag.Parse()
	o.sides, o.cloneFlags = strings.Split(*sides, ","), strings.Fields(*cloneFlags)
	pattern := *run
	if pattern == "short" {
		pattern = short
	}
	if o.chosen, err = regexp.Compile(pattern); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	if o.runs < 1 || o.ranks < 1 || o.jobs < 1 || o.stretch < 1 {
		return o, errors.New("-runs, -ranks, -jobs and -stretch are at least 1")
	}
	if o.cache == "" {
		if o.cache, err = mpich.DefaultCache(); err != nil {
			return o, fmt.Errorf("%w: name a folder with -cache", err)
		}
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return o, err
	}
	o.binary, err = filepath.Abs(filepath.Join(*bin, "mpirun-sf"))
	return o, err
}

// short are ten entries or so which together touch all that a launcher does: exit statuses, abort, errors, spawn, names,
// connections.
const short = `^(init/exitst2 4|init/session 4|init/attrself 1|errhan/commcall 2|errhan/errfatal 1|` +
	`spawn/spawn1 1|spawn/spawnargv 1|spawn/spaconacc 1|spawn/namepub 2|spawn/disconnect 3|ft/abort 2)$`

func run(ctx context.Context) error {
	o, err := parseOptions()
	if err != nil {
		return err
	}
	var of *mpich.Build
	if o.built {
		of, err = mpich.Open(o.cache)
	} else {
		of, err = mpich.Make(ctx, o.cache, o.jobs, progress)
	}
	if err != nil || o.buildOnly {
		return err
	}
	entries, err := entriesOf(of)
	if err != nil {
		return err
	}
	links, err := os.MkdirTemp("", "mpirun-sf-mpichsuite-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(links)
	o.mpiexec = filepath.Join(links, "mpiexec")
	if err := os.Symlink(o.binary, o.mpiexec); err != nil {
		return err
	}
	all, sides := o.allSides(of), []side(nil)
	for _, name := range o.sides {
		i := slices.IndexFunc(all, func(s side) bool { return s.name == name })
		if i < 0 {
			return fmt.Errorf("-sides: there is no side %q", name)
		}
		sides = append(sides, all[i])
	}
	found, err := loadResults(o.out, entries)
	if err != nil {
		return err
	}
	// A run that is interrupted after an hour has found something, too.
	err = o.runAll(ctx, of, entries, sides, found)
	if o.out != "-" {
		err = errors.Join(err, found.save(o.out))
	}
	if o.doc != "-" {
		err = errors.Join(err, found.document(o.doc, all))
	}
	if err != nil {
		return err
	}
	return o.verdict(found, sides)
}

// allSides are the launchers that there are.
func (o options) allSides(of *mpich.Build) []side {
	return []side{
		{name: "hydra", about: "`mpiexec.hydra` of the same build, all ranks on this machine", command: []string{of.Hydra()}, ranks: "-n", options: true, stretch: o.stretch},
		{
			name: "clones", about: "mpirun-sf's `mpiexec`, each rank in a clone of its own",
			command: []string{o.mpiexec}, ranks: "-n", own: own, options: true, stretch: o.stretch,
			env: []string{"MPIRUN_SF_OPTIONS=" + strings.Join(o.cloneFlags, " ")},
		},
		{
			name: "no-clone", about: "mpirun-sf's `mpiexec --no-clone`, all ranks on this machine",
			command: []string{o.mpiexec, "--no-clone"}, ranks: "-n", own: own, options: true, stretch: o.stretch,
		},
		{
			name: "mpirun-sf", about: "`mpirun-sf`, each rank in a clone of its own, without the options that it has not in common with MPICH's `mpiexec`",
			command: slices.Concat([]string{o.binary, "-q"}, o.cloneFlags), ranks: "-np", own: own, stretch: o.stretch,
		},
	}
}

// own is what mpirun-sf's own lines begin with.
const own = "mpirun-sf: "

// entries are those of all folders.
func entriesOf(of *mpich.Build) (all []entry, err error) {
	for _, folder := range mpich.Folders {
		f, err := os.Open(filepath.Join(of.Folder(folder), "testlist"))
		if err != nil {
			return nil, fmt.Errorf("find the tests: %w", err)
		}
		some, err := readTestlist(folder, f)
		f.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return append(all, bindings()), nil
}

// runAll runs the chosen entries on some sides. Those of few ranks run beside each other, the sides of an entry in turns.
func (o options) runAll(ctx context.Context, of *mpich.Build, entries []entry, sides []side, found *results) error {
	room := semaphore.NewWeighted(o.ranks)
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex // guards found
	began, ran := time.Now(), 0
	for _, e := range entries {
		if !o.chosen.MatchString(e.name()) {
			continue
		}
		ran++
		ranks := min(int64(e.Ranks), o.ranks)
		if err := room.Acquire(ctx, ranks); err != nil {
			break
		}
		group.Go(func() error {
			defer room.Release(ranks)
			for _, s := range sides {
				out, err := s.run(ctx, of, e, o.runs)
				if err != nil {
					return err
				}
				progress("%-50s %-8s %6.1f s  %s", e.name(), s.name, out.Seconds, result{Sides: map[string]outcome{"": out}}.cell(""))
				mu.Lock()
				found.add(e.name(), s.name, out)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if ran == 0 {
		return fmt.Errorf("-run %s: there is no such entry", o.chosen)
	}
	progress("%d entries took %v", ran, time.Since(began).Round(time.Second))
	return nil
}

// verdict is an error when fewer of the chosen entries pass on a side than under hydra.
func (o options) verdict(found *results, sides []side) error {
	var err error
	for _, s := range sides {
		both, hydra, here := found.passed("hydra", s.name, func(r result) bool { return o.chosen.MatchString(r.Name) })
		if s.name == "hydra" || both == 0 {
			continue
		}
		progress("of %d entries %d pass on %s, %d under hydra", both, here, s.name, hydra)
		if here < hydra {
			err = errors.Join(err, fmt.Errorf("%d entries pass on %s, and %d under hydra", here, s.name, hydra))
		}
	}
	return err
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "mpichsuite: "+format+"\n", args...)
}
