package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/launch"
	"github.com/mpirun-sf/mpirun-sf/mpirun-sf/openmpi"
	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// viaOrted is the way of Open MPI's own launcher, which starts its daemons in
// the clones.
const viaOrted = "orted"

// reachable is a site whose clones can open connections to this process.
type reachable interface {
	listen(ctx context.Context) (net.Listener, error)
}

// listen listens at the gateway of the clones' network.
func (j *host) listen(ctx context.Context) (net.Listener, error) { return j.daemon.Listen(ctx) }

// listen listens where the clones see this machine.
func (j *inside) listen(context.Context) (net.Listener, error) {
	return net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(j.self.IP, 0)))
}

// viaPMIx is the way without Open MPI's launcher and daemons: this one serves
// PMIx to the ranks.
const viaPMIx = "pmix"

// chooseVia decides how a program of Open MPI is launched, which the user calls
// name. If the user leaves that open it is by PMIx, which takes less time, where
// this is known to work.
func (j *job) chooseVia(name string) error {
	if j.instead != nil || j.via == viaOrted {
		return j.chooseOrted()
	}
	_, err := pmix.Helper()
	switch {
	case j.via == viaPMIx && err != nil:
		return fmt.Errorf("%s is a program of Open MPI: %w", name, err)
	case j.via == "" && (err != nil || !isOpenMPI4(j.found.libraries)):
		tui.Detail("launched by Open MPI's own launcher, for this is not Open MPI 4, or mpirun-sf was built without PMIx")
		return j.chooseOrted()
	}
	j.wire = launch.WirePMIx
	return nil
}

// isOpenMPI4 reports whether there is what only Open MPI 4 has beside one of
// these libraries of a program: its runtime, ORTE.
func isOpenMPI4(libraries []string) bool {
	return slices.ContainsFunc(libraries, func(lib string) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(lib), "libopen-rte.so.40"))
		return err == nil
	})
}

// chooseOrted has the job's program run by Open MPI's launcher.
func (j *job) chooseOrted() error {
	l, err := j.findOrterun()
	if err != nil {
		return err
	}
	j.orterun = l
	if j.instead == nil {
		j.instead = j.runOrterun
	}
	return nil
}

// findOrterun finds the launcher that goes with the program's library.
func (j *job) findOrterun() (openmpi.Launcher, error) {
	return openmpi.Find(context.Background(), j.found.libraries)
}

// serveOrted serves the agents and daemons of Open MPI's launcher.
func (j *job) serveOrted(ctx context.Context, s site, places []launch.Place) (*openmpi.Server, openmpi.Job, error) {
	var o openmpi.Job
	there, ok := s.(reachable)
	if !ok {
		return nil, o, errors.New("a program of Open MPI has to reach its launcher from its clones, which it cannot here")
	}
	o.Limit = j.startLimit
	o.Login = agent.Login{User: j.user.User, Env: append(slices.DeleteFunc(j.environment(), isOpenMPIs), pmix.Yield), Dir: "/", Progress: true}
	for _, p := range places {
		ip, err := netip.ParseAddr(p.IP)
		if err != nil {
			return nil, o, fmt.Errorf("%s: its address: %w", p.Name, err)
		}
		if len(p.Ranks) == 0 {
			continue
		}
		o.Network = network.Plan{Subnet: netip.PrefixFrom(ip, 16).Masked()}.Subnet
		o.Clones = append(o.Clones, openmpi.Clone{Name: p.Name, IP: ip, Slots: len(p.Ranks), SSH: p.Session.SSH})
	}
	var err error
	if o.Listener, err = there.listen(ctx); err != nil {
		return nil, o, err
	}
	server, err := o.Serve(context.WithoutCancel(ctx))
	if err != nil {
		o.Listener.Close()
	}
	return server, o, err
}

// isOpenMPIs tells of a variable that Open MPI's launcher has for itself, or
// hands to its daemons in its own way.
func isOpenMPIs(variable string) bool {
	return slices.ContainsFunc([]string{"OMPI_", "PMIX_", "PRTE_", "ORTE_", openmpi.SecretVariable + "="},
		func(prefix string) bool { return strings.HasPrefix(variable, prefix) })
}

// agentCommand is what Open MPI starts as its remote shell agent.
func agentCommand() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program's file: %w", err)
	}
	return openmpi.AgentCommand(self, "ompi", "agent")
}

// runOrterun runs the job's program by Open MPI's launcher.
func (j *job) runOrterun(ctx context.Context, s site, places []launch.Place) error {
	l := j.orterun
	command, err := agentCommand()
	if err != nil {
		return err
	}
	server, o, err := j.serveOrted(ctx, s, places)
	if err != nil {
		return err
	}
	defer server.Close()
	root := j.user.UID == 0
	dir := j.dir
	if _, err := os.Stat(dir); err != nil {
		dir = "/"
	}
	argv := l.Command(openmpi.Run{
		Agent: command, Clones: o.Clones, Ranks: j.np, Network: o.Network.String(), Dir: j.dir,
		Argv: append([]string{j.program}, j.argv[1:]...), Label: j.label, Root: root, Limit: j.startLimit,
	})
	tui.Detail("%s", strings.Join(argv, " "))
	status, err := server.Run(ctx, openmpi.Process{
		Path: l.Path, Argv: argv, Env: j.environment(), Dir: dir, User: j.user.User,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Signals: j.signals, Lost: j.lost,
		Notice: func(line string) { tui.Notice("%s", line) },
	})
	var lost openmpi.ErrLost
	var signalled openmpi.ErrSignal
	switch {
	case errors.As(err, &lost):
		return &launch.Failure{Status: 1, Cause: lost.Reason}
	case errors.As(err, &signalled):
		tui.Error(err)
		return exitStatus(128 + int(signalled.Signal))
	case err != nil:
		return err
	case status != 0:
		return exitStatus(status) // of which the launcher has told
	}
	return nil
}

