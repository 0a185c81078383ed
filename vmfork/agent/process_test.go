package agent

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExitStatus(t *testing.T) {
	s := dialAgent(t)
	for script, want := range map[string]Exit{
		"exit 0":        {},
		"exit 7":        {Status: 7},
		"exit 255":      {Status: 255},
		"kill -9 $$":    {Status: -1, Signal: 9},
		"kill -SEGV $$": {Status: -1, Signal: 11},
	} {
		got := exit(t, start(t, s, shell(0, "ulimit -c 0; "+script)))
		if want.Signal != 0 {
			want.Status = 0
		}
		if got != want {
			t.Errorf("%s: ended with %+v, want %+v", script, got, want)
		}
	}
}

func TestSignalsReachTheGroup(t *testing.T) {
	s := dialAgent(t)
	out := open(t, s, 1, 1)
	// The child alone answers: the shell waits for it.
	p := start(t, s, shell(1, `trap : USR1; sh -c 'trap "echo child; exit 0" USR1; echo ready; while :; do sleep 0.01; done'; wait; exit 3`))
	buf := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, buf); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, out); got != "child\n" {
		t.Errorf("after the signal the group wrote %q", got)
	}
	if e := exit(t, p); e.Status != 3 {
		t.Errorf("ended with %+v, want status 3", e)
	}
	// To signal what has ended is harmless.
	p.Signal(int(syscall.SIGTERM))
}

func TestStdin(t *testing.T) {
	s := dialAgent(t)
	in, out := open(t, s, 0, 0), open(t, s, 0, 1)
	p := start(t, s, shell(0, "cat"))
	if _, err := in.Write([]byte("one\ntwo\n")); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, out); got != "one\ntwo\n" {
		t.Errorf("cat wrote %q", got)
	}
	if e := exit(t, p); e != (Exit{}) {
		t.Errorf("cat ended with %+v", e)
	}
	// Without a stream 0 there is nothing to read.
	out = open(t, s, 1, 1)
	p = start(t, s, shell(1, "readlink /proc/self/fd/0; cat"))
	if got := readAll(t, out); got != "/dev/null\n" {
		t.Errorf("standard input was %q", got)
	}
	exit(t, p)
}

func TestStreamsAreApart(t *testing.T) {
	s := dialAgent(t)
	out, err := open(t, s, 0, 1), open(t, s, 0, 2)
	p := start(t, s, shell(0, "printf out; printf err >&2"))
	if got := readAll(t, out); got != "out" {
		t.Errorf("standard output was %q", got)
	}
	if got := readAll(t, err); got != "err" {
		t.Errorf("standard error was %q", got)
	}
	exit(t, p)
}

// What a rank wrote is not lost by its end, however little has been read of it.
func TestOutputOfTheDead(t *testing.T) {
	s := dialAgent(t)
	out := open(t, s, 0, 1)
	p := start(t, s, shell(0, "head -c 60000 /dev/zero"))
	exit(t, p)
	if n := len(readAll(t, out)); n != 60000 {
		t.Errorf("%d bytes of 60000 came", n)
	}
}

// A stream that nobody reads holds up its process, and nothing else.
func TestSlowReader(t *testing.T) {
	s := dialAgent(t)
	const size = 4 << 20
	slow := open(t, s, 0, 1)
	p := start(t, s, shell(0, "head -c 4194304 /dev/zero"))
	for id := 1; id < 4; id++ {
		out := open(t, s, id, 1)
		q := start(t, s, shell(id, "head -c 4194304 /dev/zero"))
		if n := len(readAll(t, out)); n != size {
			t.Errorf("process %d: %d bytes of %d came", id, n, size)
		}
		exit(t, q)
	}
	select {
	case e := <-p.Exit():
		t.Errorf("a process ended (%+v) before its output was read", e)
	default:
	}
	if n := len(readAll(t, slow)); n != size {
		t.Errorf("%d bytes of %d came", n, size)
	}
	exit(t, p)
}

// A process left behind keeps the stream open, but not the exit.
func TestGrandchildHoldsOutput(t *testing.T) {
	s := dialAgent(t)
	out := open(t, s, 0, 1)
	p := start(t, s, shell(0, "sleep 60 & echo $!"))
	begin := time.Now()
	if e := exit(t, p); e != (Exit{}) {
		t.Errorf("ended with %+v", e)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the exit took %v", took)
	}
	// The rest of its group can still be found by what it wrote.
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the process left behind: %v", err)
	}
	if rest := readAll(t, out); rest != "" {
		t.Errorf("after the process left behind came %q", rest)
	}
}

func TestUser(t *testing.T) {
	s := dialAgent(t)
	c := shell(0, "id -u; id -g; id -G; touch /root/x 2>&1 && echo root")
	c.User = User{UID: 65534, GID: 65533, Groups: []uint32{65533, 65532}}
	out := open(t, s, 0, 1)
	p := start(t, s, c)
	got := readAll(t, out)
	if !strings.HasPrefix(got, "65534\n65533\n65533 65532\n") || strings.HasSuffix(got, "root\n") {
		t.Errorf("the process was %q", got)
	}
	exit(t, p)
}

