package openmpi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// Process is a launcher to be run.
type Process struct {
	Path   string
	Argv   []string
	Env    []string
	Dir    string // of the launcher itself
	User   agent.User
	Stdin  io.Reader
	Stdout *os.File
	Stderr *os.File

	// Signals are forwarded to it.
	Signals <-chan os.Signal
	// Lost delivers the reasons of clones that are gone.
	Lost <-chan string
	// Notice is called for what a user should know meanwhile.
	Notice func(string)
}

// withShell is env with a SHELL: the one that runs what agents are told. Open
// MPI asks the password file first, then SHELL, and warns of a user whom
// neither knows, such as one by number in a container.
func withShell(env []string) []string {
	env = slices.Clip(env)
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "SHELL=") }) {
		return env
	}
	return append(env, "SHELL=/bin/sh")
}

// ErrLost says that a clone was lost, and with it the job.
type ErrLost struct{ Reason string }

func (e ErrLost) Error() string { return e.Reason }

// ErrSignal says that a signal ended the job that this process was sent.
type ErrSignal struct{ Signal syscall.Signal }

func (e ErrSignal) Error() string { return "interrupted by " + unix.SignalName(e.Signal) }

const (
	// forceLimit is how long the launcher may take to end when its job cannot go on.
	forceLimit = 5 * time.Second
	// lostLimit is how long the reason of a lost clone is waited for.
	lostLimit = 500 * time.Millisecond
	// statusLost is the exit status of ORTE's launcher when a daemon's connection
	// has ended (ORTE_ERR_COMM_FAILURE, -51).
	statusLost = 256 - 51
)

// Run runs a launcher, whose agents and daemons s serves, to its end. It returns
// the launcher's exit status; an error is for what the launcher does not know or
// tell.
func (s *Server) Run(ctx context.Context, p Process) (status int, err error) {
	cmd := exec.Command(p.Path)
	cmd.Args, cmd.Dir = p.Argv, p.Dir
	cmd.Env = append(withShell(p.Env), SecretVariable+"="+s.secret.Value())
	cmd.Stdout, cmd.Stderr = p.Stdout, p.Stderr
	// A session of its own: what is typed at the terminal comes to it through
	// Signals, once. It ends as when it is told to when this process ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() == 0 || int(p.User.UID) != os.Geteuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.User.UID, Gid: p.User.GID, Groups: p.User.Groups}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, fmt.Errorf("start Open MPI's launcher: %w", err)
	}
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// Pdeathsig comes when the thread ends that was the parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return 0, fmt.Errorf("start Open MPI's launcher: %w", err)
	}
	go func() {
		if p.Stdin != nil {
			io.Copy(stdin, p.Stdin)
		}
		stdin.Close()
	}()
	r := running{Server: s, Process: p, pid: cmd.Process.Pid, ended: ended}
	defer r.tidy()
	err = r.wait(ctx)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		ws := exit.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			return 128 + int(ws.Signal()), fmt.Errorf("the launcher of Open MPI, %s, was killed by signal %d", p.Path, ws.Signal())
		}
		return exit.ExitCode(), r.verdict(exit.ExitCode())
	case err != nil:
		return 1, err
	}
	return 0, nil
}

// running is a launcher under way.
type running struct {
	*Server
	Process
	pid   int
	ended <-chan error
	last  syscall.Signal // the last that ends jobs and was forwarded
}

// wait returns how the launcher ended, or why it had to be ended.
func (r *running) wait(ctx context.Context) error {
	late := time.NewTimer(r.job.Limit)
	defer late.Stop()
	all := r.All()
	interrupts := 0
	for {
		select {
		case err := <-r.ended:
			return err
		case <-all:
			all = nil
			late.Stop()
		case err := <-r.Late():
			r.end()
			return err
		case <-late.C:
			err := r.notConnected(r.missing())
			r.end()
			return err
		case reason := <-r.Lost:
			r.end()
			return ErrLost{reason}
		case <-ctx.Done():
			r.end()
			return context.Cause(ctx)
		case sig := <-r.Signals:
			n, ok := sig.(syscall.Signal)
			if !ok {
				continue
			}
			if n == syscall.SIGINT {
				switch interrupts++; interrupts {
				case 1:
					r.Notice("interrupt sent to Open MPI's launcher; press Ctrl-C again to end the job by force")
				default:
					r.end()
					return ErrSignal{n}
				}
			}
			if n != syscall.SIGUSR1 && n != syscall.SIGUSR2 {
				r.last = n
			}
			unix.Kill(r.pid, n)
		}
	}
}

// verdict is why a launcher failed, where it cannot know it.
func (r *running) verdict(status int) error {
	wait := time.Duration(0)
	if status == statusLost {
		wait = lostLimit // the daemon knows better, a moment later
	}
	select {
	case reason := <-r.Lost:
		return ErrLost{reason}
	case <-time.After(wait):
	}
	if r.last != 0 {
		return ErrSignal{r.last}
	}
	return nil
}

// end ends the launcher: first by taking its daemons away, which it says
// something about, then by force.
func (r *running) end() {
	r.Server.Close()
	select {
	case <-r.ended:
		return
	case <-time.After(forceLimit):
	}
	unix.Kill(-r.pid, unix.SIGKILL)
	unix.Kill(r.pid, unix.SIGKILL)
	<-r.ended
}

// tidy removes what a launcher has left that was killed, or that was in a hurry
// when its daemons were gone.
func (r *running) tidy() {
	temporary := ""
	for _, e := range r.Env {
		if v, ok := strings.CutPrefix(e, "TMPDIR="); ok {
			temporary = v
		}
	}
	removeSession(temporary, int(r.User.UID), r.pid)
}

// removeSession removes the folder of a launcher's session, as ORTE names it in
// the temporary folder.
func removeSession(temporary string, uid, pid int) {
	if temporary == "" {
		temporary = "/tmp"
	}
	root, err := os.OpenRoot(temporary)
	if err != nil {
		return
	}
	defer root.Close()
	sessions, _ := filepath.Glob(filepath.Join(temporary, fmt.Sprintf("ompi.*.%d", uid)))
	for _, s := range sessions {
		name := filepath.Base(s)
		root.RemoveAll(filepath.Join(name, fmt.Sprintf("pid.%d", pid)))
		root.Remove(name) // unless another job's is in it
	}
}
