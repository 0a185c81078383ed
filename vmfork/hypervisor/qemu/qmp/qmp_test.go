package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// pair is a client and the QEMU side of its connection.
func pair(t *testing.T, script func(in *bufio.Scanner, out net.Conn)) *Client {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
	mine, theirs := conn(fds[0]), conn(fds[1])
	go func() {
		defer theirs.Close()
		fmt.Fprintln(theirs, greeting)
		in := bufio.NewScanner(theirs)
		in.Scan() // qmp_capabilities
		fmt.Fprintln(theirs, `{"return": {}}`)
		script(in, theirs)
	}()
	c, err := New(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCommandErrorAndEvent(t *testing.T) {
	c := pair(t, func(in *bufio.Scanner, out net.Conn) {
		in.Scan()
		fmt.Fprintln(out, `{"event": "RESUME", "timestamp": {}}`)
		fmt.Fprintln(out, `{"return": {"status": "running"}}`)
		in.Scan()
		fmt.Fprintln(out, `{"error": {"class": "GenericError", "desc": "no such thing"}}`)
	})
	if c.Version != "7.2.22" {
		t.Errorf("version %q", c.Version)
	}
	resume := c.Event("RESUME")
	var r struct{ Status string }
	if err := c.Do(t.Context(), "query-status", nil, &r); err != nil || r.Status != "running" {
		t.Fatalf("%v %q", err, r.Status)
	}
	select {
	case <-resume:
	default:
		t.Error("the event before the answer was missed")
	}
	var e *Error
	if err := c.Do(t.Context(), "nothing", nil, nil); !errors.As(err, &e) || e.Desc != "no such thing" {
		t.Fatalf("got %v", err)
	}
}

func TestDeathOfQEMUEndsEveryWait(t *testing.T) {
	c := pair(t, func(in *bufio.Scanner, out net.Conn) { in.Scan() })
	if err := c.Do(t.Context(), "cont", nil, nil); err == nil || !strings.Contains(err.Error(), "wait for cont") {
		t.Fatalf("got %v", err)
	}
	<-c.Closed()
}

func TestDeadlineNamesTheCommand(t *testing.T) {
	c := pair(t, func(in *bufio.Scanner, out net.Conn) {
		in.Scan()
		in.Scan()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, "cont", nil, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cont") {
		t.Fatalf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{greeting, `{"return": {}}`, `{"error": {"class": "a", "desc": "b"}}`, `{"event": "STOP"}`, `{}`, `[`, `{"QMP": null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parse(line)
		if err == nil && m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Fatalf("%q was taken for a message", line)
		}
	})
}
