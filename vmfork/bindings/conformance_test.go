package bindings

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The conformance programs are for real virtual machines. Here each part that
// a program plays there is played alone, and the test is the others:
//
//   - the parent: its clones are connections that the test makes to it;
//   - a clone: the test has the program's own listening socket, and so is who
//     answers when the program dials its parent.
var programs = []struct {
	name    string
	command []string
}{
	{"c", []string{"build/conformance-c"}},
	{"cpp", []string{"build/conformance-cpp"}},
	{"python", []string{"python3", "-Werror", "python/conformance.py"}},
	{"java", []string{"java", "-XX:TieredStopAtLevel=1", "-jar", "build/conformance.jar"}},
	{"go", []string{"build/conformance-go"}},
	{"shell", []string{"bash", "shell/conformance.sh"}},
}

const (
	asParent     = 0
	asClone1     = 1
	asClone2     = 2
	asCheckpoint = -1 // the clone that is made of the checkpoint
)

// TestMain is also nc, as far as the shell's program wants it: nc -l -p PORT.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "nc" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp4", ":"+os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "nc:", err)
		os.Exit(1)
	}
	if _, err := os.Stat(os.Getenv("NC_DEAF")); err == nil {
		io.Copy(io.Discard, os.Stdin) // the test is who accepts
		os.Exit(0)
	}
	conn, err := l.Accept()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nc:", err)
		os.Exit(1)
	}
	l.Close()
	go io.Copy(conn, os.Stdin)
	io.Copy(os.Stdout, conn)
	os.Exit(0)
}

// A stage is a fake that keeps tickets as SFLD would, around one program.
type stage struct {
	t       *testing.T
	part    int
	group   int // process group of the program
	tickets map[string]int
	nextID  int
	kept    bool   // the checkpoint
	thanks  string // what a child waits for when it has told its line; "": the end
	deaf    string // a file that is there when nc is not to accept
	heard   chan string
	exited  chan string
}

const (
	unknown = "error kind=unknown text=no%20such%20thing\n"
	refused = "error kind=refused text=this%20is%20no%20clone\n"
)

func (s *stage) answer(request string) string {
	call, rest, _ := strings.Cut(request, " ")
	arguments := map[string]string{}
	for field := range strings.FieldsSeq(rest) {
		key, value, _ := strings.Cut(field, "=")
		arguments[key] = value
	}
	ticket := arguments["ticket"]
	granted, live := s.tickets[ticket]
	if ticket != "" && !live {
		return unknown
	}
	switch call {
	case "whoami":
		return "ok id=0 member=0 name=parent ip=127.0.0.1 vcpus=1 host=h\n"
	case "request-ticket":
		s.nextID++
		n, _ := strconv.Atoi(arguments["clones"])
		s.tickets[fmt.Sprint("t", s.nextID)] = n
		return s.describe(fmt.Sprint("t", s.nextID), n)
	case "ticket":
		return s.describe(ticket, granted)
	case "clone":
		if s.part > asParent {
			s.beParent()
			return fmt.Sprintf("ok id=%d\n", s.part)
		}
		for id := 1; id <= granted && granted == 2; id++ { // the single clone loops for ever
			go s.beChild(fmt.Sprintf("child %d saw 42\n", id))
		}
		return "ok id=0\n"
	case "checkpoint-parent":
		s.kept = true
		if s.part == asCheckpoint {
			s.beParent()
			return "ok checkpoint=c1 id=1 ticket=t9\n"
		}
		return "ok checkpoint=c1 id=0\n"
	case "create-clones":
		if !s.kept {
			return unknown
		}
		go s.beChild("child 1 saw 7\n")
		return "ok id=0\n"
	case "join":
		delete(s.tickets, ticket)
		if granted == 2 {
			return "ok status=1:1 status=2:2\n"
		}
		return "ok status=1:0\n"
	case "kill":
		delete(s.tickets, ticket)
		return "ok\n"
	case "discard":
		s.kept = false
		return "ok\n"
	case "exit":
		// The clone of the checkpoint is the parent until there is one.
		if s.part == asParent {
			return refused
		}
		if s.part == asCheckpoint && !s.kept {
			s.deafen()
			return refused
		}
		s.exited <- arguments["status"]
		return ""
	}
	return "error kind=invalid text=" + call + "\n"
}

func (s *stage) describe(ticket string, n int) string {
	reply := fmt.Sprintf("ok ticket=%s asked=%d granted=%d", ticket, n, n)
	for id := 1; id <= n; id++ {
		reply += fmt.Sprintf(" clone=%d:clone-%d:127.0.0.%d:1:h", id, id, id+1)
	}
	return reply + "\n"
}

// beChild tells the program a line, and waits until it has it. Where children
// take turns it tries again.
func (s *stage) beChild(line string) {
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = s.tell(line); err == nil {
			return
		}
	}
	s.t.Errorf("tell the program %q: %v", line, err)
}

// deafen leaves the next connection to the test.
func (s *stage) deafen() {
	if err := os.WriteFile(s.deaf, nil, 0o600); err != nil {
		s.t.Error(err)
	}
}

