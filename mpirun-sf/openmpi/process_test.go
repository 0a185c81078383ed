package openmpi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// What this program is when tests start it.
const (
	asAgentArg = "as-agent" // of Open MPI's launcher
	asCloneArg = "as-clone" // the agent in a clone, whose session is descriptor 3
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == asAgentArg:
		status, err := Agent(context.Background(), os.Args[2:], os.Stdin, os.Stdout, os.Stderr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
		os.Exit(status)
	case len(os.Args) > 1 && os.Args[1] == asCloneArg:
		conn, err := net.FileConn(os.NewFile(3, "session"))
		if err == nil {
			err = unix.Sethostname([]byte(os.Args[2]))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		agent.Serve(conn)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// clone is a process with a host name of its own and the agent of a clone in it:
// enough for Open MPI to start a daemon there.
func clone(t *testing.T, name string) (*agent.Session, *os.Process) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a process with a host name of its own: this test needs root")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "session"), os.NewFile(uintptr(fds[1]), "clone")
	defer mine.Close()
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", asCloneArg, name)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() // and with it, as the first of its namespace, all that it started
		cmd.Wait()
	})
	conn, err := net.FileConn(mine)
	if err != nil {
		t.Fatal(err)
	}
	s, err := agent.Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, cmd.Process
}

// trial is a job of one clone, and how it is run.
type trial struct {
	ssh       func(context.Context, agent.SSH) (net.Conn, error)
	limit     time.Duration
	stdin     io.Reader
	label     bool
	signals   chan os.Signal
	lost      chan string
	meanwhile func(pid int) // once the ranks run

	stdout, stderr string
	took           time.Duration // from meanwhile
}

