package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// inside is a job in a virtual machine, which it forks. Nothing is mounted or
// placed in the clones: they are copies of what is there.
type inside struct {
	*job
	api   launch.API
	self  launch.Self
	slots int // ranks in this machine itself

	fork   *launch.Fork
	forked bool
	spare  slots
	ranks  *ranksHere
	unjoin context.CancelFunc // ends the wait for lost clones
}

// answerLimit is how long the agent may take to answer what it knows.
const answerLimit = 10 * time.Second

// findVM tells whether this is a machine that can be forked: there is an agent
// to ask, and what it answers is of this machine. On a host, SF_SOCKET may lead to
// the agent of a machine that runs there.
func findVM(ctx context.Context, j *job) (*inside, bool) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	self, err := forkAPI{}.Whoami(ctx)
	if err != nil {
		if !errors.Is(err, vmfork.ErrOutside) {
			tui.Detail("not inside a virtual machine: %v", err)
		}
		return nil, false
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil || !slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == self.IP
	}) {
		return nil, false
	}
	return &inside{job: j, api: forkAPI{}, self: self, unjoin: func() {}}, true
}

// errParentRanks is for those who ask it of a job on the host.
var errParentRanks = errors.New("--parent-ranks is for mpirun-sf inside a virtual machine (mpirun-sf vm run): on the host the clones' parent is a checkpoint, which runs nothing")

// ofTheVM are options that were decided when the machine was started.
var ofTheVM = map[string]string{
	"memory": "its clones have the memory that it has", "window": "its clones are fetched as it was started to be",
	"accel": "its clones run as it does", "strict": "it does not know its host's cores",
}

func (j *inside) check() error {
	for _, name := range j.given {
		switch why := ofTheVM[name]; {
		case name == "image":
			return errors.New("--image: inside a virtual machine, clones are copies of it: give --image to mpirun-sf vm run")
		case name == "with":
			return errors.New("--with: inside a virtual machine, clones have the files that it has: give --with to mpirun-sf vm run")
		case name == "share":
			return errors.New("--share: inside a virtual machine, clones have the folders that it has: give --share to mpirun-sf vm run")
		case why != "":
			tui.Notice("--%s has no meaning inside a virtual machine: %s", name, why)
		}
	}
	if st, err := os.Stat(j.dir); err != nil || !st.IsDir() {
		return fmt.Errorf("the working directory %s does not exist", j.dir)
	}
	if j.parentRanks {
		j.slots = min(j.np, j.ppn, max(1, j.self.VCPUs))
	}
	if j.instead != nil {
		return nil // Open MPI's closure is large, and nothing of it is to be known here
	}
	// What is missing is said here, not by the linker of each rank.
	if _, err := guest.Closure(j.program, os.Getenv("LD_LIBRARY_PATH")); err != nil {
		return err
	}
	j.ucx = j.found.ucx
	return nil
}

// open has nothing to open: the daemon is there, outside.
func (j *inside) open(context.Context) error { return nil }

func (j *inside) clone(ctx context.Context) ([]launch.Place, error) {
	j.fork = &launch.Fork{API: j.api, Self: j.self, Limit: j.startLimit, InClone: j.ready}
	var clones []*agent.Session
	if rest := j.np - j.slots; rest > 0 {
		wanted := (rest + j.ppn - 1) / j.ppn
		var err error
		if j.fork.Ticket, err = j.requestTicket(ctx, wanted); err != nil {
			return nil, err
		}
		j.phase("ticket for %d clones", len(j.fork.Ticket.Clones))
		begin := time.Now()
		// From here on this program is in every clone as well; there Clone does
		// not return.
		if clones, err = j.fork.Clone(ctx); err != nil {
			return nil, err
		}
		j.forked = true
		tui.Notice("%s ready in %.2f s", plural(len(clones), "clone"), time.Since(begin).Seconds())
		j.phase("clones ready")
		var joining context.Context
		joining, j.unjoin = context.WithCancel(context.WithoutCancel(ctx))
		go j.fork.Watch(joining, j.lost)
	}
	var here *agent.Session
	if j.slots > 0 {
		var err error
		if j.ranks, err = startRanksHere(); err != nil {
			return nil, err
		}
		here = j.ranks.session
	}
	places := j.fork.Places(j.np, j.slots, here, clones)
	if j.slots > 0 {
		j.spare.keep(places[1:], j.ppn)
	} else {
		j.spare.keep(places, j.ppn)
	}
	return places, nil
}

// spawn places ranks that others want to have, where slots are free. Another
// fork would copy this program in the middle of its job.
func (j *inside) spawn(_ context.Context, apps []launch.App) (places []launch.Place, release func(), err error) {
	np := 0
	for i := range apps {
		np += apps[i].Ranks
		if apps[i].Argv[0], err = findSpawned(apps[i]); err != nil {
			return nil, nil, err
		}
	}
	places, release = j.spare.take(np)
	if len(places) == 0 {
		return nil, nil, errors.New("inside a virtual machine ranks are spawned where clones have virtual CPUs without a rank, and none is left: -ppn gives each clone more")
	}
	return places, release, nil
}

