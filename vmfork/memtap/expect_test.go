package memtap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// expect makes a file of a number of blocks that is to come.
func expect(t testing.TB, tap *Tap, name string, kind slice.Kind, blocks int64) (path string) {
	t.Helper()
	path, err := tap.Expect(name, blocks*page, kind)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// sparse makes a frozen image of holes, and of a block of 'a' at each step.
func sparse(t testing.TB, kind slice.Kind, blocks, step int64) *slice.Image {
	t.Helper()
	s, err := slice.Create(filepath.Join(t.TempDir(), "sparse"), blocks*page, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for b := int64(0); b < blocks; b += step {
		if err := s.WriteBlocks(bytes.Repeat([]byte("a"), page), b); err != nil {
			t.Fatal(err)
		}
	}
	s.Freeze()
	return stack(t, s)
}

// waiting returns when so many requests have come to wait for a file's image.
func waiting(t testing.TB, tap *Tap, name string, n int64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); tap.Counters(name).Waits < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests wait for %s, and %d should", tap.Counters(name).Waits, name, n)
		}
	}
}

func TestExpectedFileIsThereAndItsReadsWait(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	for _, c := range []struct {
		kind           slice.Kind
		command, reply string
		free           string // what need not wait, and its reply
		freeReply      string
	}{
		{slice.Memory, "get 4096", "b", "truncate 12288", "ok"},
		{slice.Memory, "put 4096 88", "ok", "punch 0 4096", "ok"}, // the page is read before it is copied
		{slice.Memory, "read 4096 10", "b 10", "write 0 4096 65", "EROFS"},
		{slice.Disk, "read 4096 10", "b 10", "truncate 4096", "EINVAL"},
		{slice.Disk, "write 4096 512 66", "ok", "sync", "ok"},
		{slice.Disk, "punch 4096 4096", "ok", "sync", "ok"},
	} {
		t.Run(fmt.Sprintf("%v %s", c.kind, c.command), func(t *testing.T) {
			name := strings.ReplaceAll(t.Name(), "/", " ")
			path := expect(t, tap, name, c.kind, 3)
			guest := opened(t, path)
			guest.want(c.freeReply, "%s", c.free)
			if n := tap.Counters(name); n.Reads != 0 || n.Waits != 0 || n.Errors != 0 || tap.Err(name) != nil {
				t.Errorf("counters %+v, %v", n, tap.Err(name))
			}
			answer := make(chan string, 1)
			guest.ask("%s", c.command)
			go func() { answer <- guest.answer() }()
			waiting(t, tap, name, 1)
			select {
			case got := <-answer:
				t.Fatalf("answered %q before there was an image", got)
			case <-time.After(50 * time.Millisecond):
			}
			layers := []*slice.Slice{sealed(t, c.kind, filepath.Join(t.TempDir(), "base"), "abc")}
			if c.kind == slice.Disk {
				top, err := slice.Create(filepath.Join(t.TempDir(), "top"), 3*page, slice.Disk)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { top.Close() })
				layers = append([]*slice.Slice{top}, layers...)
			}
			if err := tap.Deliver(name, stack(t, layers...)); err != nil {
				t.Fatal(err)
			}
			if got := <-answer; got != c.reply {
				t.Errorf("said %q, want %q", got, c.reply)
			}
			guest.want("c 4096", "read 8192 4096")
			if n := tap.Counters(name); n.Waits != 1 || n.Errors != 0 || n.Latency.Count() != n.Reads || tap.Err(name) != nil {
				t.Errorf("counters %+v, %v", n, tap.Err(name))
			}
		})
	}
}

// TestWaitingReadsDoNotStarveOthers has more reads waiting than the kernel by itself would send at once.
func TestWaitingReadsDoNotStarveOthers(t *testing.T) {
	const threads, guests, apart = 48, 6, 64
	tap := mounted(t, Options{})
	path := expect(t, tap, "expected", slice.Memory, threads*apart)
	served, _ := memory(t, tap, "served", strings.Repeat("a", 1024))
	reading := opened(t, path)
	reading.ask("burst 0 %d %d", apart*page, threads)
	waiting(t, tap, "expected", threads)
	var faulting []*child
	for i := range guests {
		c := opened(t, path)
		c.ask("get %d", (i*apart+apart/2)*page)
		faulting = append(faulting, c)
	}
	waiting(t, tap, "expected", threads+guests)
	other := opened(t, served)
	took := other.do("walk 0 %d 1024", page)
	if d, err := time.ParseDuration(took); err != nil || d > 5*time.Second {
		t.Errorf("a file that is served took %s", took)
	}
	base := sealed(t, slice.Disk, filepath.Join(t.TempDir(), "root"), "abcd")
	disked, _ := disk(t, tap, "disk", base)
	onDisk := opened(t, disked)
	onDisk.want("ok", "write 0 %d 98", page)
	onDisk.want("b 4096", "read 0 %d", page)
	if err := tap.Deliver("expected", sparse(t, slice.Memory, threads*apart, apart/2)); err != nil {
		t.Fatal(err)
	}
	if got := reading.answer(); got != strings.Repeat("a", threads) {
		t.Errorf("the reads that waited say %q", got)
	}
	for _, c := range faulting {
		if got := c.answer(); got != "a" {
			t.Errorf("a fault that waited says %q", got)
		}
	}
}

