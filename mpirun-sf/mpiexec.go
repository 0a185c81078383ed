package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/mpich-shim"
	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/slurm"
)

// This program under the name of MPICH's mpiexec: package mpichshim says what was
// asked for, and what becomes of it.

// asMpiexec tells whether the program was started as MPICH's mpiexec, and with which
// arguments.
func asMpiexec(args []string) ([]string, bool) {
	switch filepath.Base(args[0]) {
	case "mpiexec", "mpirun", "mpiexec.hydra":
		return args[1:], true
	}
	return nil, false
}

// mpiexecFailed is the exit status of all that is not the ranks' own.
const mpiexecFailed = 255

// mpiexecMain runs mpiexec with these arguments, and returns its exit status.
func mpiexecMain(args []string, stdout, stderr io.Writer) int {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	m := &mpiexec{host: host, stdout: stdout, stderr: stderr}
	if err := m.run(context.Background(), args); err != nil {
		var status exitStatus
		if errors.As(err, &status) {
			return int(status)
		}
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "[mpiexec@%s] %s\n", host, strings.TrimRight(line, "\n"))
		}
		return mpiexecFailed
	}
	return 0
}

// mpiexec is one run of it.
type mpiexec struct {
	host           string // this machine's name
	stdout, stderr io.Writer

	*mpichshim.Command
	job     *job
	printer *mpichshim.Printer
	ends    mpichshim.Ends
	running *launch.Job
	all     []mpichshim.Host // that ranks could run on
	nodes   []mpichshim.Host // one for each place of running
	node    map[int]int      // by rank
}

func (m *mpiexec) run(ctx context.Context, args []string) error {
	dir, err := workingDirectory()
	if err != nil {
		return err
	}
	m.Command, err = mpichshim.Parse(args, mpichshim.System{LookupEnv: os.LookupEnv, ReadFile: os.ReadFile, Dir: dir})
	switch {
	case err != nil:
		return err
	case m.WantsInfo():
		_, err = io.WriteString(m.stdout, mpichshim.Info(version))
		return err
	case m.Show != "":
		_, err = io.WriteString(m.stdout, m.Show)
		return err
	case m.Singleton != nil:
		return m.serveSingleton(ctx)
	}
	// What this program says of its own would be taken for the ranks'.
	if tui.level = quiet; m.Verbose {
		tui.level = verbose
	}
	for _, line := range m.Without(!m.NoClone) {
		tui.Detail("%s", line)
	}
	if err := m.prepare(); err != nil {
		return err
	}
	if m.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, m.Timeout, errMpiexecTimeout)
		defer cancel()
	}
	defer m.printer.Close()
	err = m.launch(ctx)
	if errors.Is(err, errMpiexecTimeout) {
		m.say("APPLICATION TIMED OUT, TIMEOUT = %ds", int(m.Timeout/time.Second))
		return exitStatus(mpiexecFailed)
	}
	return err
}

var errMpiexecTimeout = errors.New("MPIEXEC_TIMEOUT is over")

// say writes a line as Hydra's are.
func (m *mpiexec) say(format string, args ...any) {
	m.printer.Say(fmt.Sprintf("[mpiexec@%s] %s\n", m.host, fmt.Sprintf(format, args...)))
}

// prepare makes a job of what was asked for.
func (m *mpiexec) prepare() error {
	o, err := m.options()
	if err != nil {
		return err
	}
	j := newJob(o)
	j.rules, m.job = m, j
	j.argv = m.Apps[0].Argv
	m.printer = mpichshim.NewPrinter(m.Command, m.stdout, m.stderr)
	m.ends.AutoCleanup = m.AutoCleanup
	missing := false
	for _, a := range m.Apps {
		path, argv, err := findExecutable(a)
		if err != nil {
			missing = true
			for range max(1, a.Ranks) {
				fmt.Fprintf(m.stderr, "[proxy:0:0@%s] execvp error on file %s (%s)\n", m.host, a.Argv[0], capital(err.Error()))
			}
			continue
		}
		env := m.Environ(a, os.Environ())
		if !m.NoClone {
			env = append(env, inGuest()...)
		}
		j.apps = append(j.apps, launch.App{File: path, Argv: argv, Env: env, Dir: a.Dir, Ranks: a.Ranks})
	}
	if missing {
		return exitStatus(mpiexecFailed)
	}
	return nil
}

