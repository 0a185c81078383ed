package main

import (
	"cmp"
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// job is one run of the launcher.
type job struct {
	options
	user    caller
	program string // absolute path
	id      string
	lost    chan string
	daemon  *sfld.Client
	begin   time.Time
	ucx     bool
}

func newJob(o options) *job {
	return &job{options: o, id: strings.ToLower(rand.Text()[:12]), lost: make(chan string, 16), begin: time.Now()}
}

// startDaemon starts the daemon that owns what the job makes.
func (j *job) startDaemon(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	cache, err := guest.DefaultCache()
	if err != nil {
		return err
	}
	j.daemon, err = sfld.Start(ctx, self, sfld.Options{
		Job: j.id, Cache: cache.Dir, Limit: cache.Limit, Window: j.window, Accel: j.accel,
		UID: int(j.user.UID), GID: int(j.user.GID), Groups: ints(j.user.Groups),
	}, j.notice)
	return err
}

// prepareArgs says what the clones are copies of, and how many are expected.
func (j *job) prepareArgs(expect int) sfld.PrepareArgs {
	return sfld.PrepareArgs{
		Program: j.program, LibraryPath: os.Getenv("LD_LIBRARY_PATH"), Disk: j.image,
		User: j.user.name, Home: j.user.home,
		VCPUs: j.ppn, Memory: j.memory * int64(j.ppn), Expect: expect,
	}
}

// launchJob does what the command is for: ticket, clones, ranks, join.
func launchJob(ctx context.Context, o options) (err error) {
	j := newJob(o)
	if err := j.check(); err != nil {
		return err
	}
	// Before there are ranks to forward them to, signals end the job; what was
	// begun is taken down either way.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	starting := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case s := <-signals:
			cancel(exitStatus(128 + int(s.(syscall.Signal))))
		case <-starting:
		}
	}()
	if err := j.startDaemon(ctx); err != nil {
		return err
	}
	defer func() {
		tui.EndStep()
		if closeErr := j.daemon.Close(); err == nil {
			err = closeErr
		}
		j.phase("job ended and cleaned up")
	}()
	places, tk, err := j.makeClones(ctx)
	if err == nil {
		close(starting)
		<-stopped
		err = context.Cause(ctx)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	tui.EndStep()
	run := launch.Job{
		Name: j.id, Argv: append([]string{j.program}, j.argv[1:]...), Env: j.environment(), Dir: j.dir, User: j.user.User, UCX: j.ucx,
		Places: places, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Label: j.label,
		StartLimit: j.startLimit, Signals: signals, Lost: j.lost,
		Notice: func(line string) { tui.Notice("%s", line) },
	}
	err = run.Run(ctx)
	j.phase("ranks ended")
	j.reportCounters(ctx)
	if killErr := j.daemon.Kill(ctx, tk); err == nil {
		err = killErr
	}
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

// check finds out what can be known to be wrong before anything is made.
func (j *job) check() (err error) {
	if j.user, err = findCaller(); err != nil {
		return err
	}
	if j.program, err = findProgram(j.argv[0], j.dir); err != nil {
		return err
	}
	kind, err := guest.Recognise(j.program, os.Getenv("LD_LIBRARY_PATH"))
	switch {
	case err != nil:
		return err
	case kind == guest.KindScript:
		return fmt.Errorf("%s is a script, and scripts cannot be launched yet: give the MPI program itself", j.argv[0])
	case kind == guest.KindOpenMPI:
		return guest.OpenMPIError(j.argv[0])
	}
	if err := checkMachine(); err != nil {
		return err
	}
	return j.checkFolders()
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

// systemFolders hold what a guest runs from, so none can be covered by a share.
var systemFolders = []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/var"}

// checkFolders makes the list of folders to share: the working directory
// first, if it can be, and what --share says.
func (j *job) checkFolders() error {
	st, err := os.Stat(j.dir)
	if err != nil || !st.IsDir() {
		return fmt.Errorf("the working directory %s does not exist", j.dir)
	}
	dir := j.dir
	for i, s := range j.shares {
		if slices.Contains(systemFolders, s.dir) {
			return fmt.Errorf("--share %s: a guest has its own %s; share a folder below it", s.dir, s.dir)
		}
		if s.dir == dir || strings.HasPrefix(dir, s.dir+"/") {
			dir = "" // the working directory is in it
		}
		j.shares[i] = s
	}
	switch {
	case dir == "":
	case slices.Contains(systemFolders, dir):
		tui.Notice("the working directory %s is not shared, for a guest has its own; files written there are lost", dir)
	default:
		if !writable(dir, j.user) {
			return fmt.Errorf("the working directory %s is not writable for %s: run in one that is, or share it for reading only: --share %s:ro", dir, cmp.Or(j.user.name, "you"), dir)
		}
		j.shares = append([]shareOption{{dir: dir}}, j.shares...)
	}
	// A folder is mounted before those inside of it.
	slices.SortStableFunc(j.shares, func(a, b shareOption) int { return strings.Compare(a.dir, b.dir) })
	j.shares = slices.CompactFunc(j.shares, func(a, b shareOption) bool { return a.dir == b.dir })
	return nil
}

// writable asks the file system, as the user that ranks run as.
func writable(dir string, u caller) bool {
	if u.UID == uint32(os.Geteuid()) {
		return unix.Access(dir, unix.W_OK) == nil
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return false
	}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return false
	}
	switch {
	case st.Uid == u.UID:
		return st.Mode&0o200 != 0
	case st.Gid == u.GID || slices.Contains(u.Groups, st.Gid):
		return st.Mode&0o020 != 0
	default:
		return st.Mode&0o002 != 0
	}
}

// makeClones gets a ticket and the clones that it allows, ready to run ranks.
func (j *job) makeClones(ctx context.Context) ([]launch.Place, ticket.Ticket, error) {
	wanted := (j.np + j.ppn - 1) / j.ppn
	granted, err := j.daemon.RequestTicket(ctx, sfld.RequestArgs{Clones: wanted, VCPUs: j.ppn, Memory: j.memory * int64(j.ppn), Strict: j.strict})
	if err != nil {
		return nil, ticket.Ticket{}, err
	}
	tk := granted.Ticket
	if err := j.judgeTicket(granted, wanted); err != nil {
		return nil, tk, err
	}
	j.phase("ticket for %d clones", len(tk.Clones))
	p, err := j.daemon.Prepare(ctx, j.prepareArgs(len(tk.Clones)))
	if err != nil {
		return nil, tk, err
	}
	j.ucx = p.UCX
	j.reportPrepared(p)

	begin := time.Now()
	mounts, place, err := j.serveFolders(ctx)
	if err != nil {
		return nil, tk, err
	}
	j.phase("folders served")
	cloned, err := j.daemon.Clone(ctx, tk, j.startLimit)
	if err != nil {
		return nil, tk, err
	}
	ready := time.Since(begin)
	tui.Notice("%s ready in %.2f s", plural(len(tk.Clones), "clone"), ready.Seconds())
	for _, c := range tk.Clones {
		tui.Detail("  %s: vCPUs running after %.0f ms, ready after %.0f ms", c.Name, ms(cloned.Running[c.ID]), ms(cloned.Ready[c.ID]))
	}
	j.phase("clones ready")

	limit, cancel := context.WithTimeout(ctx, j.startLimit)
	defer cancel()
	places, err := launch.Connect(limit, j.daemon.Attach, tk, j.np, mounts, place)
	if err != nil {
		return nil, tk, err
	}
	j.phase("folders mounted")
	return places, tk, nil
}

// judgeTicket says what a ticket for fewer clones than asked means.
func (j *job) judgeTicket(g sfld.Granted, wanted int) error {
	m := len(g.Ticket.Clones)
	if m < wanted {
		gb := func(n int64) float64 { return float64(n) / (1 << 30) }
		what := fmt.Sprintf("%s of %.1f GB fit into the %.1f GB that are free here (hypervisor included), for -np %d %d are needed",
			plural(m, "clone"), gb(g.Each), gb(g.Free), j.np, wanted)
		if j.strict && m >= g.Cores/j.ppn {
			what = fmt.Sprintf("--strict: this machine's %d cores carry %s of %d virtual CPUs, for -np %d %d are needed", g.Cores, plural(m, "clone"), j.ppn, j.np, wanted)
		}
		switch {
		case m == 0:
			return fmt.Errorf("%s: ask for fewer, or give each rank less with --memory", what)
		case !j.oversubscribe:
			return fmt.Errorf("%s: ask for fewer ranks, give each less with --memory, or let them share clones with --oversubscribe", what)
		}
		tui.Notice("%s; %d ranks share %s", what, j.np, plural(m, "clone"))
	}
	if vcpus := m * j.ppn; vcpus > g.Cores {
		tui.Notice("%d virtual CPUs on this machine's %d cores, expect them to take turns", vcpus, g.Cores)
	}
	return nil
}

func (j *job) reportPrepared(p sfld.Prepared) {
	if p.Built {
		tui.Notice("guest image built from %s (%d MB, %.1f s)", source(j.image), p.ImageBytes>>20, p.BuildTime.Seconds())
	}
	if p.Booted {
		tui.Notice("guest booted and checkpointed (%.1f s)", p.BootTime.Seconds())
	}
	switch {
	case p.AccelReason != "":
		tui.Notice("%s; using TCG, expect slow computation", p.AccelReason)
	case p.Accel == "tcg":
		tui.Notice("using TCG as asked, expect slow computation")
	}
	j.phase("image %.12s, checkpoint with %d bytes of device state", p.Image, p.StateBytes)
}

func source(image string) string {
	if image == "" {
		return "this machine"
	}
	return image
}

// serveFolders starts the servers of all shared folders, and of the program if
// it lies in none of them. Either way the agents take the program from there
// into memory, where its pages are not fetched one by one.
func (j *job) serveFolders(ctx context.Context) (mounts []share.Mounting, place agent.Place, err error) {
	covered := false
	for _, s := range j.shares {
		m, err := j.daemon.Share(ctx, sfld.ShareArgs{Folder: s.dir, Target: s.dir, ReadOnly: s.readOnly})
		if err != nil {
			return nil, place, err
		}
		mounts = append(mounts, m)
		real, err := filepath.EvalSymlinks(j.program)
		if err != nil {
			real = j.program
		}
		covered = covered || strings.HasPrefix(j.program, s.dir+"/") && strings.HasPrefix(real, s.dir+"/")
	}
	if covered {
		return mounts, agent.Place{From: j.program, At: j.program}, nil
	}
	m, err := j.daemon.Stage(ctx, j.program)
	if err != nil {
		return nil, place, err
	}
	return append(mounts, m), agent.Place{From: filepath.Join(sfld.StagedFolder, sfld.StagedName), At: j.program}, nil
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
	if os.Getenv("HWLOC_COMPONENTS") == "" {
		// The guest has no display, and not the libraries to look for one.
		env = append(env, "HWLOC_COMPONENTS=-gl,-opencl")
	}
	return append(env, j.env...)
}

func (j *job) notice(n sfld.Notice) {
	switch {
	case n.Progress != "":
		tui.Step(n.Progress)
	case n.Line != "":
		tui.Notice("%s", n.Line)
	case n.Gone != "":
		select {
		case j.lost <- n.Reason:
		default:
		}
	}
}

// phase is a line of the -v timeline.
func (j *job) phase(format string, args ...any) {
	tui.Detail("%7.3f s  %s", time.Since(j.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (j *job) reportCounters(ctx context.Context) {
	if tui.level < verbose {
		return
	}
	n, err := j.daemon.Counters(ctx)
	if err != nil {
		return
	}
	kb := func(n int64) float64 { return float64(n) / 1024 }
	tui.Detail("memory: %d reads, %.0f KB fetched, %d zero pages answered without a fetch, median %v, 99th percentile %v",
		n.Memory.Reads, kb(n.Memory.BytesFetched), n.Memory.ZeroBlocks, n.Memory.Latency.Percentile(50), n.Memory.Latency.Percentile(99))
	tui.Detail("disks:  %d reads, %.0f KB fetched, %d writes, %.0f KB written", n.Disks.Reads, kb(n.Disks.BytesFetched), n.Disks.Writes, kb(n.Disks.BytesWritten))
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
