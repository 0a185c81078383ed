package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// ranksHere is the agent of this machine's own ranks: a process of its own, for
// an agent waits for all children of its process, and its end is theirs,
// whatever becomes of the launcher.
type ranksHere struct {
	session *agent.Session
	cmd     *exec.Cmd
}

func startRanksHere(program *os.File) (*ranksHere, error) {
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
	r := &ranksHere{cmd: &exec.Cmd{
		Path: fmt.Sprintf("/proc/self/fd/%d", program.Fd()), Args: []string{"mpirun-sf", "ranks"}, ExtraFiles: []*os.File{theirs},
		// A session of its own: what is typed at the terminal is the launcher's.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}}
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
	stop := time.AfterFunc(2*agent.RanksLimit, func() { r.cmd.Process.Kill() })
	r.cmd.Wait()
	stop.Stop()
}