func (j *inside) requestTicket(ctx context.Context, wanted int) (ticket.Ticket, error) {
	tk, err := j.api.RequestTicket(ctx, wanted, j.ppn)
	if err != nil {
		return tk, err
	}
	m, slots := len(tk.Clones), tk.Slots()
	if m < wanted {
		what := fmt.Sprintf("%s of this machine can be made, for -np %d %d are needed", plural(m, "clone"), j.np, wanted)
		if !j.oversubscribe {
			j.api.Kill(ctx, tk.ID)
			return tk, fmt.Errorf("%s: ask for fewer ranks, or let them share clones with --oversubscribe", what)
		}
		tui.Notice("%s; %d ranks share %s", what, j.np-j.slots, plural(m, "clone"))
	} else if slots < j.np-j.slots {
		tui.Notice("%d ranks on %d virtual CPUs, expect them to take turns", j.np-j.slots, slots)
	}
	return tk, nil
}

// end ends the clones. That they know of no ticket any more is no error: they
// may have gone by themselves.
func (j *inside) end(ctx context.Context) error {
	j.unjoin()
	if !j.forked {
		return nil
	}
	j.forked = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
	defer cancel()
	err := j.api.Kill(ctx, j.fork.Ticket.ID)
	if errors.Is(err, vmfork.ErrUnknown) || errors.Is(err, vmfork.ErrCloned) {
		return nil
	}
	return err
}

func (j *inside) close() error {
	if j.fork != nil && j.fork.Ticket.ID != "" && !j.forked {
		// The fork failed, or its ticket was not used: both may have left clones.
		ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
		defer cancel()
		j.api.Kill(ctx, j.fork.Ticket.ID)
	}
	err := j.end(context.Background())
	if j.ranks != nil {
		j.ranks.close()
	}
	return err
}

// ranksHere is the agent of this machine's own ranks: a process of its own, for
// an agent waits for all children of its process, and its end is theirs,
// whatever becomes of the launcher.
type ranksHere struct {
	session *agent.Session
	cmd     *exec.Cmd
}

func startRanksHere() (*ranksHere, error) {
	failed := func(err error) (*ranksHere, error) { return nil, fmt.Errorf("prepare ranks here: %w", err) }
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "ranks"), os.NewFile(uintptr(fds[1]), "launcher")
	defer mine.Close()
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		return failed(err)
	}
	r := &ranksHere{cmd: exec.Command("/proc/self/exe", "ranks")}
	r.cmd.ExtraFiles = []*os.File{theirs}
	// A session of its own: what is typed at the terminal is the launcher's.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := r.cmd.Start(); err != nil {
		conn.Close()
		return failed(err)
	}
	if r.session, err = agent.Dial(conn); err != nil {
		conn.Close()
		r.cmd.Wait()
		return failed(err)
	}
	return r, nil
}

// close ends the agent, and with it the ranks that may still run.
func (r *ranksHere) close() {
	r.session.Close()
	stop := time.AfterFunc(2*ranksLimit, func() { r.cmd.Process.Kill() })
	r.cmd.Wait()
	stop.Stop()
}

// ranksLimit is how long ended ranks may take to be gone.
const ranksLimit = 5 * time.Second

// ranksMain is that agent: it is asked at descriptor 3, or at its standard input and
// output where another host started it. It becomes the parent of what ranks leave
// behind.
func ranksMain(overStdio bool) error {
	var conn io.ReadWriteCloser
	var err error
	if overStdio {
		conn, err = takeStdio()
	} else {
		channel := os.NewFile(3, "launcher")
		conn, err = net.FileConn(channel)
		channel.Close()
	}
	if err != nil {
		return errors.New("this is started by mpirun-sf, not by hand")
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("inherit what ranks leave behind: %w", err)
	}
	agent.Serve(conn)
	for end := time.Now().Add(ranksLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		left := children()
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			unix.Kill(-pid, unix.SIGKILL)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}

// children are the process ids of this process's children.
func children() (pids []int) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// forkAPI is the VM fork API of the machine that this process runs in.
type forkAPI struct{}

var _ launch.API = forkAPI{}

func (forkAPI) Whoami(ctx context.Context) (launch.Self, error) {
	i, err := vmfork.Whoami(ctx)
	return launch.Self{ID: i.ID, Member: i.Member, Name: i.Name, IP: i.IP, VCPUs: i.VCPUs, Ticket: i.Ticket}, err
}

func (forkAPI) RequestTicket(ctx context.Context, clones, vcpus int) (ticket.Ticket, error) {
	return vmfork.RequestTicket(ctx, clones, vmfork.VCPUs(vcpus))
}

func (forkAPI) Clone(ctx context.Context, id string) (int, error) {
	return vmfork.Clone(ctx, ticket.Ticket{ID: id})
}

func (forkAPI) Join(ctx context.Context, id string) error {
	_, err := vmfork.Join(ctx, ticket.Ticket{ID: id})
	var said *api.Error
	switch {
	case errors.Is(err, vmfork.ErrCloned):
		return errors.New("this copy of mpirun-sf is in a clone that another fork made; its ranks are with the original")
	case errors.As(err, &said):
		return errors.New(said.Text)
	}
	return err
}

func (forkAPI) Machines(ctx context.Context) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	members, err := vmfork.List(ctx)
	for _, m := range members {
		names = append(names, m.Name)
	}
	return names, err
}

func (forkAPI) Kill(ctx context.Context, id string) error {
	return vmfork.Kill(ctx, ticket.Ticket{ID: id})
}

func (forkAPI) Exit() error { return vmfork.Exit(0) }
