package agent

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// In a clone the session of its parent ends, and no process of it notices.
func TestAbandon(t *testing.T) {
	if !asInit(t) {
		return
	}
	before := pipes(t)
	s, lose := cutOff(t)
	dir := t.TempDir()
	mark := func(name string) string { return filepath.Join(dir, strings.ReplaceAll(name, " ", "-")) }
	says := func(name string) func() bool {
		return func() bool { b, _ := os.ReadFile(mark(name)); return len(b) > 0 }
	}
	begin := func(c Command, fds ...int) map[int]io.ReadWriteCloser {
		streams := map[int]io.ReadWriteCloser{}
		for _, fd := range fds {
			streams[fd] = open(t, s, c.ID, fd)
		}
		start(t, s, c)
		return streams
	}

	// A writer that would die of SIGPIPE, one that is held up by a reader that
	// does not read, and what each has written after the fork.
	writer := shell(1, `while [ ! -e `+mark("fork")+` ]; do echo before; sleep 0.01; done; i=0
		while [ $i -lt 20000 ]; do echo "0123456789 0123456789" && echo errors >&2 || exit 1; i=$((i+1)); done; echo alive >`+mark("writer"))
	out := begin(writer, 1, 2)
	readLineOf(t, out[1])
	begin(shell(2, "head -c 4000000 /dev/zero && echo alive >"+mark("held up")), 1)

	// Readers: one that waits, one that has not yet read what was sent, one
	// whose input had ended, too, and children that outlive their parents.
	begin(shell(3, "read x; echo $x >"+mark("waiting")), 0)
	sent := strings.Repeat("0123456789abcde\n", 6000) // more than a pipe holds
	late := "until [ -e " + mark("fork") + " ]; do sleep 0.01; done; "
	in := begin(shell(4, late+"head -c 96000 | cksum >"+mark("sent")+"; read x; echo ended >"+mark("sent and ended")), 0)
	write(t, in[0], sent)
	in = begin(shell(5, late+"cksum >"+mark("ended")), 0)
	write(t, in[0], sent)
	in[0].Close()
	begin(shell(6, "exec 3<&0; (read x <&3; echo ended >"+mark("orphan")+") & exit 0"), 0)
	begin(shell(7, "exec <&-; sleep 60"), 0)

	// At a terminal: no hang-up, no end, and it can be written to.
	begin(terminal(8, "trap 'echo hung up >"+mark("hung up")+"' HUP; "+late+"head -c 400000 /dev/zero; stty size >"+mark("terminal")+"; read x; echo ended >"+mark("terminal ended")), 0)
	time.Sleep(200 * time.Millisecond) // so that what was sent has come

	took := lose()
	t.Logf("abandoning took %v", took)
	if took > drainLimit/2 {
		t.Errorf("abandoning took %v", took)
	}
	if err := os.WriteFile(mark("fork"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"writer", "held up", "sent", "ended", "terminal"} {
		await(t, name, says(name))
	}
	want := runProgram(t, sent, "/usr/bin/cksum").out
	for _, name := range []string{"sent", "ended"} {
		if got, _ := os.ReadFile(mark(name)); string(got) != want {
			t.Errorf("%s: what was sent before the fork has the sum %q, want %q", name, got, want)
		}
	}
	if got, _ := os.ReadFile(mark("terminal")); string(got) != "40 132\n" {
		t.Errorf("the terminal's size was %q", got)
	}
	time.Sleep(100 * time.Millisecond)
	for _, name := range []string{"waiting", "sent and ended", "orphan", "hung up", "terminal ended"} {
		if got, err := os.ReadFile(mark(name)); err == nil {
			t.Errorf("%s: a process noticed the fork: %q", name, got)
		}
	}
	if pipes(t) == before {
		t.Error("no input is held open")
	}
	// When their processes end, nothing is left.
	killChildren(t)
	await(t, "the streams of the dead to be closed", func() bool { return pipes(t) == before })

	// A session of the clone's own is a session like every other.
	s, _ = cutOff(t)
	o := open(t, s, 1, 1)
	start(t, s, shell(1, "echo hello"))
	if got := readAll(t, o); got != "hello\n" {
		t.Errorf("in the session after it a process wrote %q", got)
	}
}

// stuck is a channel to a host that has stopped listening.
type stuck struct {
	net.Conn
	now, closed chan struct{}
}

func (s stuck) Write(p []byte) (int, error) {
	select {
	case <-s.now:
		<-s.closed
		return 0, net.ErrClosed
	default:
		return s.Conn.Write(p)
	}
}

func (s stuck) Close() error {
	close(s.closed)
	return s.Conn.Close()
}

// A host that does not listen delays a clone for drainLimit at most, and the
// end of the session is not taken for an end of input.
func TestAbandonStuck(t *testing.T) {
	if !asInit(t) {
		return
	}
	mine, theirs := channel(t)
	host := stuck{theirs, make(chan struct{}), make(chan struct{})}
	c, err := newClone(host)
	if err != nil {
		t.Fatal(err)
	}
	go c.serve()
	s, err := Dial(mine)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir := t.TempDir()
	in := open(t, s, 1, 0)
	start(t, s, shell(1, "until [ -e "+dir+"/fork ]; do sleep 0.01; done; cat >"+dir+"/got; echo >"+dir+"/ended"))
	// More than a pipe and half a window, from where on room is announced.
	write(t, in, strings.Repeat("x", 250<<10))
	time.Sleep(100 * time.Millisecond) // so that it has come
	close(host.now)
	begin := time.Now()
	abandon()
	if took := time.Since(begin); took < drainLimit || took > 5*drainLimit {
		t.Errorf("abandoning took %v, and should give up after %v", took, drainLimit)
	}
	c.mux.Close()
	if err := os.WriteFile(dir+"/fork", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	await(t, "what had been sent", func() bool { f, err := os.Stat(dir + "/got"); return err == nil && f.Size() == 250<<10 })
	time.Sleep(100 * time.Millisecond)
	if _, err := os.Stat(dir + "/ended"); err == nil {
		t.Error("the end of the session ended a process's input")
	}
}

// Where no fork was, the end of the session is the end of the streams.
func TestSessionLost(t *testing.T) {
	if !asInit(t) {
		return
	}
	mine, theirs := channel(t)
	go Serve(theirs)
	s, err := Dial(mine)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for id, script := range map[int]string{
		1: "cat; echo >" + dir + "/input",
		2: "trap '' PIPE; while echo x; do sleep 0.01; done; echo >" + dir + "/output",
	} {
		open(t, s, id, 0)
		open(t, s, id, 1)
		start(t, s, shell(id, script))
	}
	st := open(t, s, 3, 0)
	start(t, s, terminal(3, "trap 'echo >"+dir+"/terminal; exit' HUP; echo ready; while :; do sleep 0.01; done"))
	readLineOf(t, st)
	s.Close()
	for _, name := range []string{"input", "output", "terminal"} {
		await(t, "the end of "+name, func() bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil })
	}
}

// cutOff begins a session, and returns what is done in a clone with that of its
// parent, and how long abandon took.
func cutOff(t *testing.T) (*Session, func() time.Duration) {
	mine, theirs := channel(t)
	c, err := newClone(theirs)
	if err != nil {
		t.Fatal(err)
	}
	go c.serve()
	s, err := Dial(mine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, func() time.Duration {
		begin := time.Now()
		abandon()
		took := time.Since(begin)
		c.mux.Close()
		return took
	}
}

func channel(t *testing.T) (mine, theirs net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		defer f.Close()
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// pipes counts this process's pipes and terminals.
func pipes(t *testing.T) (n int) {
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		to, _ := os.Readlink(f)
		if strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "/dev/pt") {
			n++
		}
	}
	return n
}

// killChildren kills all processes that descend from this one.
func killChildren(t *testing.T) {
	for {
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, task := range tasks {
			b, _ := os.ReadFile(task)
			for pid := range strings.FieldsSeq(string(b)) {
				var n int
				fmt.Sscan(pid, &n)
				syscall.Kill(n, syscall.SIGKILL)
				left++
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

const initMark = "MPIRUN_SF_TEST_INIT"

// asInit runs this test once more in a process that inherits orphans, and that
// has no children but the agent's. It is true in there.
func asInit(t *testing.T) bool {
	t.Helper()
	if os.Getenv(initMark) != "" {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { killChildren(t) })
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("the agent sets the user of what it starts: this test needs root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), initMark+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	} else {
		t.Logf("in a process of its own:\n%s", out)
	}
	return false
}
