package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// host is a job on this machine: its clones are copies of a guest that is made
// for the program, and a daemon of its own makes them.
type host struct {
	*job
	told   func(sfld.Notice) // takes the daemon's notices
	daemon *sfld.Client
	leave  func() // ends the daemons of other hosts
	ticket ticket.Ticket
	mounts []share.Mounting // of every clone
	spare  slots
}

func newHost(j *job) *host { return &host{job: j, told: j.notice, leave: func() {}} }

func (j *host) check() error {
	if j.parentRanks {
		return errParentRanks
	}
	if err := checkMachine(j.hypervisor); err != nil {
		return err
	}
	return j.checkFolders()
}

func (j *host) open(ctx context.Context) error {
	daemon, err := j.startDaemon(ctx, j.told)
	if err != nil {
		return err
	}
	j.daemon = daemon
	go func() {
		<-daemon.Done()
		select {
		case j.lost <- "this machine's host daemon ended, and with it all that it carried": // at the job's end nobody hears it
		default:
		}
	}()
	if j.leave, err = j.join(ctx, daemon); err == nil {
		err = j.openWay(ctx, daemon)
	}
	if err != nil {
		j.close()
	}
	return err
}

// end is called when the ranks have ended.
func (j *host) end(ctx context.Context) error {
	j.reportCounters(ctx)
	return j.daemon.Kill(ctx, j.ticket)
}

func (j *host) close() error {
	traceErr := j.tell()
	err := errors.Join(traceErr, j.daemon.Close())
	j.leave()
	return err
}

// startDaemon starts the daemon that owns what the job makes.
func (j *job) startDaemon(ctx context.Context, notice func(sfld.Notice)) (*sfld.Client, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	cache, err := guest.DefaultCache()
	if err != nil {
		return nil, err
	}
	return sfld.Start(ctx, self, sfld.Options{
		Job: j.id, Cache: cache.Dir, Limit: cache.Limit, Window: j.window, Hypervisor: j.hypervisor, Accel: j.accel,
		UID: int(j.user.UID), GID: int(j.user.GID), Groups: ints(j.user.Groups),
		Traced:  j.trace != "" || tui.level >= verbose,
		Version: version, User: cmp.Or(j.user.name, strconv.Itoa(int(j.user.UID))), Command: j.argv, Ranks: j.np,
	}, notice)
}

// prepareArgs says what the clones are copies of, and how many are expected.
func (j *host) prepareArgs(expect int) sfld.PrepareArgs {
	in := sfld.Guest{With: slices.Concat(j.with, j.files()[1:]), Needs: j.found.needs}
	if len(in.Needs) > 0 {
		for _, s := range j.shares {
			in.Shared = append(in.Shared, s.dir)
		}
	}
	return sfld.PrepareArgs{
		Guest:   in,
		Program: j.program, LibraryPath: os.Getenv("LD_LIBRARY_PATH"), Disk: j.image,
		User: j.user.name, Home: j.user.home,
		VCPUs: j.ppn, Memory: j.memory * int64(j.ppn), Expect: expect,
	}
}

// systemFolders hold what a guest runs from, so none can be covered by a share.
var systemFolders = []string{"/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/usr/lib/x86_64-linux-gnu", "/var"}

