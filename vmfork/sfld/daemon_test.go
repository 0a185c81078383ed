package sfld

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/ticket"
)

// launcherMark makes this binary a launcher with a daemon: its value is the
// daemon's program.
const launcherMark = "MPIRUN_SF_TEST_LAUNCHER"

func TestMain(m *testing.M) {
	if program := os.Getenv(launcherMark); program != "" {
		launcher(program)
		return
	}
	dir, err := os.MkdirTemp("", "sfld-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	binary = filepath.Join(dir, "mpirun-sf")
	build := exec.Command("go", "build", "-o", binary, "github.com/mpirun-sf/mpirun-sf/mpirun-sf")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build mpirun-sf: %v\n%s", err, out)
		os.Exit(2)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// binary is the real program.
var binary string

func options(job, cache string) Options {
	return Options{Job: job, Cache: cache, Accel: "tcg", UID: os.Getuid(), GID: os.Getgid()}
}

// jobName is unlike that of any other test on this machine.
func jobName(t *testing.T) string {
	return strings.ToLower(fmt.Sprintf("test%d%s", os.Getpid(), strings.NewReplacer("/", "", "_", "").Replace(t.Name()[4:])))
}

// startDaemon starts a daemon that ends with the test, and is then gone.
func startDaemon(t *testing.T) *Client {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a daemon has namespaces of its own: this test needs root")
	}
	c, err := Start(t.Context(), binary, options(jobName(t), t.TempDir()), func(Notice) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func small() RequestArgs { return RequestArgs{Clones: 2, VCPUs: 1, Memory: 128 << 20} }

// reservations are the files of a job's reservations of memory.
func reservations(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(jobsDir, jobName(t)+".*.job"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// descendants are the processes below pid, itself included.
func descendants(t *testing.T, pid int) (all []int) {
	t.Helper()
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
		return nil
	}
	all = append(all, pid)
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, child := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(child)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, descendants(t, n)...)
		}
	}
	return all
}

// gone waits until none of the processes is there.
func gone(t *testing.T, limit time.Duration, pids []int) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		var left []int
		for _, pid := range pids {
			// A zombie whose parent is gone is the machine's init's to reap.
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !bytes.Contains(stat, []byte(") Z ")) {
				left = append(left, pid)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("after %v there are still processes %v of %v", limit, left, pids)
			return
		}
	}
}

