package slice

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// elsewhere stands for the other host that has a slice, and the way from there.
type elsewhere struct {
	origin *Slice
	here   *Slice
	before func(ctx context.Context) error // called by each bring

	mu    sync.Mutex
	asked []gap // without their slice, in order
}

func (e *elsewhere) bring(ctx context.Context, first, n int64) error {
	e.mu.Lock()
	e.asked = append(e.asked, gap{first: first, n: n})
	e.mu.Unlock()
	if e.before != nil {
		if err := e.before(ctx); err != nil {
			return err
		}
	}
	p := make([]byte, n*BlockSize)
	if err := e.origin.ReadBlocks(p, first); err != nil {
		return err
	}
	return e.here.Arrive(p, first)
}

// requests returns what bring was asked for since it was called last, sorted.
func (e *elsewhere) requests() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	slices.SortFunc(e.asked, func(a, b gap) int { return int(a.first - b.first) })
	var said []string
	for _, g := range e.asked {
		said = append(said, fmt.Sprintf("%d+%d", g.first, g.n))
	}
	e.asked = nil
	return strings.Join(said, " ")
}

// far opens a slice of "another host", whose map makes the way here.
func far(t testing.TB, origin *Slice) (*Slice, *elsewhere) {
	t.Helper()
	packed, err := origin.Map().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var m Map
	if err := m.UnmarshalBinary(packed); err != nil {
		t.Fatal(err)
	}
	e := &elsewhere{origin: origin}
	if e.here, err = Far(filepath.Join(t.TempDir(), "far"), m, e.bring); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.here.Close() })
	return e.here, e
}

// stuck makes bring wait until the test lets it go on, or its context ends.
func (e *elsewhere) stuck() (entered, free chan struct{}) {
	entered, free = make(chan struct{}, 100), make(chan struct{})
	e.before = func(ctx context.Context) error {
		entered <- struct{}{}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return entered, free
}

func within(t *testing.T, what string, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

func async(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// all has every block of a slice come.
func (e *elsewhere) all(t testing.TB) {
	t.Helper()
	for b := range e.here.Awaits(0, e.here.Blocks()) {
		if err := e.bring(t.Context(), b, 1); err != nil {
			t.Fatal(err)
		}
	}
	e.requests()
}
