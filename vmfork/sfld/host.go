package sfld

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/carrier"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/link"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// headLimit is how long a host's daemon waits to be told what it is for, and
// then for the coordinator to connect.
const headLimit = time.Minute

// HostMain is the daemon of a host that is not the coordinator's, as an
// allocator starts it: the launcher speaks to it over standard input and output,
// and it ends when that input does. version is this program's.
//
// It begins a PID and a mount namespace for the job, as [Start] does, and goes
// on in there.
func HostMain(ctx context.Context, version string) error {
	if os.Getpid() != 1 {
		return again()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := settle(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, headLimit)
	defer cancel()
	welcome, err := link.ReadWelcome(limited, os.Stdin)
	if err != nil {
		return err
	}
	// There is no more to come than the end.
	ctx, end := context.WithCancelCause(ctx)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end(errors.New("the launcher has gone"))
	}()
	id, err := link.NewIdentity()
	if err != nil {
		return err
	}
	listener, err := link.Listen(ctx, id, ":0")
	if err != nil {
		return err
	}
	listener.Allow(welcome.Allow...)
	hello, err := facts(ctx, welcome, listener.Addr().Port())
	if err != nil {
		return err
	}
	hello.Version, hello.Fingerprint = version, id.Fingerprint()
	if err := link.WriteHello(os.Stdout, hello); err != nil || len(hello.Lacks) > 0 {
		return err
	}
	head, err := acceptHead(ctx, listener)
	if err != nil {
		return err
	}
	scratch, err := scratchFolder()
	if err != nil {
		return err
	}
	return carrier.Serve(ctx, id, listener, head, carrier.Config{
		Dir: jobDir, Scratch: scratch, Reservations: jobsDir,
	})
}

// again runs this program as the first process of namespaces of its own, and
// ends as that does.
func again() error {
	runtime.LockOSThread() // whose end would be the signal below
	// By this name also where an allocator has removed the file.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	isolate(cmd)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return errors.New("a host's daemon needs root (namespaces, taps, FUSE): log in as root, or let sudo run mpirun-sf without a password")
		}
		return fmt.Errorf("start the host daemon: %w", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		for range signals {
			cmd.Process.Signal(syscall.SIGTERM)
		}
	}()
	var failed *exec.ExitError
	err := cmd.Wait()
	sweep()
	if errors.As(err, &failed) {
		os.Exit(max(1, failed.ExitCode())) // it has said why
	} else if err != nil {
		return fmt.Errorf("run the host daemon: %w", err)
	}
	return nil
}

// acceptHead waits for the coordinator's link.
func acceptHead(ctx context.Context, listener *link.Listener) (*link.Link, error) {
	type arrival struct {
		link *link.Link
		err  error
	}
	arrived := make(chan arrival, 1)
	go func() {
		l, err := listener.AcceptLink()
		arrived <- arrival{l, err}
	}()
	select {
	case a := <-arrived:
		return a.link, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(headLimit):
		return nil, fmt.Errorf("the job's coordinator did not connect within %v: can it reach port %d of this host?", headLimit, listener.Addr().Port())
	}
}

// facts says what a host has for a job, and everything that it lacks.
func facts(ctx context.Context, w link.Welcome, port uint16) (h link.Hello, err error) {
	if h.Host, err = os.Hostname(); err != nil {
		return h, err
	}
	if h.Addresses, err = link.Addresses(w.Head, port); err != nil {
		h.Lacks = append(h.Lacks, err.Error())
	}
	var st unix.Sysinfo_t
	if unix.Sysinfo(&st) == nil {
		h.MemoryTotal = int64(st.Totalram) * int64(st.Unit)
	}
	local := allocator.Local{Dir: jobsDir}
	if kind, err := hypervisor.Choose(w.Hypervisor); err != nil {
		h.Lacks = append(h.Lacks, err.Error())
	} else if release, err := kind.Check(ctx); err != nil {
		h.Lacks = append(h.Lacks, err.Error())
	} else {
		h.Hypervisor, h.HypervisorVersion = kind.Name, release
		local.Machine = allocator.MachineOf(kind) // which a host that lacks the kind could not ask
	}
	if room, err := local.Room(); err == nil {
		h.CPUs, h.MemoryFree = room.CPUs, room.Free
	} else {
		h.Lacks = append(h.Lacks, err.Error())
	}
	if err := memtap.Probe(); err != nil {
		h.Lacks = append(h.Lacks, err.Error())
	}
	if err := network.Probe(ctx); err != nil {
		h.Lacks = append(h.Lacks, err.Error())
	} else if len(h.Addresses) > 0 {
		if err := network.ProbeFabric(ctx, h.Addresses[0].Addr()); err != nil {
			h.Lacks = append(h.Lacks, err.Error())
		}
	}
	return h, nil
}

// scratchFolder is where a host keeps what machines write and what has come from
// other hosts: beside its own guest images, on disk.
func scratchFolder() (string, error) {
	cache, err := guest.DefaultCache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache.Dir, "scratch")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a folder for what machines write: %w", err)
	}
	return dir, nil
}

// Meet speaks to a host's daemon that was started for a job, over its standard
// input and output, and says how its coordinator reaches it. kind is the hypervisor's.
func Meet(ctx context.Context, stream io.ReadWriter, version, job, host, kind string, coordinator link.Fingerprint, head []netip.AddrPort) (h link.Hello, err error) {
	ctx, cancel := context.WithTimeout(ctx, headLimit)
	defer cancel()
	w := link.Welcome{Version: version, Job: job, Host: host, Hypervisor: kind, Allow: []link.Fingerprint{coordinator}, Head: head}
	if err := link.WriteWelcome(stream, w); err != nil {
		return h, err
	}
	if h, err = link.ReadHello(ctx, stream, host); err != nil {
		return h, err
	}
	if len(h.Lacks) > 0 {
		return h, &Lacking{h.Lacks}
	}
	return h, nil
}

// Lacking is all that a host would need and has not.
type Lacking struct{ Lacks []string }

func (l *Lacking) Error() string {
	s := l.Lacks[0]
	for _, more := range l.Lacks[1:] {
		s += "\n" + more
	}
	return s
}
