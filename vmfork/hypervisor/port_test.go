package hypervisor

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPort(t *testing.T) {
	host, port, err := NewPort("name")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer port.File.Close()
	if port.Name != "name" {
		t.Errorf("the port is called %q", port.Name)
	}
	if _, err := io.WriteString(host, "orders"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(host, "more"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 7)
	if _, err := io.ReadFull(port.File, buf); err != nil || string(buf) != "ordersm" {
		t.Errorf("the machine read %q (%v)", buf, err)
	}
	if _, err := port.File.WriteString("answer"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(host, buf[:6]); err != nil || string(buf[:6]) != "answer" {
		t.Errorf("the host read %q (%v)", buf[:6], err)
	}
	// The host's end can be interrupted, as every wait of the host's must.
	host.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := host.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read with a deadline ended with %v", err)
	}
	port.File.Close()
	host.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := host.Read(buf); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the machine's end is closed, and a read ended with %v", err)
	}
}

// A child inherits nothing of a port that it is not given.
func TestPortsAreNotInherited(t *testing.T) {
	host, port, err := NewPort("x")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer port.File.Close()
	conn, err := host.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	check := func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x (%v)", flags, err)
		}
	}
	if err := conn.Control(check); err != nil {
		t.Fatal(err)
	}
	check(port.File.Fd())
}

func TestLacks(t *testing.T) {
	err := error(Lacksf("no %s here", "KVM"))
	if err.Error() != "no KVM here" || !errors.Is(err, ErrNotSupported) || errors.Is(err, io.EOF) {
		t.Errorf("it is %v", err)
	}
}
