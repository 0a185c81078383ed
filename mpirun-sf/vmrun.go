package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
)

// vm is a virtual machine of mpirun-sf vm run.
type vm struct {
	*host
	vmOptions
	at   vmName
	gone chan string // why the machine is
}

// runVM starts a machine, runs a command in it, and ends it.
func runVM(ctx context.Context, o vmOptions) (err error) {
	v := &vm{host: newHost(newJob(o.options)), vmOptions: o, at: vmName{o.name}, gone: make(chan string, 1)}
	v.told = v.notice
	if err := v.check(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	// Until there is a command to forward them to, they end the start.
	running, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case s := <-signals:
			cancel(exitStatus(128 + int(s.(syscall.Signal))))
		case <-running:
		}
	}()
	release, err := v.at.lock()
	if err != nil {
		return err
	}
	defer release()
	if err := v.at.writeKeys(); err != nil {
		return err
	}
	if err := v.open(ctx); err != nil {
		return err
	}
	defer func() {
		tui.EndStep()
		if closeErr := v.close(); err == nil {
			err = closeErr
		}
		v.phase("machine ended and cleaned up")
	}()
	err = v.start(ctx)
	var listeners []net.Listener
	if err == nil {
		listeners, err = v.listen()
	}
	for _, l := range listeners {
		defer l.Close()
	}
	if err == nil {
		close(running)
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
	return runCommand(ctx, v.daemon.Attach(0), command{
		argv: v.vmOptions.argv, name: args0(v.vmOptions.argv), dir: v.startFolder(), env: v.vmOptions.env, vm: v.name,
	}, signals, v.gone)
}

// check finds out what can be known to be wrong before anything is made.
func (v *vm) check(ctx context.Context) (err error) {
	if in, ok := findVM(ctx, v.job); ok {
		return fmt.Errorf("this is inside a virtual machine already, and it cannot have others in it: sf and mpirun-sf fork %s", in.self.Name)
	}
	if v.user, err = findCaller(); err != nil {
		return err
	}
	if err := checkMachine(v.hypervisor); err != nil {
		return err
	}
	// The working directory is shared unless other folders are named.
	j := v.host
	if j.dir, err = os.Getwd(); err != nil {
		return fmt.Errorf("find the working directory: %w", err)
	}
	if len(j.shares) > 0 {
		j.dir = j.shares[0].dir
	}
	if err := j.checkFolders(); err != nil {
		return err
	}
	return v.checkMemory()
}

// checkMemory finds out whether the machine fits, before a guest of its size is
// booted. What is free may be another's until it starts; then that is the error.
func (v *vm) checkMemory() error {
	kind, err := hypervisor.Choose(v.hypervisor)
	if err != nil {
		return err
	}
	g, err := allocator.Local{Dir: jobsFolder, Machine: allocator.MachineOf(kind)}.Reserve(v.id, allocator.Demand{Clones: 1, VCPUs: v.ppn, Memory: v.memory})
	if err != nil {
		return err
	}
	g.Release()
	if g.Clones == 0 {
		return fmt.Errorf("--memory: a machine of %d MB, hypervisor included, does not fit into the %d MB that are free here: give it less", g.Each>>20, g.Free>>20)
	}
	return nil
}

// startFolder is where the command begins: where the caller is, if the machine
// has that.
func (v *vm) startFolder() string {
	dir := v.vmOptions.dir
	if v.dirGiven {
		return dir
	}
	for _, s := range v.host.shares {
		if dir == s.dir || strings.HasPrefix(dir, s.dir+string(filepath.Separator)) {
			return dir
		}
	}
	return ""
}

// start makes the machine, ready to run a command.
func (v *vm) start(ctx context.Context) error {
	args := v.prepareArgs(1)
	args.Program, args.LibraryPath = "", ""
	args.Memory = v.host.memory // the machine's, however many CPUs it has
	args.Guest = sfld.Guest{Tools: true, With: v.with, Hooks: v.hooks, Free: v.free}
	p, err := v.daemon.Prepare(ctx, args)
	if err != nil {
		return err
	}
	v.reportPrepared(p)
	begin := time.Now()
	mounts, err := v.serveShares(ctx, true)
	if err != nil {
		return err
	}
	started, err := v.daemon.StartVM(ctx, sfld.VMArgs{VCPUs: v.host.ppn, Limit: v.host.startLimit})
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, v.host.startLimit)
	defer cancel()
	session := v.daemon.Attach(started.VM.Member)
	for _, m := range mounts {
		if err := session.Mount(limit, m); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	tui.Notice("virtual machine %s ready in %.2f s", v.name, time.Since(begin).Seconds())
	return nil
}

// listen lets others on this host call upon the machine.
func (v *vm) listen() (ls []net.Listener, err error) {
	calls, err := relay(v.at.socket(), func(net.Conn) (net.Conn, error) { return v.daemon.API() })
	if err != nil {
		return nil, err
	}
	consoles, err := relay(v.at.attachSocket(), func(conn net.Conn) (net.Conn, error) {
		var member [2]byte
		conn.SetReadDeadline(time.Now().Add(answerLimit))
		if _, err := io.ReadFull(conn, member[:]); err != nil {
			return nil, err
		}
		conn.SetReadDeadline(time.Time{})
		id := int(binary.BigEndian.Uint16(member[:]))
		if err := network.CheckID(id); err != nil {
			return nil, err
		}
		return v.daemon.Attach(id).Open()
	})
	if err != nil {
		return []net.Listener{calls}, err
	}
	return []net.Listener{calls, consoles}, nil
}

// notice takes the daemon's notices. That a clone is gone is the business of
// whoever made it.
func (v *vm) notice(n sfld.Notice) {
	if n.Gone == "" {
		v.host.notice(n)
	} else if n.Gone == (network.Plan{}).Name(0) {
		select {
		case v.gone <- n.Reason:
		default:
		}
	}
}
