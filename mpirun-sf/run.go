package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/openmpi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/trace"
)

// job is one run of the launcher.
type job struct {
	options
	user    caller
	program string       // absolute path
	apps    []launch.App // what runs instead, with its own rules
	rules   rules        // of mpiexec, whose part this launcher takes; nil for its own
	found   recognised   // of the programs
	id      string
	lost    chan string
	begin   time.Time
	ucx     bool
	wire    launch.Wire
	phases  []trace.Event // each begins where the one before has ended
	// instead, if set, is what is done on clones instead of launching ranks there.
	instead func(ctx context.Context, s site, places []launch.Place) error
	orterun openmpi.Launcher // what a program of Open MPI is launched by

	signals chan os.Signal
	// ready ends what signals do before there are ranks to forward them to. It
	// may be called more than once.
	ready func()
}

func newJob(o options) *job {
	return &job{
		options: o, id: strings.ToLower(rand.Text()[:12]), lost: make(chan string, 16), begin: time.Now(),
		signals: make(chan os.Signal, 8), ready: func() {},
	}
}

// site is where a job runs: on this machine, which starts virtual machines
// (host.go), in a virtual machine, which forks itself (inside.go), or without
// clones (bare.go). Its methods are called in this order, each once; close always, once open was well.
type site interface {
	check() error                                                                                    // what can be known to be wrong before anything is made
	open(ctx context.Context) error                                                                  //
	clone(ctx context.Context) ([]launch.Place, error)                                               // ticket and clones, ready to run ranks
	spawn(ctx context.Context, apps []launch.App) (places []launch.Place, release func(), err error) // while ranks run: see launch.Job
	end(ctx context.Context) error                                                                   // the ranks have ended: so do the clones
	close() error                                                                                    // nothing of the job is left
}

// launchJob does what the command is for: ticket, clones, ranks, join.
func launchJob(ctx context.Context, o options) error {
	j := newJob(o)
	if o.noClone {
		return j.run(ctx, newBare(j, nil))
	}
	if vm, ok := findVM(ctx, j); ok {
		return j.run(ctx, vm)
	}
	return j.run(ctx, newHost(j))
}

func (j *job) run(ctx context.Context, s site) (err error) {
	if err := j.check(); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	// Before there are ranks to forward them to, signals end the job; what was
	// begun is taken down either way.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signal.Notify(j.signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	starting := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case s := <-j.signals:
			cancel(exitStatus(128 + int(s.(syscall.Signal))))
		case <-starting:
		}
	}()
	j.ready = sync.OnceFunc(func() { close(starting); <-stopped })
	if err := s.open(ctx); err != nil {
		return err
	}
	defer func() {
		tui.EndStep()
		if closeErr := s.close(); err == nil {
			err = closeErr
		}
		j.phase("job ended and cleaned up")
	}()
	places, err := s.clone(ctx)
	if err == nil {
		j.ready()
		err = context.Cause(ctx)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	tui.EndStep()
	if j.instead != nil {
		return j.finish(ctx, s, j.instead(ctx, s, places))
	}
	run := launch.Job{
		Name: j.id, User: j.user.User, Wire: j.wire, UCX: j.ucx,
		Apps:   j.programs(),
		Places: places, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Label: j.label,
		StartLimit: j.startLimit, Signals: j.signals, Lost: j.lost, Spawn: s.spawn,
		Notice: func(line string) { tui.Notice("%s", line) },
	}
	if j.rules != nil {
		j.rules.adapt(&run)
	}
	return j.finish(ctx, s, run.Run(ctx))
}

// finish ends the clones of a job whose ranks have ended with err.
func (j *job) finish(ctx context.Context, s site, err error) error {
	j.phase("ranks ended")
	if endErr := s.end(ctx); err == nil {
		err = endErr
	}
	if j.rules != nil {
		return j.rules.conclude(ctx, err)
	}
	return verdict(err)
}

// rules are those of another launcher, whose part this one takes.
type rules interface {
	adapt(*launch.Job)                             // before the ranks start
	conclude(ctx context.Context, err error) error // says what Run's error means, and is what the launcher ends with
}

// programs are what runs.
func (j *job) programs() []launch.App {
	if j.apps != nil {
		return j.apps
	}
	return []launch.App{{Argv: append([]string{j.program}, j.argv[1:]...), Env: j.environment(), Dir: j.dir, Ranks: j.np}}
}

// files are the programs that run, each once, by their paths.
func (j *job) files() []string {
	all := []string{j.program}
	for _, a := range j.apps {
		if !slices.Contains(all, a.File) {
			all = append(all, a.File)
		}
	}
	return all
}

// verdict is the exit status of a job that ended with err.
func verdict(err error) error {
	var failure *launch.Failure
	switch {
	case errors.As(err, &failure):
		tui.Error(err)
		return exitStatus(failure.Status)
	case errors.Is(err, launch.ErrInterrupted):
		tui.Error(errors.New("interrupted; the ranks were ended by force"))
		return exitStatus(128 + int(syscall.SIGINT))
	}
	return err
}

// check finds out what is wrong with the program, wherever it is to run.
func (j *job) check() (err error) {
	if j.user, err = findCaller(); err != nil {
		return err
	}
	if j.apps == nil {
		if j.program, err = findProgram(j.argv[0], j.dir); err != nil {
			return err
		}
		if j.noClone {
			return j.chooseBare()
		}
		return j.choose()
	}
	j.program = j.apps[0].File
	for _, a := range j.apps {
		if err == nil && !j.noClone {
			err = j.refuseOpenMPI(a)
		}
	}
	return err
}

// findProgram resolves a program's name as a shell would in dir.
func findProgram(name, dir string) (string, error) {
	path := name
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
	} else {
		found, err := exec.LookPath(name)
		if err != nil {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				return "", fmt.Errorf("%s is not on PATH; did you mean ./%s?", name, name)
			}
			return "", fmt.Errorf("%s is not on PATH: there is no such program", name)
		}
		path = found
	}
	return filepath.Abs(path)
}

// environment is what ranks find in theirs: the launcher's, the user's own
// home under sudo, and -env.
func (j *job) environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "PMI_") || strings.HasPrefix(e, "SUDO_") || strings.HasPrefix(e, "LD_PRELOAD=")
	})
	if os.Getenv("SUDO_UID") != "" && j.user.name != "" {
		env = append(env, "USER="+j.user.name, "LOGNAME="+j.user.name, "HOME="+j.user.home)
	}
	return append(append(env, inGuest()...), j.env...)
}

// inGuest is what programs have to find in their environment in a clone.
func inGuest() []string {
	if os.Getenv("HWLOC_COMPONENTS") != "" {
		return nil
	}
	// The guest has no display, and not the libraries to look for one.
	return []string{"HWLOC_COMPONENTS=-gl,-opencl"}
}

// phase is a line of the -v timeline.
func (j *job) phase(format string, args ...any) {
	what, begin := fmt.Sprintf(format, args...), j.begin
	if n := len(j.phases); n > 0 {
		begin = j.phases[n-1].Begin.Add(j.phases[n-1].Duration)
	}
	j.phases = append(j.phases, trace.Event{Name: what, Host: "launcher", Begin: begin, Duration: time.Since(begin)})
	tui.Detail("%7.3f s  %s", time.Since(j.begin).Seconds(), what)
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func ints(u []uint32) []int {
	var out []int
	for _, n := range u {
		out = append(out, int(n))
	}
	return out
}