// options are those of mpirun-sf that stand in MPIRUN_SF_OPTIONS, and those that
// follow from what mpiexec was asked for.
func (m *mpiexec) options() (o options, err error) {
	words, err := slurm.Words(os.Getenv("MPIRUN_SF_OPTIONS"))
	if err != nil {
		return o, fmt.Errorf("MPIRUN_SF_OPTIONS: %w", err)
	}
	app := launcherApp()
	app.Action = func(c *cli.Context) error {
		o, err = parseOptions(c)
		return err
	}
	args := append(append([]string{"mpirun-sf"}, words...), m.Apps[0].Argv[0])
	if err := app.Run(normalise(app.Flags, args)); err != nil {
		return o, fmt.Errorf("MPIRUN_SF_OPTIONS: %w", err)
	}
	if len(o.argv) != 1 {
		return o, fmt.Errorf("MPIRUN_SF_OPTIONS: %q is not an option", words[len(words)-len(o.argv)+1])
	}
	o.noClone, o.dir = m.NoClone, m.Apps[0].Dir
	if len(m.Hosts) > 0 {
		o.hosts, o.hostfile, o.allocator = "", "", ""
	}
	switch {
	case len(m.Hosts) > 0:
	case m.Launcher == "fork" || m.Manager == "user":
		o.allocator = "local"
	case m.Launcher == "slurm" || m.Manager == "slurm":
		// Inside of an allocation alone: mpiexec asks for none.
	}
	return o, nil
}

// launch runs the job where it belongs.
func (m *mpiexec) launch(ctx context.Context) error {
	j := m.job
	if m.NoClone {
		if err := m.CheckInterface(); err != nil {
			return err
		}
		j.hosts = m.hostNames()
		if m.Launcher == "fork" {
			j.hosts = ""
		}
		return j.run(ctx, newBare(j, m.Command))
	}
	nodes, err := m.Nodes(nil, m.host, func(name string) bool { return name == m.host || name == "localhost" })
	if err != nil {
		return err
	}
	if j.np, err = m.Ranks(nodes); err != nil {
		return err
	}
	m.all = nodes
	for i := range j.apps {
		j.apps[i].Ranks = m.Apps[i].Ranks
	}
	j.ppn = min(max(1, m.PPN), j.np, 255)
	if len(m.Hosts) > 0 {
		j.hosts = carriers(nodes, mpichshim.Layout(nodes, j.np))
	}
	if vm, ok := findVM(ctx, j); ok {
		return j.run(ctx, vm)
	}
	return j.run(ctx, newHost(j))
}

// hostNames are the hosts named, each once, as mpirun-sf takes them.
func (m *mpiexec) hostNames() string {
	var list []string
	for _, h := range m.Hosts {
		list = append(list, hostWord(h))
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ",")
}

// carriers are the hosts that carry clones, with as many slots as Hydra would have
// started ranks there.
func carriers(nodes []mpichshim.Host, ranks [][]int) string {
	var list []string
	for i, h := range nodes {
		if n := len(ranks[i]); n > 0 {
			list = append(list, fmt.Sprintf("%s:%d", hostWord(h), n))
		}
	}
	return strings.Join(list, ",")
}

func hostWord(h mpichshim.Host) string {
	name := h.Name
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if h.User != "" {
		return h.User + "@" + name
	}
	return name
}

