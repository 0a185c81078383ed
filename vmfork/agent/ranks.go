package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RanksLimit is how long the ranks that [ServeRanks] ends may take to be gone.
const RanksLimit = 5 * time.Second

// ServeRanks is the agent of ranks that run on a machine without being in a clone: a
// process of its own, for an agent waits for all children of its process, and its end is
// theirs, whatever becomes of the launcher. It is asked at descriptor 3, or at its
// standard input and output where another host started it. It becomes the parent of
// what ranks leave behind, and returns when the channel has broken and they are gone.
func ServeRanks(overStdio bool) error {
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
	Serve(conn)
	endChildren()
	return nil
}

// endChildren ends what ranks have left. One that is killed is gone soon, and is looked
// for soon.
func endChildren() {
	pause := 200 * time.Microsecond
	for end := time.Now().Add(RanksLimit); time.Now().Before(end); pause = min(2*pause, 5*time.Millisecond) {
		// It takes nothing away from whoever waits for them.
		if unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == unix.ECHILD {
			return
		}
		for _, pid := range childrenOfThis() {
			unix.Kill(-pid, unix.SIGKILL)
			unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(pause)
	}
}

// childrenOfThis are the process ids of this process's children.
func childrenOfThis() (pids []int) {
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

// stdio is a stream of what a program has for input and output.
type stdio struct{ in, out *os.File }

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }

// takeStdio makes a channel of standard input and output, for which the null device
// takes their places: nothing else may write there.
func takeStdio() (io.ReadWriteCloser, error) {
	var files [2]*os.File
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	for fd := range files {
		if files[fd], err = moveDescriptor(fd, int(null.Fd())); err != nil {
			return nil, fmt.Errorf("take standard input and output: %w", err)
		}
	}
	return stdio{files[0], files[1]}, nil
}

// moveDescriptor moves a descriptor out of the way and puts another in its place.
func moveDescriptor(fd, other int) (*os.File, error) {
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.Dup3(other, fd, 0); err != nil {
		unix.Close(moved)
		return nil, err
	}
	// A pipe or socket that can be waited for does not hold a thread up.
	unix.SetNonblock(moved, true)
	return os.NewFile(uintptr(moved), "launcher"), nil
}