func TestWaitsEndWithAReason(t *testing.T) {
	for _, c := range []struct {
		name     string
		patience time.Duration
		end      func(t *testing.T, tap *Tap)
		reason   string
	}{
		{"remove", 0, func(t *testing.T, tap *Tap) {
			for _, name := range []string{"memory", "disk"} {
				if last, err := tap.Remove(name); err != nil || last.Waits < 1 { // the kernel may ask again
					t.Errorf("remove %s: %+v, %v", name, last, err)
				}
			}
		}, "removed"},
		{"unmount", 0, func(t *testing.T, tap *Tap) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := tap.Unmount(ctx); err != nil {
				t.Error(err)
			}
		}, "unmounted"},
		{"patience", 500 * time.Millisecond, func(*testing.T, *Tap) {}, "image was not delivered within 500ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tap := mounted(t, Options{Patience: c.patience})
			one := opened(t, expect(t, tap, "memory", slice.Memory, 2))
			two := opened(t, expect(t, tap, "disk", slice.Disk, 2))
			one.ask("get 4096")
			two.ask("read 4096 10")
			waiting(t, tap, "memory", 1)
			waiting(t, tap, "disk", 1)
			start := time.Now()
			c.end(t, tap)
			if got := one.answer(); got != "fault" {
				t.Errorf("memory says %q", got)
			}
			// Once unmounted, the kernel may have its own word for it.
			if got := two.answer(); got != "EIO" && !(c.name == "unmount" && (got == "ECONNABORTED" || got == "ENOTCONN")) {
				t.Errorf("disk says %q", got)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %v", took)
			}
			for _, name := range []string{"memory", "disk"} {
				if err := tap.Err(name); err == nil || !strings.Contains(err.Error(), c.reason) || !strings.Contains(err.Error(), name) {
					t.Errorf("the reason of %s is %v", name, err)
				}
			}
			if c.name == "patience" {
				if n := tap.Counters("disk"); n.Errors != 1 || n.Reads != 1 {
					t.Errorf("counters %+v", n)
				}
				if err := tap.Deliver("memory", sparse(t, slice.Memory, 2, 1)); err != nil {
					t.Error(err)
				}
				one.want("a", "get 4096")
				return
			}
			if err := tap.Deliver("memory", sparse(t, slice.Memory, 2, 1)); err == nil {
				t.Error("delivered to a file that is gone")
			}
			if _, err := tap.Expect("memory", page, slice.Memory); (err == nil) != (c.name == "remove") {
				t.Errorf("expect again: %v", err)
			}
			if err := tap.Err("memory"); (err == nil) != (c.name == "remove") {
				t.Errorf("the reason is now %v", err)
			}
		})
	}
}

// TestKilledWhileItWaits: a process that waits for an image can be killed, and nobody else is the worse for it.
func TestKilledWhileItWaits(t *testing.T) {
	for _, c := range []struct {
		kind    slice.Kind
		command string
	}{{slice.Memory, "get 4096"}, {slice.Memory, "read 4096 10"}, {slice.Disk, "read 4096 10"}, {slice.Disk, "write 0 10 65"}} {
		t.Run(fmt.Sprintf("%v %s", c.kind, c.command), func(t *testing.T) {
			tap := mounted(t, Options{})
			path := expect(t, tap, "expected", c.kind, 2)
			guest := opened(t, path)
			guest.ask("%s", c.command)
			waiting(t, tap, "expected", 1)
			killed := make(chan struct{})
			go func() { guest.stop(); close(killed) }()
			select {
			case <-killed:
			case <-time.After(10 * time.Second):
				t.Error("it does not die")
			}
			if err := tap.Deliver("expected", sparse(t, c.kind, 2, 1)); err != nil {
				t.Fatal(err)
			}
			opened(t, path).want("a 10", "read 4096 10")
			if n := tap.Counters("expected"); n.Errors != 0 || tap.Err("expected") != nil {
				t.Errorf("counters %+v, %v", n, tap.Err("expected"))
			}
		})
	}
}

// TestUnmountedByAnotherHandWhileReadsWait: the server ends all the same.
func TestUnmountedByAnotherHandWhileReadsWait(t *testing.T) {
	tap := mounted(t, Options{})
	guest := opened(t, expect(t, tap, "expected", slice.Memory, 2))
	guest.ask("get 4096")
	waiting(t, tap, "expected", 1)
	run(t, "umount", "-f", "-l", tap.Dir())
	select {
	case <-tap.Done():
	case <-time.After(10 * time.Second):
		t.Error("the server goes on")
	}
	if got := guest.answer(); got != "fault" {
		t.Errorf("the guest says %q", got)
	}
}

