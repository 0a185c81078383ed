package rig

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newCache(t *testing.T) *Cache { return &Cache{Dir: t.TempDir(), Log: t.Logf} }

// A part is made once, whoever asks; another recipe is another part; what failed or was interrupted is not there.
func TestPart(t *testing.T) {
	c := newCache(t)
	var made atomic.Int32
	fill := func(dir string) error {
		made.Add(1)
		return os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644)
	}
	half := filepath.Join(c.Dir, "tmp-thing-123")
	if err := os.Mkdir(half, 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := c.part(t.Context(), "thing", []string{"a", "b"}, fill)
			if err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "content" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("it was made %d times", n)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("what a killed run left is still there: %v", err)
	}
	if _, err := c.part(t.Context(), "thing", []string{"ab"}, fill); err != nil || made.Load() != 2 {
		t.Errorf("of another recipe: %v, made %d times", err, made.Load())
	}
	failure := errors.New("no such thing")
	if _, err := c.part(t.Context(), "thing", []string{"c"}, func(string) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("a part that failed: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "tmp-*")); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	if _, err := c.part(t.Context(), "thing", []string{"c"}, fill); err != nil || made.Load() != 3 {
		t.Errorf("made again after a failure: %v, made %d times", err, made.Load())
	}
}

// Parts that no run has used for long go when one of their name is made, and no others.
func TestForget(t *testing.T) {
	c := newCache(t)
	fill := func(string) error { return nil }
	old, err := c.part(t.Context(), "thing", []string{"old"}, fill)
	if err != nil {
		t.Fatal(err)
	}
	used, err := c.part(t.Context(), "thing", []string{"used"}, fill)
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-2 * unused)
	for _, d := range []string{old, used} {
		if err := os.Chtimes(d, past, past); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.part(t.Context(), "thing", []string{"used"}, fill); err != nil {
		t.Fatal(err)
	}
	if _, err := c.part(t.Context(), "thing", []string{"new"}, fill); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("the old one is still there: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("the one in use is gone: %v", err)
	}
}

// Whoever waits for another run's lock, waits no longer than its context.
func TestLockIsWaitedFor(t *testing.T) {
	c := newCache(t)
	unlock, err := c.lock(t.Context(), "thing")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.part(ctx, "thing", nil, nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the rig's thing") {
		t.Errorf("with the lock taken: %v", err)
	}
	unlock()
	if unlock, err = c.lock(t.Context(), "thing"); err != nil {
		t.Fatal(err)
	}
	unlock()
}

// A run's folder goes when it ends; that of a run which was killed, with the next run.
func TestWorkDir(t *testing.T) {
	c := newCache(t)
	mine, remove, err := c.WorkDir()
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir != filepath.Dir(filepath.Dir(mine)) {
		t.Errorf("it is %s", mine)
	}
	killed := filepath.Join(filepath.Dir(mine), "killed")
	if err := os.Mkdir(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	other, removeOther, err := c.WorkDir()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("a killed run's folder is still there: %v", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("the folder of a run that lives is gone: %v", err)
	}
	remove()
	removeOther()
	for _, d := range []string{mine, other} {
		if _, err := os.Stat(d); !os.IsNotExist(err) {
			t.Errorf("a run's folder is still there after its end: %v", err)
		}
	}
}
