package guestport

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTerminal makes a terminal, and a link to it at path. What comes back is the host's side: closed, it takes the terminal
// away.
func newTerminal(t *testing.T, path string) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	if err := os.Symlink(fmt.Sprintf("/dev/pts/%d", n), path); err != nil {
		t.Fatal(err)
	}
	return master
}

// A port goes on over another terminal when the first is taken away, also under a read that waits.
func TestTakenAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	host := newTerminal(t, path)
	greeted := make(chan error, 1)
	go func() { greeted <- answer(host.Read, host.Write) }()
	port, err := Use(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-greeted; err != nil {
		t.Fatal(err)
	}
	heard := make(chan string)
	go func() {
		defer close(heard)
		for b := make([]byte, 16); ; {
			n, err := port.Read(b)
			if err != nil {
				heard <- err.Error()
				return
			}
			heard <- string(b[:n])
		}
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Fatalf("heard is %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("waited 20 s to hear %q", want)
		}
	}
	both := func(host *os.File, word string) {
		t.Helper()
		say(t, port, word)
		hear(t, host, word)
		say(t, host, word)
		next(word)
	}
	both(host, "first")
	other := newTerminal(t, path) // before the other goes, or its number would come again
	host.Close()
	if err := answer(other.Read, other.Write); err != nil {
		t.Fatal(err)
	}
	both(other, "second\x04\n")
	both(other, "third")
}

// What is no terminal is the file.
func TestUseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	port, err := Use(path)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if _, ok := port.(*os.File); !ok {
		t.Errorf("it is a %T", port)
	}
	if _, err := port.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("at its end: %v", err)
	}
	if _, err := Use(path + "x"); err == nil {
		t.Error("what is not there can be used")
	}
}