// ompiCommand is for Open MPI's launcher.
func ompiCommand() *cli.Command {
	return &cli.Command{
		Name: "ompi", Hidden: true,
		Subcommands: []*cli.Command{
			{Name: "allocate", ArgsUsage: "PROGRAM [ARGUMENTS]", Flags: launcherFlags(), Action: ompiAllocate},
			{Name: "agent", ArgsUsage: "HOST COMMAND", SkipFlagParsing: true, Action: func(c *cli.Context) error {
				status, err := openmpi.Agent(c.Context, c.Args().Slice(), os.Stdin, os.Stdout, os.Stderr)
				if err == nil && status != 0 {
					err = exitStatus(status)
				}
				return err
			}},
		},
	}
}

// normaliseOMPI is normalise for a command line of ompi allocate, and changes no
// other.
func normaliseOMPI(args []string) []string {
	if len(args) < 3 || args[1] != "ompi" || args[2] != "allocate" {
		return args
	}
	return append(args[:2:2], normalise(launcherFlags(), args[2:])...)
}

// ompiAllocate makes clones for a launcher of Open MPI that somebody else has
// started. What it says is in the documentation of package openmpi.
func ompiAllocate(c *cli.Context) error {
	// In a virtual machine the copies of this process in clones give their
	// standard streams away, and copies of the launcher wait for what this one
	// says: with a descriptor that is kept, they do so as long as they live.
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("keep standard output: %w", err)
	}
	out := os.NewFile(uintptr(fd), "stdout")
	if err := allocate(c, out); err != nil {
		text := err.Error()
		var status exitStatus
		if errors.As(err, &status) {
			text = "it was interrupted"
		}
		fmt.Fprintln(out, "error", strings.ReplaceAll(text, "\n", " "))
		return exitStatus(1)
	}
	return nil
}

func allocate(c *cli.Context, out io.Writer) error {
	o, err := parseOptions(c)
	if err != nil {
		return err
	}
	j := newJob(o)
	j.instead = func(ctx context.Context, s site, places []launch.Place) error {
		return j.serveAllocation(ctx, s, places, out)
	}
	ctx, cancel := context.WithCancelCause(c.Context)
	defer cancel(nil)
	// Who asked is gone when its end of this is closed.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel(errAskedNoMore)
	}()
	if vm, ok := findVM(ctx, j); ok {
		err = j.run(ctx, vm)
	} else if err = needsOrted(o); err == nil {
		err = j.run(ctx, newHost(j))
	}
	if errors.Is(err, errAskedNoMore) {
		return nil
	}
	return err
}

// needsOrted tells whether Open MPI's daemons will be in guests that are made for
// a program.
func needsOrted(o options) error {
	program, err := findProgram(o.argv[0], o.dir)
	if err != nil {
		return err
	}
	c, err := guest.RecogniseCommand(append([]string{program}, o.argv[1:]...), o.dir, os.Environ(), o.mpi)
	if err == nil && c.MPI != guest.OpenMPI {
		err = fmt.Errorf("ompi allocate: %s is a %v, and a guest for it has no Open MPI: give a program of Open MPI", o.argv[0], c.Kind)
	}
	return err
}

// errAskedNoMore says that who wanted clones is gone.
var errAskedNoMore = errors.New("the launcher of Open MPI has ended")

// serveAllocation serves a launcher until that is gone.
func (j *job) serveAllocation(ctx context.Context, s site, places []launch.Place, out io.Writer) error {
	command, err := agentCommand()
	if err != nil {
		return err
	}
	l := j.orterun
	if l.Path == "" { // the program is not itself one of Open MPI
		if l, err = j.findOrterun(); err != nil {
			return err
		}
	}
	server, o, err := j.serveOrted(ctx, s, places)
	if err != nil {
		return err
	}
	defer server.Close()
	// The launcher knows of what is typed at its terminal, and ends its job in order.
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)
	w := bufio.NewWriter(out)
	for _, c := range o.Clones {
		fmt.Fprintln(w, "host", c.Name, c.Slots, c.IP)
	}
	for _, p := range l.Parameters(command) {
		fmt.Fprintln(w, "mca", p.Name, p.Value)
	}
	fmt.Fprintln(w, "env", openmpi.SecretVariable, server.Secret().Value())
	fmt.Fprintln(w, "ready")
	if err := w.Flush(); err != nil {
		return fmt.Errorf("tell Open MPI's launcher of its clones: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-j.signals:
			if n := s.(syscall.Signal); n == syscall.SIGTERM {
				return exitStatus(128 + int(n))
			}
		case err := <-server.Late():
			server.Close()
			fmt.Fprintln(out, "error", err)
		case reason := <-j.lost:
			server.Close()
			fmt.Fprintln(out, "error", reason)
		}
	}
}
