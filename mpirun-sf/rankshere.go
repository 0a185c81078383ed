package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
