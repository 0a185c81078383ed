package share

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// These tests change users and root directories, and need root. They fail where they have it not.

// nobody is a user who owns nothing here, in a group of its own and one other.
const nobody, nogroup, club = 65534, 65533, 12345

// TestMain turns the test binary into the child, or into the parent that is killed in TestKilledParent.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		ctx := context.Background()
		switch os.Args[1] {
		case "share":
			if err := Main(ctx, os.Stdin, os.Stdout, zerolog.New(os.Stderr)); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case relayArg:
			if err := RelayMain(ctx); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "parent":
			s, _, err := startIn(ctx, Config{Folder: os.Args[2], Token: NewToken()})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println(s.PID())
			select {}
		}
	}
	os.Exit(m.Run())
}

// startIn starts a child with a listener of its own.
func startIn(ctx context.Context, config Config) (*Server, net.Addr, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	s, err := Start(ctx, config, file, Command{Args: []string{"share"}})
	return s, listener.Addr(), err
}

// reachableTemp is a temporary directory with parents that everybody may pass.
func reachableTemp(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	dir := t.TempDir()
	for path := dir; path != os.TempDir() && len(path) > 1; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestServerIsTheUserInTheFolder(t *testing.T) {
	folder := reachableTemp(t)
	write(t, filepath.Join(folder, "roots"), "root's")
	if err := os.Chmod(filepath.Join(folder, "roots"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "club"), 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(folder, "club"), 0, club); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(folder, "club"), 0o770); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	config := Config{Folder: folder, UID: nobody, GID: nogroup, Groups: []int{club}, Token: NewToken()}
	server, addr, err := startIn(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	proc := fmt.Sprintf("/proc/%d/", server.PID())
	if got, err := os.Readlink(proc + "root"); err != nil || got != folder {
		t.Errorf("its root directory is %s, %v; want %s", got, err, folder)
	}
	tasks, err := filepath.Glob(proc + "task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatal(err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that ended
		}
		for _, want := range []string{
			"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65533\t65533\t65533\t65533\n", "Groups:\t12345 \n",
			"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
		} {
			if !bytes.Contains(status, []byte(want)) {
				t.Errorf("%s has no line %q", task, want)
			}
		}
	}
	token, _ := config.Token.MarshalText()
	for _, file := range []string{"cmdline", "environ"} {
		if text, err := os.ReadFile(proc + file); err != nil || bytes.Contains(text, token) {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}

	conn, err := Dial(t.Context(), mustAddr(t, addr.String()), config.Token)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.hello(MaxMessage)
	f := c.walk(root)
	must[*ninep.Rlcreate](c, &ninep.Tlcreate{FID: f, Name: "new", Flags: ninep.OpenReadWrite, Mode: 0o666, GID: 99})
	c.write(f, 0, "text")
	must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: f, Valid: ninep.SetMode, Mode: 0o640})
	st, err := os.Stat(filepath.Join(folder, "new"))
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != nobody || sys.Gid != nogroup || st.Mode() != 0o640 {
		t.Errorf("the new file is %d:%d, %v", sys.Uid, sys.Gid, st.Mode())
	}
	must[*ninep.Rmkdir](c, &ninep.Tmkdir{DirFID: c.walk(root, "club"), Name: "member", Mode: 0o755})
	must[*ninep.Rlink](c, &ninep.Tlink{DirFID: root, FID: f, Name: "hard"})
	must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: root, Name: "new"})
	must[*ninep.Runlinkat](c, &ninep.Tunlinkat{DirFID: root, Name: "hard"})
	must[*ninep.Rsetattr](c, &ninep.Tsetattr{FID: f, Valid: ninep.SetSize, Size: 1})
	if got := c.read1(f, 0, 10); got != "t" {
		t.Errorf("an unlinked file holds %q", got)
	}
	c.fails(unix.EACCES, &ninep.Tlopen{FID: c.walk(root, "roots")})
	c.fails(unix.EPERM, &ninep.Tsetattr{FID: c.walk(root, "roots"), Valid: ninep.SetMode, Mode: 0o666})
	c.fails(unix.EPERM, &ninep.Tsetattr{FID: f, Valid: ninep.SetUID, UID: 0})

	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	select {
	case <-server.Done():
	default:
		t.Error("closed, and not done")
	}
	if _, err := c.call(&ninep.Tgetattr{FID: root}); err == nil {
		t.Error("the connection outlives the server")
	}
}

func TestStartErrors(t *testing.T) {
	private := reachableTemp(t)
	inside := filepath.Join(private, "inside")
	if err := os.Mkdir(inside, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(private, "file")
	write(t, file, "")
	for name, test := range map[string]struct {
		config Config
		want   string
	}{
		"relative":            {Config{Folder: "."}, "absolute"},
		"missing":             {Config{Folder: "/there/is/none"}, "no such file"},
		"a file":              {Config{Folder: file}, "not a directory"},
		"not for the user":    {Config{Folder: private, UID: nobody, GID: nogroup}, "permission denied"},
		"no way for the user": {Config{Folder: inside, UID: nobody, GID: nogroup}, "permission denied"},
		"user -1":             {Config{Folder: private, UID: -1}, "incomplete"},
	} {
		server, _, err := startIn(t.Context(), test.config)
		if err == nil {
			server.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	listener, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	good := Config{Folder: private}
	for name, test := range map[string]struct {
		run  Command
		want string
	}{
		"no listener": {Command{Args: []string{"share"}}, "listener"},
		"no program":  {Command{Path: "/there/is/none"}, "no such file"},
		"another":     {Command{Path: "/bin/echo", Args: []string{"hello"}}, "hello"},
		"silent":      {Command{Path: "/bin/true"}, "before it was ready"},
	} {
		server, err := Start(t.Context(), good, listener, test.run)
		if err == nil {
			server.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, good, listener, Command{Path: "/bin/sleep", Args: []string{"60"}}); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("a child that says nothing: %v", err)
	}
}

func TestKilledParentTakesTheServerAlong(t *testing.T) {
	parent := exec.Command(os.Args[0], "parent", reachableTemp(t))
	parent.Stderr = os.Stderr
	output, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	for range 500 {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(status, []byte(") Z ")) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the server is still there")
}