// A job that gets as far as it can without a guest, and what its end leaves.
func TestDaemon(t *testing.T) {
	c := startDaemon(t)
	g, err := c.RequestTicket(t.Context(), small())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(g.Ticket.Clones); n != 2 || g.Cores < 1 || g.Each < 128<<20 || g.Free < 2*g.Each {
		t.Errorf("granted %+v", g)
	}
	if err := g.Ticket.Check(); err != nil {
		t.Error(err)
	}
	if r := reservations(t); len(r) != 1 {
		t.Errorf("the reservations are %v", r)
	}
	// Another is beside it, and one that is killed is no more.
	more, err := c.RequestTicket(t.Context(), small())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(g.Ticket.Members(), more.Ticket.Members()), "[1 2] [3 4]"; got != want || g.Ticket.ID == more.Ticket.ID {
		t.Errorf("tickets %s and %s are for members %s, want %s", g.Ticket.ID, more.Ticket.ID, got, want)
	}
	if r := reservations(t); len(r) != 2 {
		t.Errorf("the reservations are %v", r)
	}
	if err := c.Kill(t.Context(), more.Ticket); err != nil {
		t.Error(err)
	}
	if err := c.Kill(t.Context(), more.Ticket); err != nil {
		t.Errorf("to kill what was killed: %v", err)
	}
	if r := reservations(t); len(r) != 1 {
		t.Errorf("after one ticket was killed the reservations are %v", r)
	}
	if _, err := c.Share(t.Context(), ShareArgs{Folder: t.TempDir(), Target: "/data"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Counters(t.Context()); err != nil {
		t.Error(err)
	}
	// What is not there is an error, or none to take away.
	if _, err := c.Share(t.Context(), ShareArgs{Folder: "/no/such/folder", Target: "/data"}); err == nil || !strings.Contains(err.Error(), "/no/such/folder") {
		t.Errorf("a folder that is not there was shared: %v", err)
	}
	if _, err := c.Stage(t.Context(), "/no/such/program"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a program that is not there was staged: %v", err)
	}
	if _, err := c.Clone(t.Context(), ticket.Ticket{}, time.Second); err == nil {
		t.Error("no ticket was good for clones")
	}
	if _, err := c.Clone(t.Context(), g.Ticket, time.Second); err == nil || !strings.Contains(err.Error(), "nothing yet to make clones of") {
		t.Errorf("clones of nothing: %v", err)
	}
	if _, err := c.StartVM(t.Context(), VMArgs{VCPUs: 1, Limit: time.Second}); err == nil || !strings.Contains(err.Error(), "nothing yet to make a VM of") {
		t.Errorf("a VM of nothing: %v", err)
	}
	pids := descendants(t, c.cmd.Process.Pid)
	if len(pids) < 2 {
		t.Errorf("the daemon and its servers are processes %v", pids)
	}
	begin := time.Now()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
	gone(t, 0, pids)
	if r := reservations(t); len(r) > 0 {
		t.Errorf("the reservations %v are still there", r)
	}
	if entries, err := os.ReadDir(jobDir); err != nil || len(entries) > 0 {
		t.Errorf("outside of the job its folder holds %v (%v)", entries, err)
	}
	select {
	case <-c.Done():
	default:
		t.Error("the daemon is gone and is not done")
	}
	if err := c.Close(); err != nil {
		t.Errorf("to close twice: %v", err)
	}
	if _, err := c.RequestTicket(t.Context(), small()); err == nil || err.Error() != "the host daemon ended unexpectedly" {
		t.Errorf("a daemon that is gone answered: %v", err)
	}
}

// A session with a clone that is not there fails; it does not wait.
func TestAttachToNobody(t *testing.T) {
	c := startDaemon(t)
	s := c.Attach(7)
	defer s.Close()
	if _, err := s.Start(t.Context(), agent.Command{Argv: []string{"/bin/true"}}); err == nil {
		t.Error("a clone that is not there ran a program")
	}
}

// The staged program can be read by the job's user, whatever the umask.
func TestStageUnderUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	c := startDaemon(t)
	staged, err := c.Stage(t.Context(), "/bin/true", "/bin/false")
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d/root%s/%s", c.cmd.Process.Pid, jobDir, filepath.Base(staged.Mounting.Target))
	for _, path := range []string{dir, filepath.Join(dir, "0"), filepath.Join(dir, filepath.Base(staged.Paths[1]))} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v (%v)", path, st.Mode(), err)
		}
	}
}

// Many jobs at once do not know of each other.
func TestDaemonsSideBySide(t *testing.T) {
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			c := startDaemon(t)
			if _, err := c.RequestTicket(t.Context(), small()); err != nil {
				t.Error(err)
			}
			if _, err := c.Stage(t.Context(), "/bin/true"); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a job lacks is the answer to its first call, whichever that is.
func TestSomethingIsMissing(t *testing.T) {
	type missing struct {
		client *Client
		err    error
	}
	started := make(chan missing)
	go func() {
		// A mount namespace belongs to a thread, and processes inherit it; this
		// thread is not given back.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("/dev/zero", "/dev/fuse", "", unix.MS_BIND, "")
		}
		if err != nil {
			started <- missing{nil, err}
			return
		}
		c, err := Start(t.Context(), binary, options(jobName(t), t.TempDir()), func(Notice) {})
		started <- missing{c, err}
	}()
	got := <-started
	if got.err != nil {
		t.Fatal(got.err)
	}
	c := got.client
	for name, call := range map[string]func() error{
		"RequestTicket": func() error { _, err := c.RequestTicket(t.Context(), small()); return err },
		"Prepare":       func() error { _, err := c.Prepare(t.Context(), PrepareArgs{}); return err },
		"Clone":         func() error { _, err := c.Clone(t.Context(), ticket.Ticket{}, time.Second); return err },
		"Share":         func() error { _, err := c.Share(t.Context(), ShareArgs{}); return err },
		"Stage":         func() error { _, err := c.Stage(t.Context(), "/bin/true"); return err },
		"Kill":          func() error { return c.Kill(t.Context(), ticket.Ticket{}) },
		"StartVM":       func() error { _, err := c.StartVM(t.Context(), VMArgs{}); return err },
		"Counters":      func() error { _, err := c.Counters(t.Context()); return err },
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "mount memtap") {
			t.Errorf("%s without FUSE: %v", name, err)
		}
	}
	pids := descendants(t, c.cmd.Process.Pid)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	gone(t, 0, pids)
}

