package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/pmi"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// A clone, in these tests, is this binary again: the agent alone, as the first
// process of a PID namespace, which is how it lives in a guest.
const agentMark = "MPIRUN_SF_TEST_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(cloneMark) != "" {
		beTestClone()
	}
	if os.Getenv(agentMark) == "" {
		os.Exit(m.Run())
	}
	os.Unsetenv(agentMark)
	channel := os.NewFile(3, "channel")
	conn, err := net.FileConn(channel)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	unix.CloseOnExec(3)
	channel.Close()
	agent.Serve(conn)
}

// node is a clone of the tests.
type node struct {
	*agent.Session
	process *os.Process
}

func newNode(t *testing.T) node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("clones need a namespace and a user: this test needs root")
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
	cmd.Env = append(os.Environ(), agentMark+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	s, err := agent.Dial(conn)
	if err != nil {
		t.Fatal(err)
	}
	return node{s, cmd.Process}
}

// What a rank's script may call: the steps of MPI, as its library takes them.
const mpi = `
say() { echo "cmd=$*" >&$PMI_FD; }
hear() { read -r answer <&3; }
init() { say init pmi_version=1 pmi_subversion=1; hear; }
barrier() { say barrier_in; hear; }
finalize() { say finalize; hear; }
`

// buffer is output that is looked at meanwhile.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// trial is a job of the tests: a script on as many ranks as perNode adds up to.
type trial struct {
	Job
	nodes       []node
	out, errors buffer
	notices     buffer
}

func newTrial(t *testing.T, script string, perNode ...int) *trial {
	t.Helper()
	tr := &trial{}
	rank := 0
	for i, n := range perNode {
		nd := newNode(t)
		tr.nodes = append(tr.nodes, nd)
		p := Place{Name: fmt.Sprintf("clone-%d", i+1), IP: fmt.Sprintf("10.0.0.%d", i+1), Session: nd.Session}
		for range n {
			p.Ranks = append(p.Ranks, rank)
			rank++
		}
		tr.Places = append(tr.Places, p)
	}
	tr.Name = "test"
	tr.Apps = []App{{Argv: []string{"/bin/sh", "-c", mpi + script, "sh"}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}}
	tr.Stdout, tr.Stderr = &tr.out, &tr.errors
	tr.StartLimit = 20 * time.Second
	tr.Notice = func(s string) { fmt.Fprintln(&tr.notices, s) }
	return tr
}

// count gives the script the ranks that the places have.
func (tr *trial) count() {
	tr.Apps[0].Ranks = 0
	for _, p := range tr.Places {
		tr.Apps[0].Ranks += len(p.Ranks)
	}
}

// run runs the job, which must end within the limit, or on a busy machine soon
// after it: in any case long before its ranks would by themselves.
func (tr *trial) run(t *testing.T, limit time.Duration) error {
	t.Helper()
	tr.count()
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(t.Context()) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(limit + 20*time.Second):
		t.Fatalf("the job did not end in %v\nstdout: %s\nstderr: %s", limit, tr.out.String(), tr.errors.String())
		return nil
	}
}

// awaitOutput waits until the job has written s n times.
func (tr *trial) awaitOutput(t *testing.T, s string, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); strings.Count(tr.out.String(), s) < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("waited 20 s for %d times %q in %q", n, s, tr.out.String())
			return
		}
	}
}

// fails checks that the job failed with a status, for a reason.
func fails(t *testing.T, err error, status int, says string) {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) || f.Status != status || f.Error() != says {
		t.Errorf("the job ended with %v (%+v), want status %d: %s", err, f, status, says)
	}
}

