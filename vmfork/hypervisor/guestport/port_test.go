package guestport

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTerminal(t *testing.T) {
	const line = "console=hvc0 quiet mpirun-sf.port=mpirun-sf.control:hvc1 mpirun-sf.port=mpirun-sf.data:hvc2 panic=-1\n"
	for port, want := range map[string]string{"mpirun-sf.control": "/dev/hvc1", "mpirun-sf.data": "/dev/hvc2", "mpirun-sf": "", "": ""} {
		if got := terminal(line, port); got != want {
			t.Errorf("port %q is %q, want %q", port, got, want)
		}
	}
	if got := terminal("mpirun-sf.port=a:../../etc/passwd", "a"); got != "/dev/passwd" {
		t.Errorf("a port outside of /dev is %q", got)
	}
}

// Through a terminal bytes pass as they are, and through a file they do anyway.
func TestOpen(t *testing.T) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	// The host does not hear the first time that it is opened.
	deaf := make([]byte, 1)
	greeted := make(chan error, 1)
	go func() {
		if _, err := unix.Read(master, deaf); err != nil {
			greeted <- err
			return
		}
		greeted <- answer(func(b []byte) (int, error) { return unix.Read(master, b) }, func(b []byte) (int, error) { return unix.Write(master, b) })
	}()
	fd, err := open(filepath.Join("/dev/pts", strconv.Itoa(n)))
	if err := <-greeted; err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	bytes := "\x00\x03\x04\n\r\x7f\x13\x11\xff"
	if _, err := unix.Write(master, []byte(bytes)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if n, err := unix.Read(fd, got); err != nil || string(got[:n]) != bytes {
		t.Errorf("read is %q (%v), want %q", got[:n], err, bytes)
	}
	if _, err := unix.Write(fd, []byte(bytes)); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(master, got); err != nil || string(got[:n]) != bytes {
		t.Errorf("written is %q (%v), want %q", got[:n], err, bytes)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if fd, err = open(path); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if _, err := open(""); err == nil {
		t.Error("no port was opened")
	}
}

// answer is a host's part of a greeting.
func answer(read, write func([]byte) (int, error)) error {
	for b := make([]byte, 1); ; {
		_, err := read(b)
		if errors.Is(err, unix.EIO) { // nobody has the terminal open, but somebody will again
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		if b[0] == Ready {
			return nil
		}
		if _, err := write(b); err != nil {
			return err
		}
	}
}