// adapt gives a job Hydra's rules.
func (m *mpiexec) adapt(run *launch.Job) {
	m.running, m.node = run, map[int]int{}
	for i, p := range run.Places {
		m.nodes = append(m.nodes, mpichshim.Host{Name: p.Name})
		for _, rank := range p.Ranks {
			m.node[rank] = i
		}
	}
	run.Universe = m.UniverseSize(m.all)
	if m.Singleton != nil {
		run.Singleton = m.Singleton.Port
		run.Places = []launch.Place{{Name: m.host, Ranks: []int{0}}}
	}
	run.Output = func(rank, fd int) io.WriteCloser {
		return m.printer.Stream(mpichshim.Source{Rank: rank, Node: m.node[rank], Host: m.nodes[m.node[rank]].Name}, fd)
	}
	run.Judge = m.judge
	run.Interrupted = func() {
		m.say("Sending Ctrl-C to processes as requested")
		m.say("Press Ctrl-C again to force abort")
	}
	signal.Reset(syscall.SIGHUP, syscall.SIGUSR2) // which Hydra leaves to end it
	signal.Notify(m.job.signals, syscall.SIGALRM)
}

// judge takes a rank's end. One that a signal ended, or that left MPI without
// MPI_Finalize, ends the job, unless that was not wanted.
func (m *mpiexec) judge(rank int, place string, e agent.Exit, s pmi.State) (*launch.Failure, bool) {
	if e.Error != "" {
		return &launch.Failure{Rank: rank, Clone: place, Status: mpiexecFailed, Cause: "was lost: " + e.Error}, true
	}
	status := e.Status
	if s == pmi.Initialized && e.Signal == 0 && status == 0 {
		status = 1
	}
	m.printer.Say(m.ends.Add(mpichshim.End{Rank: rank, PID: e.PID, Host: place, Status: status, Signal: e.Signal, Core: e.Core}))
	if status == 0 && e.Signal == 0 {
		return nil, false
	}
	return &launch.Failure{Rank: rank, Clone: place, Status: status}, m.AutoCleanup && (e.Signal != 0 || s == pmi.Initialized)
}

// conclude says what became of the job.
func (m *mpiexec) conclude(ctx context.Context, err error) error {
	var failure *launch.Failure
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, launch.ErrInterrupted):
		m.printer.Say("Ctrl-C caught... cleaning up processes\n")
		return exitStatus(mpiexecFailed)
	case errors.As(err, &failure) && failure.Abort != nil:
		m.ends.Add(mpichshim.End{Rank: failure.Rank, Status: *failure.Abort})
	case errors.As(err, &failure) && failure.Cause != "":
		return failure // a rank or a host was lost, or ended before the others' MPI_Init
	case err != nil && failure == nil:
		return err
	}
	if m.PrintExitCodes {
		m.say("%s", strings.TrimSuffix(m.exitCodes(), "\n"))
	}
	status, said := m.ends.Status()
	m.printer.Say(said)
	if status == 0 {
		return nil
	}
	return exitStatus(status)
}

// exitCodes are those of the ranks that the command line was for.
func (m *mpiexec) exitCodes() string {
	var ends mpichshim.Ends
	for rank, e := range m.running.Exits {
		if e != nil {
			ends.Add(mpichshim.End{Rank: rank, Status: e.Status, Signal: e.Signal, Core: e.Core})
		}
	}
	ranks := make([][]int, len(m.nodes))
	for i, p := range m.running.Places {
		ranks[i] = p.Ranks
	}
	return ends.ExitCodes(m.nodes, ranks)
}

// capital is how C begins what went wrong.
func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// workingDirectory is it by the name that the shell has for it.
func workingDirectory() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	return dir, nil
}

// findExecutable is a program with its arguments, as the kernel can start it. A file
// of commands that names no shell is given to sh, as execvp(3) does.
func findExecutable(a mpichshim.App) (path string, argv []string, err error) {
	if path, err = findProgram(a.Argv[0], a.Dir); err != nil {
		return "", nil, unix.ENOENT
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, unix.ENOENT
	case err != nil:
		return "", nil, err
	case st.IsDir() || unix.Access(path, unix.X_OK) != nil:
		return "", nil, unix.EACCES
	}
	var first [2]byte
	if f, err := os.Open(path); err == nil {
		n, _ := io.ReadFull(f, first[:])
		f.Close()
		if n == 2 && string(first[:]) != "#!" && string(first[:]) != "\x7fE" {
			return "/bin/sh", append([]string{"sh", path}, a.Argv[1:]...), nil
		}
	}
	return path, a.Argv, nil
}