func TestStartErrors(t *testing.T) {
	if _, err := Start(t.Context(), "/no/such/program", Options{Job: "x"}, nil); err == nil || !strings.Contains(err.Error(), "start the host daemon") {
		t.Errorf("a daemon of no program: %v", err)
	}
	// Something that ends at once.
	c, err := Start(t.Context(), "/bin/true", Options{Job: "x"}, func(Notice) {})
	if err == nil {
		if _, err = c.RequestTicket(t.Context(), small()); err == nil {
			t.Error("/bin/true granted a ticket")
		}
		c.Close()
	}
}

// A daemon that somebody starts by hand says what it is.
func TestByHand(t *testing.T) {
	out, err := exec.Command(binary, "sfld").CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "mpirun-sf: the host daemon is started by mpirun-sf, not by hand") {
		t.Errorf("without a launcher (%v): %s", err, out)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "mine"), os.NewFile(uintptr(fds[1]), "theirs")
	defer mine.Close()
	cmd := exec.Command(binary, "sfld")
	cmd.ExtraFiles = []*os.File{theirs}
	io.WriteString(mine, "{]")
	out, err = cmd.CombinedOutput()
	theirs.Close()
	if err == nil || !strings.HasPrefix(string(out), "mpirun-sf: read the job's options") {
		t.Errorf("with nonsense for options (%v): %s", err, out)
	}
}

// launcher starts a daemon, prints its process and waits.
func launcher(program string) {
	c, err := Start(context.Background(), program, options(os.Getenv("MPIRUN_SF_TEST_JOB"), os.TempDir()), func(Notice) {})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := c.RequestTicket(context.Background(), small()); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := c.Share(context.Background(), ShareArgs{Folder: os.TempDir(), Target: "/data"}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.cmd.Process.Pid)
	select {}
}

// Whoever of the two is killed, nothing is left of the job.
func TestKilled(t *testing.T) {
	for name, pick := range map[string]func(launcher, daemon int) int{
		"launcher": func(l, _ int) int { return l },
		"daemon":   func(_, d int) int { return d },
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), launcherMark+"="+binary, "MPIRUN_SF_TEST_JOB="+jobName(t))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				cmd.Wait()
			}()
			var daemon int
			if _, err := fmt.Fscan(out, &daemon); err != nil {
				t.Fatalf("start a launcher and its daemon: %v", err)
			}
			pids := descendants(t, daemon)
			if len(pids) < 2 {
				t.Errorf("the daemon and its servers are processes %v", pids)
			}
			if err := syscall.Kill(pick(cmd.Process.Pid, daemon), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			gone(t, 2*time.Second, pids)
			// A file may stay; its lock does not, and the next job goes on.
			for _, path := range reservations(t) {
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
					t.Errorf("the reservation is still held: %v", err)
				}
				f.Close()
				os.Remove(path)
			}
		})
	}
}

func TestReadOptions(t *testing.T) {
	want := Options{Job: "abc", Cache: "/cache", Window: 32 << 10, UID: 1000, Groups: []int{1, 2}}
	line, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	r := strings.NewReader(string(line) + "what follows")
	got, err := readOptions(r)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("read %+v (%v), want %+v", got, err, want)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "what follows" {
		t.Errorf("after the options comes %q", rest)
	}
	for _, bad := range []string{"", "{", "{]", "[]", `{"job":1}`, `{}`, `{"job":"a/b"}`, `{"job":"` + strings.Repeat("x", maxOptions) + `"}`} {
		if _, err := readOptions(strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "read the job's options: ") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	mine, theirs := net.Pipe()
	mine.Close()
	if _, err := readOptions(theirs); err == nil {
		t.Error("a launcher that is gone gave options")
	}
}

func FuzzReadOptions(f *testing.F) {
	f.Add([]byte(`{"job":"abc","groups":[1]}rest`))
	f.Add([]byte(`{"job":"a/b"}`))
	f.Add([]byte("{]"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		opts, err := readOptions(r)
		if err != nil {
			return
		}
		if strings.Contains(opts.Job, "/") || opts.Job == "" {
			t.Errorf("the job is called %q", opts.Job)
		}
		// What was taken is one JSON value, and no byte more.
		if took := in[:len(in)-r.Len()]; !json.Valid(took) {
			t.Errorf("took %q of %q", took, in)
		}
	})
}
