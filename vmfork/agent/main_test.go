package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The agent waits for all children of its process, so in the tests it is a
// process of its own: this binary again, inheriting orphans as an init does.
const agentMark = "MPIRUN_SF_TEST_AGENT"

func TestMain(m *testing.M) {
	if signal.Ignored(unix.SIGHUP) { // by nohup: a process would start with that, and never hear of it
		signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	}
	if os.Getenv(agentMark) == "" {
		os.Exit(m.Run())
	}
	os.Unsetenv(agentMark)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	channel := os.NewFile(3, "channel")
	if os.Getenv("MPIRUN_SF_TEST_REAPER") != "" {
		reapMany(channel)
		return
	}
	conn, err := net.FileConn(channel)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	unix.CloseOnExec(3)
	channel.Close()
	Serve(conn)
}

// startAgent starts an agent and returns its process and the host's end of its
// channel. Both end with the test.
func startAgent(t *testing.T, env ...string) (*exec.Cmd, net.Conn) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the agent sets the user of what it starts: this test needs root")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	defer mine.Close()
	defer theirs.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), agentMark+"=1"), env...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, conn
}

// dialAgent begins a session with an agent of the test's own.
func dialAgent(t *testing.T) *Session {
	t.Helper()
	_, conn := startAgent(t)
	s, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// soon is a context for what takes no time on a machine that works.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// shell is a command of /bin/sh, as the test's own user.
func shell(id int, script string, args ...string) Command {
	return Command{
		ID: id, Argv: append([]string{"/bin/sh", "-c", script, "sh"}, args...),
		Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/",
	}
}

func start(t *testing.T, s *Session, c Command) *Process {
	t.Helper()
	p, err := s.Start(soon(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open opens a standard stream of a process to come.
func open(t *testing.T, s *Session, id, fd int) io.ReadWriteCloser {
	t.Helper()
	st, err := s.Stdio(soon(t), id, fd)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// exit waits for a process's end, of which all but its number is compared.
func exit(t *testing.T, p *Process) Exit {
	t.Helper()
	select {
	case e := <-p.Exit():
		if e.Error == "" && e.PID <= 0 {
			t.Errorf("it was process %d", e.PID)
		}
		e.PID = 0
		return e
	case <-soon(t).Done():
		t.Fatal("waited 20 s for the end of a process")
		return Exit{}
	}
}

// readAll reads a stream to its end, or fails.
func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(r)
		done <- result{b, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			t.Fatal(got.err)
		}
		return string(got.b)
	case <-soon(t).Done():
		t.Fatal("waited 20 s for the end of a stream")
		return ""
	}
}

// open descriptors of a process, without those of the runtime.
func descriptors(t *testing.T, pid int) (n int) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		to, _ := os.Readlink(f)
		if !strings.HasPrefix(to, "anon_inode:[event") {
			n++
		}
	}
	return n
}
