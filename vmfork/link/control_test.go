package link

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMessagesThatAreNone(t *testing.T) {
	id, friend := identity(t), identity(t)
	l, _ := guarded(t, id)
	l.AllowHost("h2", friend.fp)
	for _, m := range []struct{ what, kind byte }{{0, 0}, {99, 0}, {controlCall, 1}} {
		a, err := Dial(t.Context(), friend, l.Addr().String(), id.fp)
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.AcceptLink()
		if err != nil {
			t.Fatal(err)
		}
		a.send(m.what, newToken(), m.kind) // the answer to which may come before it returns
		<-b.Done()
		if err := b.Err(); !strings.Contains(err.Error(), "host h2 failed: it sent") {
			t.Errorf("%v", err)
		}
		<-a.Done()
		if err := a.Err(); !strings.HasSuffix(err.Error(), "closed the connection") {
			t.Errorf("the dialler: %v", err)
		}
	}
	// An answer to nothing is no harm.
	a := meets(t, l, friend)
	if err := a.send(controlCannot, newToken(), 0); err != nil {
		t.Error(err)
	}
	if err := a.send(controlTell, newToken(), 0); err != nil {
		t.Error(err)
	}
	s, err := a.Open(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// TestNothingIsLeft counts goroutines: everything here has one or more.
func TestNothingIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	id, friend := identity(t), identity(t)
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, id, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Allow(friend.fp)
	for range 10 {
		a, err := Dial(ctx, friend, l.Addr().String(), id.fp)
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.AcceptLink()
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // of which some are accepted, and some closed
			s, err := a.Open(ctx, 1)
			if err != nil {
				t.Fatal(err)
			}
			c, err := b.Dial(ctx, 2)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := b.Accept(); err != nil {
				t.Fatal(err)
			}
			s.Close()
			c.Close()
			if _, err := a.Dial(ctx, 3); err != nil {
				t.Fatal(err)
			}
		}
		b.Close()
		<-a.Done()
	}
	cancel()
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, and %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}
