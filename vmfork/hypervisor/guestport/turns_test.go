package guestport

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// share shares a port that is a terminal. What comes back with it is the host's side.
func share(t *testing.T, path string) (*Shared, *os.File) {
	t.Helper()
	host := newTerminal(t, path)
	greeted := make(chan error, 1)
	go func() { greeted <- answer(host.Read, host.Write) }()
	s, err := Share(path)
	if err := errors.Join(err, <-greeted); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.port.Close() })
	return s, host
}

func say(t *testing.T, to io.Writer, word string) {
	t.Helper()
	if _, err := io.WriteString(to, word); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, from io.Reader, word string) {
	t.Helper()
	got := make([]byte, len(word))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != word {
		t.Fatalf("heard is %q (%v), want %q", got[:n], err, word)
	}
}

// within waits for what f returns.
func within[T any](t *testing.T, what string, f func() T) T {
	t.Helper()
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case v := <-done:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited 20 s for %s", what)
		panic("unreachable")
	}
}

// A turn's end ends a read that waits, and the next one has the port, and its own bytes alone.
func TestTurns(t *testing.T) {
	s, host := share(t, filepath.Join(t.TempDir(), "port"))
	first := s.Begin()
	say(t, host, "to the first")
	hear(t, first, "to the first")
	waiting := make(chan error, 1)
	go func() {
		_, err := first.Read(make([]byte, 16))
		waiting <- err
	}()
	time.Sleep(10 * time.Millisecond)
	second := s.Begin()
	if err := within(t, "the first turn to end", func() error { return <-waiting }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a read of a turn that is over ended with %v", err)
	}
	if _, err := first.Write([]byte("late")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a write of a turn that is over ended with %v", err)
	}
	say(t, host, "to the second")
	hear(t, second, "to the second")
	say(t, second, "of the second")
	hear(t, host, "of the second")
}

// What is held writes nothing, has read all, and loses nothing when its terminal is taken away.
func TestHold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	s, host := share(t, path)
	turn := s.Begin()
	say(t, host, "abc")
	if err := turn.Hold(3, 20*time.Millisecond); err == nil || !strings.HasSuffix(err.Error(), "waited 20ms for 3 of 3 bytes that the host has sent") {
		t.Errorf("a turn with 3 bytes that nobody reads: %v", err)
	}
	heard := make(chan string)
	go func() {
		defer close(heard)
		for b := make([]byte, 16); ; {
			n, err := turn.Read(b)
			if err != nil {
				return
			}
			heard <- string(b[:n])
		}
	}()
	if got := within(t, "the three", func() string { return <-heard }); got != "abc" {
		t.Errorf("heard is %q", got)
	}
	if err := within(t, "it to be held", func() error { return turn.Hold(3, 10*time.Second) }); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(turn, "after")
		written <- err
	}()
	select {
	case err := <-written:
		t.Errorf("what is held wrote (%v)", err)
	case <-time.After(50 * time.Millisecond):
	}
	next := newTerminal(t, path)
	host.Close()
	if err := answer(next.Read, next.Write); err != nil {
		t.Fatal(err)
	}
	turn.Release()
	hear(t, next, "after")
	if err := <-written; err != nil {
		t.Error(err)
	}
	say(t, next, "here")
	if got := within(t, "what the next host says", func() string { return <-heard }); got != "here" {
		t.Errorf("heard is %q", got)
	}
}

// A turn that ends while it is held frees who waits to write.
func TestHeldToItsEnd(t *testing.T) {
	s, _ := share(t, filepath.Join(t.TempDir(), "port"))
	turn := s.Begin()
	if err := turn.Hold(0, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(turn, "never")
		written <- err
	}()
	time.Sleep(10 * time.Millisecond)
	turn.Close()
	if err := within(t, "the write to end", func() error { return <-written }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("it ended with %v", err)
	}
}