func sorted(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestJob(t *testing.T) {
	tr := newTrial(t, `init; barrier; echo "$PMI_RANK/$PMI_SIZE $MPIR_CVAR_CH3_INTERFACE_HOSTNAME"; echo oops >&2; finalize`, 2, 0, 1)
	tr.Label = true
	// Clones that have run one job run the next.
	for range 2 {
		tr.out, tr.errors = buffer{}, buffer{}
		if err := tr.run(t, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		if got, want := sorted(tr.out.String()), "[0] 0/3 10.0.0.1\n[1] 1/3 10.0.0.1\n[2] 2/3 10.0.0.3"; got != want {
			t.Errorf("stdout is\n%s\nwant\n%s", got, want)
		}
		if got, want := sorted(tr.errors.String()), "[0] oops\n[1] oops\n[2] oops"; got != want {
			t.Errorf("stderr is\n%s\nwant\n%s", got, want)
		}
	}
	if s := tr.notices.String(); s != "" {
		t.Errorf("there were notices: %s", s)
	}
}

func TestRankZeroReadsInput(t *testing.T) {
	tr := newTrial(t, `echo "$PMI_RANK: $(cat)"`, 1, 2)
	tr.Stdin = strings.NewReader("hello")
	if err := tr.run(t, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, want := sorted(tr.out.String()), "0: hello\n1: \n2: "; got != want {
		t.Errorf("stdout is\n%s\nwant\n%s", got, want)
	}
}

// endless is an input that never ends, as a terminal's.
type endless struct{}

func (endless) Read([]byte) (int, error) { select {} }

func TestNobodyReadsInput(t *testing.T) {
	tr := newTrial(t, `exit 0`, 1)
	tr.Stdin = endless{}
	if err := tr.run(t, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	tr = newTrial(t, `exit 0`, 1)
	tr.Stdin = io.LimitReader(zeros{}, 8<<20)
	if err := tr.run(t, 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// How jobs fail: who is blamed, with which status, and that nobody who waits in
// a barrier is waited for.
func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		status int
		says   string
	}{
		"status without MPI": {`test $PMI_RANK = 1 && exit 7; sleep 60`, 7, "rank 1 on clone-2 exited with status 7"},
		"dies between": {`init; test $PMI_RANK = 1 && exit 0; barrier`, 1,
			"rank 1 on clone-2 exited with status 0 without calling MPI_Finalize"},
		"dies between with a status": {`init; test $PMI_RANK = 1 && exit 9; barrier`, 9,
			"rank 1 on clone-2 exited with status 9 without calling MPI_Finalize"},
		"killed": {`ulimit -c 0; init; test $PMI_RANK = 1 && kill -SEGV $$; barrier`, 139,
			"rank 1 on clone-2 was killed by signal 11 (segmentation fault)"},
		"abort": {`init; test $PMI_RANK = 1 && say abort exitcode=5; sleep 60`, 5,
			"rank 1 on clone-2 called MPI_Abort(comm, 5)"},
		"abort with 0": {`init; test $PMI_RANK = 1 && say abort exitcode=0; sleep 60`, 1,
			"rank 1 on clone-2 called MPI_Abort(comm, 0)"},
		"never inits": {`test $PMI_RANK = 1 && exit 0; init; barrier`, 1,
			"rank 1 on clone-2 ended without calling MPI_Init, for which the other ranks wait"},
		// Its peers have nothing to wait for, and end first.
		"status after finalize": {`init; barrier; finalize; test $PMI_RANK = 1 && exit 4; sleep 0.3`, 4,
			"rank 1 on clone-2 exited with status 4"},
		"the first of two": {`init; barrier; finalize; test $PMI_RANK = 1 && exit 4; sleep 0.5; exit 6`, 4,
			"rank 1 on clone-2 exited with status 4"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrial(t, c.script, 1, 1)
			// The ranks that go on are ended, not waited for.
			fails(t, tr.run(t, 1900*time.Millisecond), c.status, c.says)
		})
	}
}

// Where the end of a rank in the midst of it does not end the job, the others are
// told, and find out which it was.
func TestOthersAreToldOfADeadRank(t *testing.T) {
	tr := newTrial(t, `trap 'told=1' USR1
init; say get_my_kvsname; hear; kvs=${answer##*kvsname=}; barrier
test $PMI_RANK = 1 && sleep 1 && exit 9 # a signal ends a read of the shell's that has just got its line
until test "$told"; do sleep 0.05; done
say get kvsname=$kvs key=PMI_dead_processes; hear; echo "dead: ${answer##*value=}"; finalize`, 1, 1, 1)
	tr.Judge = func(rank int, clone string, e agent.Exit, s pmi.State) (*Failure, bool) {
		f, _ := judge(rank, clone, e, s)
		return f, false
	}
	fails(t, tr.run(t, 20*time.Second), 9, "rank 1 on clone-2 exited with status 9 without calling MPI_Finalize")
	if got := tr.out.String(); got != "dead: 1\ndead: 1\n" {
		t.Errorf("stdout is %q", got)
	}
}

func TestProgramThatDoesNotStart(t *testing.T) {
	tr := newTrial(t, "", 1, 1)
	tr.Apps[0].Argv = []string{"/no/such/program"}
	err := tr.run(t, time.Second)
	if err == nil || !strings.Contains(err.Error(), "start /no/such/program: no such file or directory") {
		t.Errorf("the job ended with %v", err)
	}
}

// A start that takes too long names the clones that are late.
func TestStartLimit(t *testing.T) {
	tr := newTrial(t, `sleep 60`, 1, 1, 1)
	if err := tr.nodes[1].process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tr.StartLimit = 300 * time.Millisecond
	err := tr.run(t, 5*time.Second)
	want := "clone-2 did not start all ranks in 300ms; is this machine overloaded? --start-timeout gives more time"
	if err == nil || err.Error() != want {
		t.Errorf("the job ended with %v, want %s", err, want)
	}
}

func TestInterrupt(t *testing.T) {
	signals := make(chan os.Signal, 2)
	tr := newTrial(t, `trap 'echo caught; exit 0' INT; echo ready; while :; do sleep 0.01; done`, 1, 1)
	tr.Signals = signals
	go func() {
		tr.awaitOutput(t, "ready", 2)
		signals <- syscall.SIGINT
	}()
	if err := tr.run(t, 10*time.Second); err != nil {
		t.Errorf("ranks that end well on SIGINT: %v", err)
	}
	if n := strings.Count(tr.out.String(), "caught"); n != 2 {
		t.Errorf("%d ranks of 2 caught the interrupt", n)
	}
	if !strings.Contains(tr.notices.String(), "press Ctrl-C again") {
		t.Errorf("the notices are %q", tr.notices.String())
	}
}

func TestSecondInterrupt(t *testing.T) {
	signals := make(chan os.Signal, 2)
	tr := newTrial(t, `trap 'echo no' INT; echo ready; while :; do sleep 0.01; done`, 1, 1)
	tr.Signals = signals
	go func() {
		tr.awaitOutput(t, "ready", 2)
		signals <- syscall.SIGINT
		tr.awaitOutput(t, "no", 2)
		signals <- syscall.SIGINT
	}()
	if err := tr.run(t, 10*time.Second); !errors.Is(err, ErrInterrupted) {
		t.Errorf("the job ended with %v", err)
	}
}

func TestOtherSignals(t *testing.T) {
	signals := make(chan os.Signal, 2)
	tr := newTrial(t, `trap 'exit 3' USR1; echo ready; while :; do sleep 0.01; done`, 1)
	tr.Signals = signals
	go func() {
		tr.awaitOutput(t, "ready", 1)
		signals <- syscall.SIGUSR1
	}()
	fails(t, tr.run(t, 10*time.Second), 3, "rank 0 on clone-1 exited with status 3")
}

// A clone that is lost ends the job, with the daemon's reason if it comes.
func TestLostClone(t *testing.T) {
	for name, c := range map[string]struct{ reason, says string }{
		"no reason": {"", "rank 1 on clone-2 was lost: the clone is gone"},
		"a reason":  {"clone-2: killed by the host", "clone-2: killed by the host"},
	} {
		t.Run(name, func(t *testing.T) {
			lost := make(chan string, 1)
			tr := newTrial(t, `echo ready; sleep 60`, 1, 1)
			tr.Lost = lost
			go func() {
				tr.awaitOutput(t, "ready", 2)
				tr.nodes[1].process.Kill()
				if c.reason != "" {
					lost <- c.reason
				}
			}()
			err := tr.run(t, 5*time.Second)
			var f *Failure
			if !errors.As(err, &f) || f.Status != 1 || !strings.HasSuffix(f.Error(), c.says) {
				t.Errorf("the job ended with %v, want %s", err, c.says)
			}
		})
	}
}

func TestContext(t *testing.T) {
	tr := newTrial(t, `echo ready; sleep 60`, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		tr.awaitOutput(t, "ready", 1)
		cancel()
	}()
	tr.count()
	if err := tr.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the job ended with %v", err)
	}
}

// Whoever reads slowly gets everything, however long after the ranks' end.
func TestSlowReaderGetsAll(t *testing.T) {
	tr := newTrial(t, `head -c 500000 /dev/zero | tr '\0' x | fold -w 99; echo; echo end`, 1)
	r, w := io.Pipe()
	tr.Stdout = w
	read := make(chan string, 1)
	go func() {
		time.Sleep(drainLimit + 500*time.Millisecond)
		b, _ := io.ReadAll(r)
		read <- string(b)
	}()
	if err := tr.run(t, 15*time.Second); err != nil {
		t.Error(err)
	}
	w.Close()
	if got := <-read; !strings.HasSuffix(got, "\nend\n") {
		t.Errorf("of the output, %d bytes came", len(got))
	}
}

// Something that a rank left behind, and that is silent, does not hold the job.
func TestLeftBehind(t *testing.T) {
	tr := newTrial(t, `echo before; sleep 60 &`, 1)
	if err := tr.run(t, drainLimit+5*time.Second); err != nil {
		t.Error(err)
	}
	if got := tr.out.String(); got != "before\n" {
		t.Errorf("stdout is %q", got)
	}
}

// Output that cannot be written does not stop the ranks, and fails the job.
func TestOutputCannotBeWritten(t *testing.T) {
	tr := newTrial(t, `head -c 2000000 /dev/zero | tr '\0' '\n'; echo done >&2`, 1)
	disk := &fullDisk{}
	tr.Stdout = disk
	err := tr.run(t, 10*time.Second)
	if err == nil || err.Error() != "write the ranks' output: no space left on device" {
		t.Errorf("the job ended with %v", err)
	}
	if disk.writes != 1 {
		t.Errorf("%d writes were tried", disk.writes)
	}
	if got := tr.errors.String(); got != "done\n" {
		t.Errorf("stderr is %q", got)
	}
}

// What a rank says wrong is said to the user, with its number.
func TestProtocolNotice(t *testing.T) {
	tr := newTrial(t, `init; say spawn; hear; finalize`, 1)
	tr.run(t, 10*time.Second)
	if got := tr.notices.String(); !strings.HasPrefix(got, "rank 0 on clone-1: PMI: ") {
		t.Errorf("the notices are %q", got)
	}
}
