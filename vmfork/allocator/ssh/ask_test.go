package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asks is the environment variable that makes this test binary ask at its
// terminal.
const asks = "MPIRUN_SF_TEST_ASKS"

func TestMain(m *testing.M) {
	if limit, err := time.ParseDuration(os.Getenv(asks)); err == nil {
		os.Exit(askTwice(limit))
	}
	if home := os.Getenv(launches); home != "" {
		os.Exit(launchAndWait(home, os.Args[1], os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// askTwice asks a question, and then for a secret that has to come in time.
func askTwice(limit time.Duration) int {
	ask := Terminal()
	if ask == nil {
		return 10
	}
	answer, err := ask(context.Background(), "Yes? ", false)
	if err != nil {
		fmt.Println(err)
		return 11
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	secret, err := ask(ctx, "Secret? ", true)
	if errors.Is(err, context.DeadlineExceeded) {
		return 12
	}
	fmt.Printf("got %q and %q, %v\n", answer, secret, err)
	return 0
}

// terminal opens a pair of pseudo terminals.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	raw, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	number := 0
	raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

func TestTerminal(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(limit string, secret string) (shown, printed string, status int) {
		ours, theirs := terminal(t)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), asks+"="+limit)
		cmd.Stdin = theirs
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ours.SetReadDeadline(time.Now().Add(patience))
		var seen bytes.Buffer
		until := func(what string) {
			buf := make([]byte, 1)
			for !strings.HasSuffix(seen.String(), what) {
				if _, err := ours.Read(buf); err != nil {
					t.Fatalf("wait for %q after %q: %v (it printed %q)", what, seen.String(), err, out.String())
				}
				seen.Write(buf)
			}
		}
		until("Yes? ")
		io.WriteString(ours, "yes\n")
		until("Secret? ")
		if secret != "" {
			io.WriteString(ours, secret+"\n")
		}
		until("\n")
		cmd.Wait()
		var state *unix.Termios
		raw, _ := theirs.SyscallConn()
		raw.Control(func(fd uintptr) { state, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
		if err != nil || state.Lflag&unix.ECHO == 0 {
			t.Errorf("the terminal shows no more what is typed (%v)", err)
		}
		return seen.String(), out.String(), cmd.ProcessState.ExitCode()
	}
	shown, printed, status := run("10m", "open sesame")
	if status != 0 || printed != "got \"yes\" and \"open sesame\", <nil>\n" {
		t.Errorf("status %d, %q", status, printed)
	}
	if strings.Contains(shown, "sesame") || !strings.Contains(shown, "yes") {
		t.Errorf("the terminal showed %q", shown)
	}
	if _, printed, status = run("100ms", ""); status != 12 {
		t.Errorf("where nobody answers: status %d, %q", status, printed)
	}
	// Without a terminal nobody is asked.
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asks+"=1m")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Run()
	if status := cmd.ProcessState.ExitCode(); status != 10 {
		t.Errorf("without a terminal: status %d", status)
	}
}

// patience is limit, which a parameter hides.
const patience = limit
