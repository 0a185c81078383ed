package allocatortest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

func (c *conformance) echo(t *testing.T) {
	p := c.start(t, "echo")
	data := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(data)
	go p.Write(data)
	got := make([]byte, len(data))
	within(t, "the echo", func() {
		if _, err := io.ReadFull(p, got); err != nil {
			t.Errorf("read: %v", err)
		}
	})
	if !bytes.Equal(got, data) {
		t.Error("what came back is not what was sent")
	}
	within(t, "the end", func() { p.Close() })
	if err := wait(t, p); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func (c *conformance) user(t *testing.T) {
	if got := strings.TrimSpace(string(readAll(t, c.start(t, "user")))); got != "0" {
		t.Errorf("it runs as user %q", got)
	}
}

func (c *conformance) arguments(t *testing.T) {
	args := []string{"", "two words", `"`, `'`, `$HOME`, "`id`", `\`, `\n`, "a\nb", "*", "~", ";", "&&", "-x", "ü", "%d", "!", "a=b", "#"}
	p := c.start(t, append([]string{"args"}, args...)...)
	got := strings.Split(strings.TrimSuffix(string(readAll(t, p)), "\x00"), "\x00")
	if !slices.Equal(got, args) {
		t.Errorf("%q arrived as %q", args, got)
	}
}

func (c *conformance) burst(t *testing.T) {
	p := c.start(t, "burst")
	if err := wait(t, p); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if got := readAll(t, p); len(got) != 50000 {
		t.Errorf("read %d bytes of 50000 after its end", len(got))
	}
}

func (c *conformance) close(t *testing.T) {
	p := c.start(t, "pid")
	n := pid(t, p)
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() { p.Close() })
	}
	within(t, "the end", closers.Wait)
	if err := wait(t, p); err != nil {
		t.Errorf("it ended with %v", err)
	}
	gone(t, n)
	if err := p.Close(); err != nil {
		t.Errorf("closing it again: %v", err)
	}
	if err := wait(t, p); err != nil {
		t.Errorf("waiting again: %v", err)
	}
	if _, err := p.Write([]byte("more")); err == nil {
		t.Error("it can be written to after its end")
	}
}

func (c *conformance) deaf(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the time after which a process is killed (-short)")
	}
	p := c.start(t, "deaf")
	n := pid(t, p)
	within(t, "the end", func() { p.Close() })
	gone(t, n)
	if err := wait(t, p); err == nil {
		t.Error("it was killed, and the error is nil")
	} else {
		ofHost(t, err, c.h.Name)
	}
}

func (c *conformance) blocked(t *testing.T) {
	p := c.start(t, "pid")
	pid(t, p)
	var users sync.WaitGroup
	users.Go(func() { // cat writes, nobody reads: this ends by the closing alone
		for buf := make([]byte, 1<<20); ; {
			if _, err := p.Write(buf); err != nil {
				return
			}
		}
	})
	time.Sleep(50 * time.Millisecond) // more or less blocked, either is to be right
	within(t, "the end", func() { p.Close() })
	within(t, "a write that blocked", users.Wait)
	p = c.start(t, "pid")
	pid(t, p)
	users.Go(func() {
		if n, err := p.Read(make([]byte, 1)); err == nil {
			t.Errorf("read %d bytes where nothing was sent", n)
		}
	})
	within(t, "the end", func() { p.Close() })
	within(t, "a read that blocked", users.Wait)
}

func (c *conformance) status(t *testing.T) {
	p := c.start(t, "fail", "3")
	err := wait(t, p)
	ofHost(t, err, c.h.Name)
	var exit *allocator.ExitError
	if !errors.As(err, &exit) || exit.Status != 3 || exit.Signal != "" {
		t.Fatalf("%v (%T) is not status 3", err, err)
	}
	if !strings.Contains(exit.Stderr, "first\nthe reason") || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("%v does not say what was on standard error: %q", err, exit.Stderr)
	}
	if got := readAll(t, p); len(got) != 0 {
		t.Errorf("it printed %q", got)
	}
	if err := p.Close(); err != nil {
		t.Errorf("closing what has ended: %v", err)
	}
}

func (c *conformance) killed(t *testing.T) {
	err := wait(t, c.start(t, "killed"))
	ofHost(t, err, c.h.Name)
	var exit *allocator.ExitError
	if !errors.As(err, &exit) || exit.Signal != "KILL" && exit.Status != 128+9 {
		t.Errorf("%v is not the end by SIGKILL", err)
	}
}