// A host that cannot start a process hears which, and why.
func TestStartErrors(t *testing.T) {
	s := dialAgent(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("not a program"), 0o644); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "orphan")
	if err := os.WriteFile(orphan, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		Command
		want []string
	}{
		"no such program":      {Command{Argv: []string{"/no/such/program"}}, []string{"/no/such/program", "no such file"}},
		"not executable":       {Command{Argv: []string{plain}}, []string{plain, "permission denied"}},
		"a folder":             {Command{Argv: []string{dir}}, []string{dir, "permission denied"}},
		"no interpreter":       {Command{Argv: []string{orphan}}, []string{orphan, "interpreter"}},
		"not a format":         {Command{Argv: []string{empty}}, []string{empty, "exec format error"}},
		"no working directory": {Command{Argv: []string{"/bin/true"}, Dir: "/no/such/dir"}, []string{"/bin/true", "working directory /no/such/dir"}},
		"no argument":          {Command{}, []string{"no program"}},
		"an empty name":        {Command{Argv: []string{""}}, []string{"no program"}},
		"a zero byte in env":   {Command{Argv: []string{"/bin/true"}, Env: []string{"A=\x00"}}, []string{"/bin/true", "NUL"}},
		"a zero byte in argv":  {Command{Argv: []string{"/bin/true", "\x00"}}, []string{"/bin/true", "invalid argument"}},
		"no proxy":             {Command{Argv: []string{"/bin/true"}, PMI: &PMIRank{}}, []string{"PMI proxy"}},
	} {
		t.Run(name, func(t *testing.T) {
			streams := []io.ReadWriteCloser{open(t, s, 0, 0), open(t, s, 0, 1), open(t, s, 0, 2)}
			_, err := s.Start(soon(t), c.Command)
			if err == nil {
				t.Fatal("it started")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error %q does not say %q", err, w)
				}
			}
			for _, st := range streams {
				if got := readAll(t, st); got != "" {
					t.Errorf("a stream of a process that never was held %q", got)
				}
				st.Close()
			}
		})
	}
	if e := exit(t, start(t, s, shell(0, "exit 5"))); e.Status != 5 {
		t.Errorf("after all these errors a process ended with %+v", e)
	}
}

func TestStdioErrors(t *testing.T) {
	s := dialAgent(t)
	if _, err := s.Stdio(soon(t), 0, 3); err == nil || !strings.Contains(err.Error(), "stream 3 of process 0") {
		t.Errorf("stream 3 was opened: %v", err)
	}
	open(t, s, 0, 1)
	if _, err := s.Stdio(soon(t), 0, 1); err == nil || !strings.Contains(err.Error(), "open already") {
		t.Errorf("stream 1 was opened twice: %v", err)
	}
}

// Job after job in one session leaves no descriptor behind in the agent.
func TestManyJobsOneSession(t *testing.T) {
	cmd, conn := startAgent(t)
	s, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	job := func(n int) {
		for id := range 3 {
			in, out, errs := open(t, s, id, 0), open(t, s, id, 1), open(t, s, id, 2)
			p := start(t, s, shell(id, `read x; echo "$x"; exit $1`, string(rune('0'+n%8))))
			in.Write([]byte("hello\n"))
			in.Close()
			if got := readAll(t, out); got != "hello\n" {
				t.Errorf("job %d: process %d wrote %q", n, id, got)
			}
			readAll(t, errs)
			if e := exit(t, p); e.Status != n%8 {
				t.Errorf("job %d: process %d ended with %+v", n, id, e)
			}
			for _, st := range []io.Closer{out, errs} {
				st.Close()
			}
			s.Start(soon(t), Command{ID: id, Argv: []string{"/no/such/program"}})
		}
	}
	job(0)
	before := descriptors(t, cmd.Process.Pid)
	for n := range 10 {
		job(n)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		after := descriptors(t, cmd.Process.Pid)
		if after <= before {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the agent held %d descriptors after one job and %d after eleven", before, after)
		}
	}
}

// The host sees at once that a clone is gone.
func TestCloneGone(t *testing.T) {
	cmd, conn := startAgent(t)
	s, err := Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, s, shell(0, "echo $$ >&2; exec sleep 5"))
	cmd.Process.Kill()
	if e := exit(t, p); e.Error != "the clone is gone" {
		t.Errorf("the process of a lost clone ended with %+v", e)
	}
	over := make(chan error, 1)
	go func() { _, err := s.Accept(); over <- err }()
	select {
	case err := <-over:
		if err == nil {
			t.Error("a lost clone opened a stream")
		}
	case <-time.After(5 * time.Second):
		t.Error("waited 5 s for the session's end")
	}
	if _, err := s.Start(soon(t), shell(1, "true")); err == nil {
		t.Error("a process started in a lost clone")
	}
}
