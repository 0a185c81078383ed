package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A terminal is one that somebody sits at: what they type, and what they see.
type terminal struct {
	*running
	keys *os.File
}

// atTerminal starts a command at a terminal of 30 lines and 100 columns.
func atTerminal(t *testing.T, c command) terminal {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	fd := int(keys.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	c.stdin, c.stdout, c.attr = tty, tty, &syscall.SysProcAttr{Setsid: true, Setctty: true}
	c.env = append(c.env, "TERM=vt100")
	x := terminal{keys: keys}
	x.resize(t, 30, 100)
	x.running = c.start(t)
	go io.Copy(x.stdout, keys)
	return x
}

func (x terminal) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(x.keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

// types types, and waits until the screen shows that, from here on.
func (x terminal) types(text, shows string) {
	x.t.Helper()
	before := len(x.stdout.String())
	if _, err := x.keys.WriteString(text); err != nil {
		x.t.Fatal(err)
	}
	x.await(fmt.Sprintf("%q after %q", shows, text), func() bool { return strings.Contains(x.stdout.String()[before:], shows) })
}

// TestVMTerminal: a login shell in a machine, as at any other terminal.
func TestVMTerminal(t *testing.T) {
	nothingIsLeft(t)
	machine.boot(t) // for its image
	c := newVM("e2e-terminal", []string{"-q"})
	c.wrap = []string{"sh", "-c", `"$@"; status=$?; stty -a; read more; exit $status`, "sh"}
	x := atTerminal(t, c)
	x.types("", "parent:")
	x.types("tty; stty size\n", "/dev/pts/")
	x.types("stty size; echo $TERM\n", "30 100\r\nvt100\r\n")
	x.resize(t, 41, 97)
	x.types("sleep 0.3; stty size\n", "41 97\r\n")
	// To the program that runs there, and not to the launcher. It has said that it runs: before, the shell would forget
	// what was typed.
	x.types("sh -c 'echo as''leep; exec sleep 1000'\n", "asleep\r\n")
	x.types("\x03", "parent:")
	x.types("echo status $?\n", "status 130\r\n")
	// A job is at that terminal, too.
	x.types("mpirun-sf -q -np 2 sh -c 'echo u''p; sleep 1000'\n", "up\r\nup\r\n")
	x.types("\x03", "parent:") // before, what is typed goes to rank 0
	x.types("echo job: $?\n", "job: 130\r\n")
	// The first process's end takes from a terminal what has not been read.
	x.types("exit 7\n", "extproc\r\n")
	x.keys.WriteString("\n")
	r := x.wait()
	if r.status != 7 {
		t.Errorf("status %d after exit 7:\n%s", r.status, x.stdout)
	}
	if screen := x.stdout.String(); !strings.Contains(screen, " icanon ") || !strings.Contains(screen, " echo ") {
		t.Errorf("the terminal is not as it was before:\n%s", screen)
	}
}