func TestExpectAndDeliverRefuse(t *testing.T) {
	tap := mounted(t, Options{})
	memory(t, tap, "served", "a")
	expect(t, tap, "memory", slice.Memory, 2)
	expect(t, tap, "disk", slice.Disk, 2)
	writable, err := slice.Create(filepath.Join(t.TempDir(), "x"), 2*page, slice.Memory)
	if err != nil {
		t.Fatal(err)
	}
	defer writable.Close()
	good := sparse(t, slice.Memory, 2, 1)
	for name, f := range map[string]func() error{
		"expect: taken":            func() error { _, err := tap.Expect("served", page, slice.Memory); return err },
		"expect: expected":         func() error { _, err := tap.Expect("memory", 2*page, slice.Memory); return err },
		"expect: a path":           func() error { _, err := tap.Expect("a/b", page, slice.Memory); return err },
		"expect: nothing":          func() error { _, err := tap.Expect("x", 0, slice.Memory); return err },
		"expect: too much":         func() error { _, err := tap.Expect("x", slice.MaxImageSize+1, slice.Disk); return err },
		"expect: no kind":          func() error { _, err := tap.Expect("x", page, 0); return err },
		"add: expected":            func() error { _, err := tap.AddMemory("memory", good); return err },
		"deliver: unknown":         func() error { return tap.Deliver("none", good) },
		"deliver: served":          func() error { return tap.Deliver("served", sparse(t, slice.Memory, 1, 1)) },
		"deliver: size":            func() error { return tap.Deliver("memory", sparse(t, slice.Memory, 3, 1)) },
		"deliver: kind":            func() error { return tap.Deliver("disk", good) },
		"deliver: writable memory": func() error { return tap.Deliver("memory", stack(t, writable)) },
		"patience": func() error {
			_, err := Mount(t.Context(), t.TempDir(), Options{Patience: -1})
			return err
		},
	} {
		if f() == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	if err := tap.Deliver("memory", good); err != nil {
		t.Errorf("what was refused has spoiled it: %v", err)
	}
	if err := tap.Deliver("memory", good); err == nil {
		t.Error("delivered twice")
	}
}

// TestForkOfAMemory is the whole of it: a process that runs on an image is stopped, what is private to it is adopted and
// delivered to those who wait for it, and settled under them; then the process is killed.
func TestForkOfAMemory(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	const blocks = 600
	base := sealed(t, slice.Memory, filepath.Join(t.TempDir(), "base"), strings.Repeat("a", blocks))
	before, err := tap.AddMemory("generation-0", stack(t, base))
	if err != nil {
		t.Fatal(err)
	}
	after := expect(t, tap, "generation-1", slice.Memory, blocks)
	early := opened(t, after)
	early.ask("get %d", 500*page)
	waiting(t, tap, "generation-1", 1)

	parent := opened(t, before)
	private := bitset.New(blocks)
	for b := 0; b < blocks; b += 2 {
		parent.want("ok", "put %d %d", b*page, 'p')
		parent.want("ok", "put %d %d", b*page+page-1, 'q')
		private.Set(uint(b))
	}
	address, err := strconv.ParseInt(parent.do("where"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", parent.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	s, err := slice.Adopt(filepath.Join(t.TempDir(), "private"), blocks*page, slice.Memory, private,
		io.NewSectionReader(mem, address, blocks*page))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := tap.Deliver("generation-1", stack(t, s, base)); err != nil {
		t.Fatal(err)
	}
	if got := early.answer(); got != "p" {
		t.Errorf("who came early reads %q", got)
	}
	late := opened(t, after)
	check := func(from, to int) {
		t.Helper()
		for b := from; b < to; b++ {
			for off, want := range []string{"pa", "aa", "qa"} {
				late.want(want[b%2:b%2+1], "get %d", b*page+off*(page-1)/2)
			}
		}
	}
	check(0, 20)
	settled := make(chan error)
	go func() { _, err := s.Settle(t.Context()); settled <- err }()
	check(20, 40)
	if err := <-settled; err != nil {
		t.Fatal(err)
	}
	parent.stop()
	check(40, 60)
	opened(t, after).want("a 4096", "read %d 4096", 599*page)
	opened(t, after).want("p 4096", "read %d 4096", 598*page)
	if err := tap.Err("generation-1"); err != nil {
		t.Error(err)
	}
}

// TestLenderThatDiesTooEarly is an error of the guest's memory with the slice's name, never zeros.
func TestLenderThatDiesTooEarly(t *testing.T) {
	tap := mounted(t, Options{})
	expect(t, tap, "memory", slice.Memory, 2)
	s, err := slice.Adopt(filepath.Join(t.TempDir(), "private"), 2*page, slice.Memory, bitset.New(2).Set(1), bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := tap.Deliver("memory", stack(t, s)); err != nil {
		t.Fatal(err)
	}
	opened(t, filepath.Join(tap.Dir(), "memory")).want("fault", "get 4096")
	if err := tap.Err("memory"); err == nil || !strings.Contains(err.Error(), s.Path()) || errors.Is(err, slice.ErrCorrupt) {
		t.Errorf("the reason is %v", err)
	}
}