// checkFolders makes the list of folders to share: the working directory
// first, if it can be, and what --share says.
func (j *host) checkFolders() error {
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

// clone gets a ticket and the clones that it allows, ready to run ranks.
func (j *host) clone(ctx context.Context) ([]launch.Place, error) {
	wanted := (j.np + j.ppn - 1) / j.ppn
	granted, err := j.daemon.RequestTicket(ctx, sfld.RequestArgs{Clones: wanted, VCPUs: j.ppn, Memory: j.memory * int64(j.ppn), Strict: j.strict})
	if err != nil {
		return nil, err
	}
	tk := granted.Ticket
	j.ticket = tk
	if err := j.judgeTicket(granted, wanted); err != nil {
		return nil, err
	}
	j.phase("ticket for %d clones", len(tk.Clones))
	p, err := j.daemon.Prepare(ctx, j.prepareArgs(len(tk.Clones)))
	if err != nil {
		return nil, err
	}
	j.ucx = p.UCX
	j.reportPrepared(p)

	begin := time.Now()
	shared, err := j.serveShares(ctx, false)
	if err != nil {
		return nil, err
	}
	staged, programs, err := j.serve(ctx, j.files()...)
	if err != nil {
		return nil, err
	}
	j.mounts = append(shared, staged...)
	j.phase("folders served")
	cloned, err := j.daemon.Clone(ctx, tk, j.startLimit)
	if err != nil {
		return nil, err
	}
	ready := time.Since(begin)
	tui.Notice("%s ready in %.2f s", plural(len(tk.Clones), "clone"), ready.Seconds())
	for _, c := range tk.Clones {
		tui.Detail("  %s: vCPUs running after %.0f ms, ready after %.0f ms", c.Name, ms(cloned.Running[c.ID]), ms(cloned.Ready[c.ID]))
	}
	j.phase("clones ready")

	limit, cancel := context.WithTimeout(ctx, j.startLimit)
	defer cancel()
	places, err := launch.Connect(limit, j.daemon.Attach, tk, j.np, j.mounts, programs...)
	if err != nil {
		return nil, err
	}
	j.phase("folders mounted")
	j.spare.keep(places, j.ppn)
	return places, nil
}

// judgeTicket says what a ticket for fewer clones than asked means.
func (j *host) judgeTicket(g sfld.Granted, wanted int) error {
	m := len(g.Ticket.Clones)
	if m < wanted {
		gb := func(n int64) float64 { return float64(n) / (1 << 30) }
		what := fmt.Sprintf("%s of %.1f GB fit into the %.1f GB that are free (hypervisor included), for -np %d %d are needed",
			plural(m, "clone"), gb(g.Each), gb(g.Free), j.np, wanted)
		if g.Slots > 0 && m >= g.Slots/j.ppn {
			what = fmt.Sprintf("%s with %s for %s of %s, for -np %d %d are needed",
				plural(g.Hosts, "host"), plural(g.Slots, "slot"), plural(m, "clone"), plural(j.ppn, "rank"), j.np, wanted)
		} else if j.strict && m >= g.Cores/j.ppn {
			what = fmt.Sprintf("--strict: this machine's %d cores carry %s of %d virtual CPUs, for -np %d %d are needed", g.Cores, plural(m, "clone"), j.ppn, j.np, wanted)
		}
		switch {
		case g.Slots > 0 && m == 0:
			return fmt.Errorf("%s: ask for fewer ranks on each clone with -ppn, or for more slots", what)
		case m == 0:
			return fmt.Errorf("%s: ask for fewer, or give each rank less with --memory", what)
		case !j.oversubscribe:
			return fmt.Errorf("%s: ask for fewer ranks, give each less with --memory, or let them share clones with --oversubscribe", what)
		}
		tui.Notice("%s; %d ranks share %s", what, j.np, plural(m, "clone"))
	}
	if vcpus := m * j.ppn; vcpus > g.Cores {
		where := fmt.Sprintf("this machine's %d cores", g.Cores)
		if g.Hosts > 1 {
			where = fmt.Sprintf("%d cores of %d hosts", g.Cores, g.Hosts)
		}
		tui.Notice("%d virtual CPUs on %s, expect them to take turns", vcpus, where)
	}
	return nil
}

func (j *host) reportPrepared(p sfld.Prepared) {
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

// serve makes programs reachable for clones. Those that no shared folder has are
// staged. Either way the agents take a program from there into memory, where its
// pages are not fetched one by one.
func (j *host) serve(ctx context.Context, programs ...string) (mounts []share.Mounting, places []agent.Place, err error) {
	var outside []string
	for _, p := range programs {
		switch {
		case j.shared(p):
			places = append(places, agent.Place{From: p, At: p})
		case j.inGuest(p):
		default:
			outside = append(outside, p)
		}
	}
	if len(outside) == 0 {
		return nil, places, nil
	}
	staged, err := j.daemon.Stage(ctx, outside...)
	if err != nil {
		return nil, nil, err
	}
	for i, p := range outside {
		places = append(places, agent.Place{From: staged.Paths[i], At: p})
	}
	return []share.Mounting{staged.Mounting}, places, nil
}

// shared is whether a file, and what it is a link to, lies in one shared folder.
func (j *host) shared(file string) bool {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		real = file
	}
	return slices.ContainsFunc(j.shares, func(s shareOption) bool {
		return strings.HasPrefix(file, s.dir+"/") && strings.HasPrefix(real, s.dir+"/")
	})
}

// serveShares starts the servers of all shared folders. survive is whether
// their mounts go on in clones of the machines that mount them.
func (j *host) serveShares(ctx context.Context, survive bool) (mounts []share.Mounting, err error) {
	for _, s := range j.shares {
		m, err := j.daemon.Share(ctx, sfld.ShareArgs{Folder: s.dir, Target: s.dir, ReadOnly: s.readOnly, Survives: survive})
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func (j *job) notice(n sfld.Notice) {
	switch {
	case n.Progress != "":
		tui.Step(n.Progress)
	case n.Line != "":
		tui.Notice("%s", n.Line)
	case n.Detail != "":
		tui.Detail("  %s", n.Detail)
	case n.Gone != "":
		select {
		case j.lost <- n.Reason:
		default:
		}
	}
}

func (j *host) reportCounters(ctx context.Context) {
	if tui.level < verbose {
		return
	}
	c, err := j.daemon.Counters(ctx)
	if err != nil {
		return
	}
	n := c.Total()
	kb := func(n int64) float64 { return float64(n) / 1024 }
	tui.Detail("memory: %d reads, %.0f KB fetched, %.0f KB pushed ahead, %d zero pages answered without a fetch, median %v, 99th percentile %v",
		n.Memory.Reads, kb(n.Memory.BytesFetched), kb(n.Memory.BytesPushed), n.Memory.ZeroBlocks, n.Memory.Latency.Percentile(50), n.Memory.Latency.Percentile(99))
	tui.Detail("disks:  %d reads, %.0f KB fetched, %d writes, %.0f KB written", n.Disks.Reads, kb(n.Disks.BytesFetched), n.Disks.Writes, kb(n.Disks.BytesWritten))
}
