package step

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator/allocatortest"
)

// here is an allocation of this machine, by commands that carry the stream as a
// manager's would.
func here(words ...string) *Allocation {
	return &Allocation{
		List:    []allocator.Host{{Name: "h1", Slots: 2}, {Name: "h2"}},
		Command: func(allocator.Host) *exec.Cmd { return exec.Command(words[0], words[1:]...) },
	}
}

func TestConforms(t *testing.T) {
	t.Run("words", func(t *testing.T) { allocatortest.Conform(t, here(Shell()...)) })
	t.Run("line", func(t *testing.T) { allocatortest.Conform(t, here("/bin/bash", "-c", ShellLine())) })
}

// TestConformsWhereTheProgramIsNot runs the suite in a mount namespace with
// another /tmp, so that every program has to be sent.
func TestConformsWhereTheProgramIsNot(t *testing.T) {
	elsewhere := t.TempDir()
	script := `mount --bind "$0" /tmp && exec "$@"`
	words := append([]string{"unshare", "--mount", "/bin/sh", "-c", script, elsewhere}, Shell()...)
	if !strings.HasPrefix(elsewhere, "/tmp/") {
		t.Fatalf("this test hides /tmp, and programs would be in %s", elsewhere)
	}
	allocatortest.Conform(t, here(words...))
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("left behind where programs were sent: %v, %v", left, err)
	}
}

// TestInputThatIsNotRead ends no program before its time: that one closes its
// standard input is no end of the stream.
func TestInputThatIsNotRead(t *testing.T) {
	path := script(t, "exec 0<&-; sleep 1; echo done")
	p, err := here(Shell()...).Start(t.Context(), allocator.Host{Name: "h1"}, path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Write([]byte("nobody reads this"))
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// TestGuardOutlivesTheCommand kills what carries the stream, as when the
// launcher's machine dies, and expects the far end to end what hangs.
func TestGuardOutlivesTheCommand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the time after which a program is killed (-short)")
	}
	// In a session of its own, so that killing the command's group is not
	// killing the program.
	in, out := filepath.Join(t.TempDir(), "pid"), ""
	path := script(t, "echo $$ >"+in+"; exec sleep 1000")
	cmd := exec.Command("/bin/sh", "-c", `cat | setsid -w "$@" | cat`, "sh", Shell()[0], Shell()[1], Shell()[2])
	p, err := Start(t.Context(), "h1", cmd, path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); out == ""; time.Sleep(10 * time.Millisecond) {
		b, _ := os.ReadFile(in)
		if out = strings.TrimSpace(string(b)); out == "" && time.Now().After(deadline) {
			t.Fatal("the program did not tell its number in a minute")
		}
	}
	p.(*process).abort(cmd)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if stat, err := os.ReadFile("/proc/" + out + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %s still runs", out)
		}
	}
}

func TestShellThatIsNone(t *testing.T) {
	path := script(t, "true")
	for _, test := range []struct{ name, command, want string }{
		{"ends", "exit 0", "hear from its shell"},
		{"fails", "echo no such node >&2; exit 1", "no such node"},
		{"prints for ever", "yes", "prints much"},
		{"needs a password", "echo sudo: a password is required >&2; exit 1", "NOPASSWD"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := here("/bin/sh", "-c", test.command).Start(t.Context(), allocator.Host{Name: "h1"}, path)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Count(err.Error(), "h1:") != 1 {
				t.Errorf("%v does not say %q, or not once where", err, test.want)
			}
		})
	}
}

func TestStartIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := here("sleep", "1000").Start(ctx, allocator.Host{Name: "h1"}, script(t, "true"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not that the time is over", err)
	}
}

// TestCloseGivesUpStarts closes an allocation while a start waits.
func TestCloseGivesUpStarts(t *testing.T) {
	a := here("sleep", "1000")
	path := script(t, "true")
	ended := make(chan error, 1)
	go func() {
		_, err := a.Start(t.Context(), allocator.Host{Name: "h1"}, path)
		ended <- err
	}()
	time.Sleep(50 * time.Millisecond) // before it, or in it: either is to be right
	a.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Errorf("%v is not that the allocation was closed", err)
	}
}

// TestSudo is with stand-ins for id, which says that this is a user, and for
// sudo, which says how it was called and then does what it is told to.
func TestSudo(t *testing.T) {
	bin := t.TempDir()
	for name, text := range map[string]string{
		"id":   "echo 1000",
		"sudo": `[ "$1 $2" = "-n --" ] || exit 99; shift 2; echo "sudo was here" >&2; exec "$@"`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a := here(append([]string{"env", "PATH=" + bin + ":" + os.Getenv("PATH")}, Shell()...)...)
	p, err := a.Start(t.Context(), allocator.Host{Name: "h1"}, script(t, `cat; echo "$1" >&2; exit 7`), "it's an $argument")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Write([]byte("input"))
		p.Close()
	}()
	err = p.Wait()
	var exit *allocator.ExitError
	if !errors.As(err, &exit) || exit.Status != 7 || !strings.Contains(exit.Stderr, "sudo was here\nit's an $argument") {
		t.Errorf("it ended with %v", err)
	}
}

// script makes a program.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