func (s *stage) tell(line string) error {
	_, _, port, err := listening(s.group)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp4", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, line); err != nil {
		return err
	}
	if s.thanks == "" {
		conn.(*net.TCPConn).CloseWrite()
	}
	answer := make([]byte, len(s.thanks)+1)
	n, err := io.ReadAtLeast(conn, answer, len(s.thanks))
	if s.thanks == "" {
		n, err = conn.Read(answer)
		if err == io.EOF {
			err = nil
		}
	}
	if err == nil && string(answer[:n]) != s.thanks {
		err = fmt.Errorf("it answers %q", answer[:n])
	}
	return err
}

// beParent hears what the program tells, on a copy of its own socket.
func (s *stage) beParent() {
	l, err := borrow(s.group)
	if err != nil {
		s.t.Error(err)
		return
	}
	go func() {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			s.t.Errorf("accept the program's connection: %v", err)
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		io.WriteString(conn, s.thanks)
		s.heard <- line
	}()
}

// listening finds the TCP socket that a process group listens on.
func listening(group int) (pid, fd, port int, err error) {
	ports := map[string]int{} // by inode
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(table)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("find the program's socket: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" { // LISTEN
				continue
			}
			n, _ := strconv.ParseUint(f[1][strings.LastIndex(f[1], ":")+1:], 16, 16)
			ports["socket:["+f[9]+"]"] = int(n)
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		part := strings.Split(link, "/")
		pid, _ := strconv.Atoi(part[2])
		fd, _ := strconv.Atoi(part[4])
		if of, err := unix.Getpgid(pid); err != nil || of != group {
			continue
		}
		if target, err := os.Readlink(link); err == nil && ports[target] != 0 {
			return pid, fd, ports[target], nil
		}
	}
	return 0, 0, 0, fmt.Errorf("the program listens on no port")
}

// borrow is the listening socket of a process group, which stays theirs too.
func borrow(group int) (net.Listener, error) {
	pid, fd, _, err := listening(group)
	if err != nil {
		return nil, err
	}
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(handle)
	copied, err := unix.PidfdGetfd(handle, fd, 0)
	if err != nil {
		return nil, fmt.Errorf("borrow the program's socket: %w", err)
	}
	file := os.NewFile(uintptr(copied), "listener")
	defer file.Close()
	return net.FileListener(file)
}

// play starts a program in a part. What it prints is whole when ended is closed.
func play(t *testing.T, part int, command []string) (s *stage, printed *strings.Builder, ended chan error) {
	t.Helper()
	s = &stage{t: t, part: part, tickets: map[string]int{}, heard: make(chan string, 2), exited: make(chan string, 1)}
	ready := make(chan struct{})
	f := serve(t, func(request string) string {
		<-ready // until the group is known
		return s.answer(request)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	printed = new(strings.Builder)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	path, err := filepath.Abs("build/bin")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "SF_SOCKET="+f.path, "PYTHONDONTWRITEBYTECODE=1", "PATH="+path+":"+os.Getenv("PATH"))
	s.deaf = filepath.Join(t.TempDir(), "deaf")
	cmd.Env = append(cmd.Env, "NC_DEAF="+s.deaf)
	if part > asParent {
		s.deafen()
	}
	if command[0] == "bash" {
		s.thanks = "heard\n"
	}
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.group = cmd.Process.Pid
	close(ready)
	ended = make(chan error, 1)
	left := make(chan struct{})
	go func() {
		defer close(left)
		ended <- cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel() // a clone that has called exit does not end here
		<-left
		syscall.Kill(-s.group, syscall.SIGKILL)
	})
	return s, printed, ended
}

var buildConformance = sync.OnceValue(func() error {
	if err := build(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the test's own program: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"make", "conformance"},
		{"go", "build", "-o", "build/conformance-go", "./go"},
		{"go", "build", "-o", "build/bin/sf", "../../mpirun-sf"},
		{"ln", "-sf", self, "build/bin/nc"},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the conformance programs: %w\n%s", err, out)
		}
	}
	return nil
})

func TestConformanceAsParent(t *testing.T) {
	if err := buildConformance(); err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/conformance.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			_, printed, ended := play(t, asParent, p.command)
			if err := <-ended; err != nil || printed.String() != string(golden) {
				t.Errorf("%v; printed\n%s\nwant\n%s", err, printed, golden)
			}
		})
	}
}

func TestConformanceAsClone(t *testing.T) {
	if err := buildConformance(); err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		name         string
		part         int
		says, status string
	}{
		{"clone 1", asClone1, "child 1 saw 42\n", "1"},
		{"clone 2", asClone2, "child 2 saw 42\n", "2"},
		{"clone of the checkpoint", asCheckpoint, "child 1 saw 7\n", "0"},
	} {
		for _, p := range programs {
			t.Run(part.name+"/"+p.name, func(t *testing.T) {
				s, printed, ended := play(t, part.part, p.command)
				var got []string
				for _, said := range []chan string{s.heard, s.exited} {
					select {
					case line := <-said:
						got = append(got, line)
						continue
					case err := <-ended:
						ended <- err
					}
					// It ends when its last call gets no answer, and what it said counts.
					select {
					case line := <-said:
						got = append(got, line)
					default:
						t.Fatalf("ended too early: %v; printed\n%s", <-ended, printed)
					}
				}
				if want := []string{part.says, part.status}; !slices.Equal(got, want) {
					t.Errorf("said and exited with %q, want %q", got, want)
				}
			})
		}
	}
}