// run has the real launcher run two ranks of a shell.
func (tr *trial) run(t *testing.T, script string) (int, error) {
	t.Helper()
	l, err := Find(t.Context(), nil)
	if err != nil {
		t.Fatalf("this test needs Open MPI's launcher (Debian: openmpi-bin): %v", err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if tr.ssh == nil {
		s, _ := clone(t, "clone-1")
		tr.ssh = s.SSH
	}
	dir := t.TempDir()
	job := Job{
		Clones:  []Clone{{Name: "clone-1", IP: netip.MustParseAddr("127.0.0.1"), Slots: 2, SSH: tr.ssh}},
		Network: netip.MustParsePrefix("127.0.0.0/8"), Listener: listener, Limit: tr.limit,
		Login: agent.Login{Env: []string{"PATH=" + os.Getenv("PATH"), "MINE=the job's", "HOME=/"}, Dir: "/"},
	}
	s, err := job.Serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command, err := AgentCommand(self, asAgentArg)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*os.File{}
	for _, name := range []string{"stdout", "stderr"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[name] = f
	}
	read := func(name string) string {
		b, _ := os.ReadFile(files[name].Name())
		return string(b)
	}
	begun := make(chan time.Time, 1)
	if tr.meanwhile != nil {
		mark := filepath.Join(dir, "mark")
		script = "echo $PPID >" + mark + ".$OMPI_COMM_WORLD_RANK; " + script
		go func() {
			for range 1000 {
				_, err0 := os.Stat(mark + ".0")
				_, err1 := os.Stat(mark + ".1")
				if errors.Join(err0, err1) == nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			begun <- time.Now()
			tr.meanwhile(launcherPID(t))
		}()
	}
	argv := l.Command(Run{
		Agent: command, Clones: job.Clones, Ranks: 2, Network: "127.0.0.0/8", Dir: dir,
		Argv: []string{"/bin/sh", "-c", script}, Label: tr.label, Root: true, Limit: time.Minute,
	})
	status, err := s.Run(t.Context(), Process{
		Path: l.Path, Argv: argv, Env: append(os.Environ(), "TMPDIR="+dir, "OMPI_MCA_orte_tmpdir_base="+dir), Dir: dir, Stdin: tr.stdin, Stdout: files["stdout"], Stderr: files["stderr"],
		Signals: tr.signals, Lost: tr.lost, Notice: func(string) {},
	})
	select {
	case begin := <-begun:
		tr.took = time.Since(begin)
	default:
	}
	tr.stdout, tr.stderr = read("stdout"), read("stderr")
	// What a killed clone's daemon had is gone with a clone's disk, and here with dir.
	host, _ := os.Hostname()
	if left, _ := filepath.Glob(filepath.Join(dir, "ompi."+host+".*")); len(left) > 0 {
		t.Errorf("the launcher left %v", left)
	}
	if pid := launcherPID(t); pid != 0 {
		t.Errorf("the launcher still runs: %d", pid)
	}
	return status, err
}

// launcherPID is the launcher's that this process started, 0 if there is none.
func launcherPID(t *testing.T) int {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		for _, pid := range strings.Fields(string(b)) {
			if name, _ := os.ReadFile("/proc/" + pid + "/comm"); string(name) == "orterun\n" {
				var n int
				fmt.Sscan(pid, &n)
				return n
			}
		}
	}
	return 0
}

func TestRun(t *testing.T) {
	tr := trial{limit: time.Minute, stdin: strings.NewReader("some input")}
	status, err := tr.run(t, `echo "rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE on $(hostname): $MINE, $(cat)"; test -z "$`+SecretVariable+`" || exit 9; test $OMPI_COMM_WORLD_RANK = 1 || exit 3`)
	if status != 3 || err != nil {
		t.Errorf("it ended with %d, %v: %s", status, err, tr.stderr)
	}
	for _, want := range []string{"rank 0 of 2 on clone-1: the job's, some input\n", "rank 1 of 2 on clone-1: the job's, \n"} {
		if !strings.Contains(tr.stdout, want) {
			t.Errorf("the output lacks %q:\n%s", want, tr.stdout)
		}
	}
	tr = trial{limit: time.Minute, label: true}
	if status, err := tr.run(t, "echo hello"); status != 0 || err != nil {
		t.Errorf("it ended with %d, %v", status, err)
	}
	if !strings.Contains(tr.stdout, "[1,1]<stdout>:hello\n") || tr.stderr != "" {
		t.Errorf("the output is\n%s%s", tr.stdout, tr.stderr)
	}
}

func TestRunEnds(t *testing.T) {
	const sleep = "exec sleep 100"
	for name, c := range map[string]struct {
		do   func(tr *trial, pid int)
		want string
	}{
		"a lost clone":   {func(tr *trial, _ int) { tr.lost <- "clone-1 was lost: it burnt" }, "clone-1 was lost: it burnt"},
		"an interrupt":   {func(tr *trial, _ int) { tr.signals <- syscall.SIGINT }, "interrupted by SIGINT"},
		"by force":       {func(tr *trial, _ int) { tr.signals <- syscall.SIGINT; tr.signals <- syscall.SIGINT }, "interrupted by SIGINT"},
		"a termination":  {func(tr *trial, _ int) { tr.signals <- syscall.SIGTERM }, "interrupted by SIGTERM"},
		"a silent clone": {nil, "clone-1 was lost: it is silent"},
		"a lost session": {nil, ""},
		"killed":         {func(_ *trial, pid int) { unix.Kill(pid, unix.SIGKILL) }, "was killed by signal 9"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := trial{limit: time.Minute, signals: make(chan os.Signal, 2), lost: make(chan string, 1)}
			tr.meanwhile = func(pid int) { c.do(&tr, pid) }
			switch name {
			case "a lost session":
				s, _ := clone(t, "clone-1")
				tr.ssh, tr.meanwhile = s.SSH, func(int) { s.Close() }
			case "a silent clone": // whose connections do not end by themselves
				s, process := clone(t, "clone-1")
				tr.ssh, tr.meanwhile = s.SSH, func(int) {
					process.Signal(syscall.SIGSTOP)
					tr.lost <- c.want
				}
			}
			status, err := tr.run(t, sleep)
			if status == 0 || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("it ended with %d, %v, and should say %q", status, err, c.want)
			}
			if tr.took > 4*time.Second {
				t.Errorf("the end took %v", tr.took)
			}
		})
	}
}

// A daemon that does not come is waited for as long as the user said.
func TestRunLate(t *testing.T) {
	tr := trial{limit: 2 * time.Second, ssh: func(ctx context.Context, _ agent.SSH) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	begin := time.Now()
	_, err := tr.run(t, "true")
	if err == nil || !strings.HasPrefix(err.Error(), "clone-1: Open MPI's daemon did not connect in 2s") {
		t.Error(err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
}
