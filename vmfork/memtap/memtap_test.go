package memtap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

const page = slice.BlockSize

// mounted mounts a tap for the time of a test, which fails where there can be none.
func mounted(t testing.TB, opts Options) *Tap {
	t.Helper()
	if err := Probe(); err != nil {
		t.Fatalf("this test mounts FUSE: %v", err)
	}
	tap, err := Mount(context.Background(), t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := tap.Unmount(ctx); err != nil {
			t.Error(err)
		}
	})
	return tap
}

// sealed makes a slice of the given blocks: 0 is a hole, anything else a block of that byte.
func sealed(t testing.TB, kind slice.Kind, dataPath, pattern string) *slice.Slice {
	t.Helper()
	content := make([]byte, 0, len(pattern)*page)
	for _, c := range []byte(pattern) {
		if c == '0' {
			c = 0
		}
		content = append(content, bytes.Repeat([]byte{c}, page)...)
	}
	if err := os.WriteFile(dataPath, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, err := slice.Seal(context.Background(), dataPath, dataPath+".map", kind, slice.SealOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func stack(t testing.TB, layers ...*slice.Slice) *slice.Image {
	t.Helper()
	im, err := slice.NewImage(layers...)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// memory serves a memory image of the given blocks.
func memory(t testing.TB, tap *Tap, name, pattern string) (path string, s *slice.Slice) {
	t.Helper()
	s = sealed(t, slice.Memory, filepath.Join(t.TempDir(), name), pattern)
	path, err := tap.AddMemory(name, stack(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return path, s
}

// disk serves a clone's disk on top of base.
func disk(t testing.TB, tap *Tap, name string, base *slice.Slice) (path string, top *slice.Slice) {
	t.Helper()
	top, err := slice.Create(filepath.Join(t.TempDir(), name), base.Size(), slice.Disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { top.Close() })
	path, err = tap.AddDisk(name, stack(t, top, base))
	if err != nil {
		t.Fatal(err)
	}
	return path, top
}

func TestClonesReadTheParentAndWriteForThemselves(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", "ab0d")
	one, two := opened(t, path), opened(t, path)
	for i, c := range []string{"a", "b", "\x00", "d"} {
		one.want(strings.TrimSpace(c), "get %d", i*page+5)
	}
	one.want("ok", "put %d 88", page+5)
	one.want("X", "get %d", page+5)
	two.want("b", "get %d", page+5)
	one.want("b 1", "read %d 1", page+5)
	if c := tap.Counters("memory"); c.RefusedWrites != 0 || c.Errors != 0 {
		t.Errorf("counters %+v", c)
	}
}

// TestCoLocatedClonesShareThePageCache: what one clone has fetched, the next on the same host does not.
func TestCoLocatedClonesShareThePageCache(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", strings.Repeat("a", 1024))
	opened(t, path).do("walk 0 %d 1024", page)
	first := tap.Counters("memory")
	opened(t, path).do("walk 0 %d 1024", page)
	second := tap.Counters("memory")
	if first.BytesFetched != 1024*page || first.Reads == 0 {
		t.Errorf("the first clone fetched %d bytes in %d reads", first.BytesFetched, first.Reads)
	}
	if more := second.Reads - first.Reads; more > first.Reads/10 {
		t.Errorf("the second clone made %d reads, the first %d", more, first.Reads)
	}
}

func TestWindowBoundsWhatAFaultFetches(t *testing.T) {
	const touches, apart = 32, 1 << 20
	tap := mounted(t, Options{Window: 4 << 10})
	for _, window := range []int{4 << 10, 32 << 10, 128 << 10} {
		if err := tap.SetWindow(window); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("memory-%d", window)
		path, _ := memory(t, tap, name, strings.Repeat("a", touches*apart/page))
		opened(t, path).do("walk %d %d %d", apart/2, apart, touches)
		c := tap.Counters(name)
		t.Logf("window %d: %d reads, %d bytes for %d faults; p50 %v, p99 %v", window, c.Reads, c.BytesFetched, touches,
			c.Latency.Percentile(50), c.Latency.Percentile(99))
		if c.BytesFetched != int64(touches*window) {
			t.Errorf("window %d: %d faults fetched %d bytes, want %d", window, touches, c.BytesFetched, touches*window)
		}
		if c.Latency.Count() != c.Reads {
			t.Errorf("%d latencies of %d reads", c.Latency.Count(), c.Reads)
		}
	}
	for _, bad := range []int{-1, 0, 100, 4097, MaxWindow * 2} {
		if err := tap.SetWindow(bad); err == nil {
			t.Errorf("a window of %d was set", bad)
		}
	}
	if tap.Window() != 128<<10 {
		t.Errorf("window %d", tap.Window())
	}
}

// TestWindowHoldsFromTheFirstFault: also where sysfs is not used, by what Mount negotiates.
func TestWindowHoldsFromTheFirstFault(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", strings.Repeat("a", 256))
	opened(t, path).do("walk %d 1 1", 100*page)
	if c := tap.Counters("memory"); c.BytesFetched != DefaultWindow {
		t.Errorf("one fault fetched %d bytes", c.BytesFetched)
	}
}

// TestZerosAreAnsweredWithoutASlice closes the slice, so that any read of it would fail.
func TestZerosAreAnsweredWithoutASlice(t *testing.T) {
	tap := mounted(t, Options{})
	path, s := memory(t, tap, "memory", strings.Repeat("0", 64)+"a")
	s.Close()
	c := opened(t, path)
	c.do("walk 0 %d 48", page)
	n := tap.Counters("memory")
	if n.ZeroBlocks < 48 || n.BytesFetched != 0 || n.Errors != 0 || n.BytesServed < 48*page {
		t.Errorf("counters %+v", n)
	}
	c.want("fault", "get %d", 64*page)
}

func TestDamagedBlockKillsTheGuestWithAReason(t *testing.T) {
	tap := mounted(t, Options{})
	path, s := memory(t, tap, "memory", "abcdefgh")
	f, err := os.OpenFile(s.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("damage"), 3*page+100)
	f.Close()
	c := opened(t, path)
	c.want("fault", "get %d", 3*page)
	c.want("c", "get %d", 2*page) // in the same window
	c.want("e", "get %d", 4*page)
	c.want("EIO", "read %d 10", 3*page)
	err = tap.Err("memory")
	var block *slice.BlockError
	if !errors.Is(err, slice.ErrCorrupt) || !errors.As(err, &block) || block.Block != 3 || !strings.Contains(err.Error(), s.Path()) {
		t.Errorf("the reason is %v", err)
	}
	if tap.Counters("memory").Errors == 0 {
		t.Error("no error counted")
	}
	if said := c.do("die %d", 3*page); !strings.Contains(said, "SIGBUS") {
		t.Errorf("a child without a handler: %s", said)
	}
}

// TestHypervisorsManners is what QEMU does with its memory file beyond mapping it.
func TestHypervisorsManners(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", "abcd")
	c := opened(t, path)
	c.want("ok", "truncate %d", 4*page)
	c.want("EINVAL", "truncate %d", 3*page)
	c.want("EINVAL", "truncate %d", 5*page)
	c.want("b", "get %d", page)
	c.want("ok", "put %d 89", 2*page)
	c.want("ok", "punch 0 %d", 4*page)
	c.want("Y", "get %d", 2*page) // its own page stays
	c.want("b", "get %d", page)
	c.want("EROFS", "write 0 4096 65")
	for deadline := time.Now().Add(5 * time.Second); c.do("get 0") != "a"; {
		if time.Now().After(deadline) {
			t.Fatal("a refused write stays in the page that all clones share")
		}
	}
	c.want("ok", "sync")
	if n := tap.Counters("memory"); n.Punches != 1 || n.RefusedWrites != 1 || n.Writes != 0 || tap.Err("memory") != nil {
		t.Errorf("counters %+v, %v", n, tap.Err("memory"))
	}
	out := run(t, "sh", "-c", "cd '"+tap.Dir()+"' && stat -c '%a %s %F' memory && ls && stat -f -c '%S %b' . && stat -c '%a' . && ! cat none 2>&1 && ! touch new 2>&1")
	for _, want := range []string{"600 16384 regular file\nmemory\n4096 4\n700\n", "No such file", "touch:"} {
		if !strings.Contains(out, want) {
			t.Errorf("the mount looks like\n%swithout\n%s", out, want)
		}
	}
}

func TestRemoveAndAddAgain(t *testing.T) {
	tap := mounted(t, Options{})
	path, _ := memory(t, tap, "memory", "aa")
	old := opened(t, path)
	old.want("a", "get 0")
	last, err := tap.Remove("memory")
	if err != nil || last.Reads == 0 {
		t.Fatalf("removed: %+v, %v", last, err)
	}
	if _, err := tap.Remove("memory"); err == nil {
		t.Error("removed twice")
	}
	startChild(t).want("ENOENT", "open %s", path)
	memory(t, tap, "memory", "zzz")
	opened(t, path).want("z", "get %d", 2*page)
	old.want("a", "get %d", page)
	old.want("a 10", "read 0 10")
	old.stop()
	for name, add := range map[string]func() error{
		"taken": func() error {
			_, err := tap.AddMemory("memory", stack(t, sealed(t, slice.Memory, filepath.Join(t.TempDir(), "x"), "a")))
			return err
		},
		"a disk": func() error {
			_, err := tap.AddMemory("m", stack(t, sealed(t, slice.Disk, filepath.Join(t.TempDir(), "x"), "a")))
			return err
		},
		"a memory": func() error {
			_, err := tap.AddDisk("m", stack(t, sealed(t, slice.Memory, filepath.Join(t.TempDir(), "x"), "a")))
			return err
		},
		"writable memory": func() error {
			s, err := slice.Create(filepath.Join(t.TempDir(), "x"), page, slice.Memory)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, err = tap.AddMemory("m", stack(t, s))
			return err
		},
		"a path": func() error {
			_, err := tap.AddDisk("../m", stack(t, sealed(t, slice.Disk, filepath.Join(t.TempDir(), "x"), "a")))
			return err
		},
	} {
		if add() == nil {
			t.Errorf("%s was added", name)
		}
	}
	if c, err := tap.Counters("none"), tap.Err("none"); c != (Counters{}) || err != nil {
		t.Errorf("a name that is not there: %+v, %v", c, err)
	}
}

func TestDescriptorIsNotInherited(t *testing.T) {
	mounted(t, Options{})
	startChild(t).want("0", "fds")
}

func TestMountRefuses(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	if tap, err := Mount(ctx, filepath.Join(t.TempDir(), "none"), Options{}); err == nil {
		t.Error("mounted on nothing", tap.Unmount(ctx))
	}
	if tap, err := Mount(ctx, t.TempDir(), Options{Window: 5}); err == nil {
		t.Error("mounted with a window of 5 bytes", tap.Unmount(ctx))
	}
	cancel()
	if tap, err := Mount(ctx, t.TempDir(), Options{}); !errors.Is(err, context.Canceled) {
		t.Error("mounted after all", tap, err)
	}
}
