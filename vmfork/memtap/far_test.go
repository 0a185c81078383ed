package memtap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

// elsewhere stands for another host, and the way from there, of a slice of one pattern.
type elsewhere struct {
	here    *slice.Slice
	content []byte

	mu      sync.Mutex
	before  func(ctx context.Context) error // called by each bring
	brought int64                           // blocks, one by one
	brings  int
	bulk    []string // what each prefetch was asked for
}

func (e *elsewhere) bring(ctx context.Context, first, n int64) error {
	e.mu.Lock()
	e.brings++
	e.brought += n
	before := e.before
	e.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return err
		}
	}
	return e.here.Arrive(e.content[first*page:(first+n)*page], first)
}

func (e *elsewhere) prefetch(ctx context.Context, blocks iter.Seq[int64]) error {
	var said []string
	e.mu.Lock()
	before := e.before
	e.mu.Unlock()
	if before != nil {
		if err := before(ctx); err != nil {
			return err
		}
	}
	for b := range blocks {
		said = append(said, fmt.Sprint(b))
		if err := e.here.Arrive(e.content[b*page:(b+1)*page], b); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bulk = append(e.bulk, strings.Join(said, " "))
	return nil
}

func (e *elsewhere) onBring(f func(ctx context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.before = f
}

func (e *elsewhere) counts() (brings int, brought int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.brings, e.brought
}

// stuck makes every bring wait for the end of free, or of its context.
func (e *elsewhere) stuck() (entered, free chan struct{}) {
	entered, free = make(chan struct{}, 1000), make(chan struct{})
	e.onBring(func(ctx context.Context) error {
		entered <- struct{}{}
		select {
		case <-free:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return entered, free
}

// far makes a slice whose blocks are on another host.
func far(t testing.TB, kind slice.Kind, pattern string) *elsewhere {
	t.Helper()
	origin := sealed(t, kind, filepath.Join(t.TempDir(), "origin"), pattern)
	e := &elsewhere{content: make([]byte, origin.Size())}
	if _, err := stack(t, origin).ReadAt(e.content, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	if e.here, err = slice.Far(filepath.Join(t.TempDir(), "far"), origin.Map(), e.bring); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.here.Close() })
	return e
}

// farMemory serves memory of another host.
func farMemory(t testing.TB, tap *Tap, name, pattern string) (path string, e *elsewhere) {
	t.Helper()
	e = far(t, slice.Memory, pattern)
	path, err := tap.AddMemory(name, stack(t, e.here))
	if err != nil {
		t.Fatal(err)
	}
	return path, e
}

// within fails for what takes too long.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

func TestMemoryOfAnotherHost(t *testing.T) {
	const blocks = 256
	tap := mounted(t, Options{Window: 8 * page})
	path, e := farMemory(t, tap, "memory", strings.Repeat("abcdefg0", blocks/8))
	e.onBring(func(ctx context.Context) error { time.Sleep(100 * time.Millisecond); return nil })
	const readers = 4
	guests := make([]*child, readers)
	for i := range guests {
		guests[i] = opened(t, path)
	}
	for i, guest := range guests { // all at once
		guest.ask("get %d", (i*64+3)*page)
	}
	for i, guest := range guests {
		if got := guest.answer(); got != "d" {
			t.Errorf("guest %d reads %q", i, got)
		}
	}
	brings, brought := e.counts()
	if brings > readers || brought > readers*8 {
		t.Errorf("%d blocks were brought, %d times", brought, brings)
	}
	for i := range guests { // each reads what the others have brought
		guests[i].want("d", "get %d", ((i+1)%readers*64+3)*page)
	}
	if again, _ := e.counts(); again != brings {
		t.Error("blocks were brought twice")
	}
	n := tap.Counters("memory")
	if n.FarReads != readers || n.BytesFar != brought*page || n.BytesFetched < n.BytesFar || n.Errors != 0 {
		t.Errorf("counters %+v", n)
	}
	e.onBring(nil)
	guests[0].do("walk 0 %d %d", page, blocks)
	if e.here.Awaited() != 0 {
		t.Errorf("%d blocks have not come", e.here.Awaited())
	}
	if n := tap.Counters("memory"); n.BytesFar != blocks/8*7*page {
		t.Errorf("counters %+v", n)
	}
}

// TestReadsOfAnotherHostDoNotWaitForEachOther: many can be on their way at once, and what is here comes at once.
func TestReadsOfAnotherHostDoNotWaitForEachOther(t *testing.T) {
	const many = 40
	tap := mounted(t, Options{Window: page})
	path, e := farMemory(t, tap, "memory", strings.Repeat("a", 200))
	local, _ := memory(t, tap, "local", "xyz")
	entered, free := e.stuck()
	guest, other := opened(t, path), opened(t, local)
	guest.ask("burst 0 %d %d", 2*page, many)
	within(t, "a read", func() {
		for range many {
			<-entered
		}
	})
	other.want("y", "get %d", page)
	if err := e.here.Arrive(e.content[150*page:151*page], 150); err != nil {
		t.Fatal(err)
	}
	opened(t, path).want("a", "get %d", 150*page)
	close(free)
	if got := guest.answer(); got != strings.Repeat("a", many) {
		t.Errorf("guest reads %q", got)
	}
}

func TestAHostThatFailsIsAFaultWithAReason(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	path, e := farMemory(t, tap, "memory", "abcd")
	broken := errors.New("host h2 does not answer")
	e.onBring(func(context.Context) error { return broken })
	guest := opened(t, path)
	guest.want("EIO", "read %d 1", 2*page)
	guest.want("fault", "get %d", page)
	err := tap.Err("memory")
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), e.here.ID().String()) {
		t.Errorf("the reason is %v", err)
	}
	if n := tap.Counters("memory"); n.Errors == 0 {
		t.Errorf("counters %+v", n)
	}
	e.onBring(nil) // it was a disturbance
	guest.want("b", "get %d", page)
	path, e = farMemory(t, tap, "closed", "abcd")
	guest = opened(t, path)
	entered, _ := e.stuck()
	guest.ask("get 0")
	<-entered
	e.here.Close()
	if got := guest.answer(); got != "fault" {
		t.Errorf("memory that was closed reads %q", got)
	}
	if _, err := tap.Push(t.Context(), "closed", Trace{{2, 1}}); err == nil {
		t.Error("pushed what cannot be had")
	}
}

// TestPushBringsInBulk what is on another host, and nothing twice.
func TestPushBringsInBulk(t *testing.T) {
	const blocks = 3000
	tap := mounted(t, Options{Window: page})
	lower := far(t, slice.Memory, strings.Repeat("a", blocks))
	upper := far(t, slice.Memory, strings.Repeat("0", 8)+"b"+strings.Repeat("0", blocks-9))
	local := sealed(t, slice.Memory, filepath.Join(t.TempDir(), "top"), "c"+strings.Repeat("0", blocks-1))
	path, err := tap.AddMemory("memory", stack(t, local, upper.here, lower.here))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []*elsewhere{lower, upper} {
		e.here.SetPrefetch(e.prefetch)
	}
	guest := opened(t, path)
	guest.want("a", "get %d", 5*page)
	if err := lower.here.Arrive(lower.content[7*page:8*page], 7); err != nil {
		t.Fatal(err)
	}
	// 0 is here in a slice of this host, 5 was read, 7 came by itself, 8 is in the other far slice.
	trace := Trace{{9, 1}, {0, 9}, {100, 2000}, {blocks, 7}}
	push(t, tap, "memory", trace, 1+8+2000)
	if brings, _ := lower.counts(); brings != 1 {
		t.Errorf("%d runs were brought one by one", brings-1)
	}
	if fmt.Sprint(upper.bulk) != "[8]" || len(lower.bulk) == 0 || !strings.HasPrefix(lower.bulk[0], "9 1 2 3 4 6 100 101 ") {
		t.Errorf("prefetched %v, %.100v", upper.bulk, lower.bulk)
	}
	var sizes []int
	for _, b := range lower.bulk {
		sizes = append(sizes, len(strings.Fields(b)))
	}
	if want := []int{60, 128, 256, 512, 1024, 26}; !slices.Equal(sizes, want) {
		t.Errorf("pieces of %v blocks, want %v", sizes, want)
	}
	n := tap.Counters("memory")
	if n.BytesAhead != 2007*page || n.BytesPushed != 2009*page || n.FarReads != 1 || n.BytesFar != page {
		t.Errorf("counters %+v", n)
	}
	for b, want := range map[int]string{0: "c", 8: "b", 9: "a", 1500: "a", 2099: "a"} {
		guest.want(want, "get %d", b*page)
	}
	if n := tap.Counters("memory"); n.Reads != 1 {
		t.Errorf("%d reads of what was pushed", n.Reads-1)
	}
}

func TestPushFromAnotherHostEnds(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	for name, end := range map[string]func(cancel func(), e *elsewhere, name string){
		"canceled": func(cancel func(), _ *elsewhere, _ string) { cancel() },
		"removed": func(_ func(), _ *elsewhere, name string) {
			if _, err := tap.Remove(name); err != nil {
				t.Error(err)
			}
		},
		"closed": func(_ func(), e *elsewhere, _ string) { e.here.Close() },
	} {
		_, e := farMemory(t, tap, name, strings.Repeat("a", 300))
		e.here.SetPrefetch(e.prefetch)
		entered, _ := e.stuck()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		pushed := make(chan error, 1)
		go func() { _, err := tap.Push(ctx, name, Trace{{0, 300}}); pushed <- err }()
		<-entered
		end(cancel, e, name)
		within(t, name, func() {
			if err := <-pushed; (err == nil) != (name == "removed") {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestKilledWhileItWaitsForAnotherHost: a process that waits in a fault can be killed, and then nobody is the worse for
// what is still on its way: not who looks for another file, not Remove.
func TestKilledWhileItWaitsForAnotherHost(t *testing.T) {
	for name, command := range map[string]string{"fault": "get 0", "read": "read 0 4096"} {
		t.Run(name, func(t *testing.T) {
			tap := mounted(t, Options{Window: 8 * page})
			path, e := farMemory(t, tap, "memory", strings.Repeat("a", 64))
			local, _ := memory(t, tap, "local", "xyz")
			entered, _ := e.stuck()
			guest := opened(t, path)
			guest.ask("%s", command)
			<-entered
			within(t, "the kill", guest.stop)
			opened(t, local).want("z", "get %d", 2*page)
			within(t, "remove", func() {
				if _, err := tap.Remove("memory"); err != nil {
					t.Error(err)
				}
			})
			fresh, _ := memory(t, tap, "fresh", "uvw")
			opened(t, fresh).want("v", "get %d", page)
		})
	}
}

// TestRemovedWhileItWaitsForAnotherHost: who has the file open gets its page all the same.
func TestRemovedWhileItWaitsForAnotherHost(t *testing.T) {
	tap := mounted(t, Options{Window: 8 * page})
	path, e := farMemory(t, tap, "memory", strings.Repeat("a", 64))
	entered, free := e.stuck()
	guest := opened(t, path)
	guest.ask("get 0")
	<-entered
	within(t, "remove", func() {
		if _, err := tap.Remove("memory"); err != nil {
			t.Error(err)
		}
	})
	close(free)
	if got := guest.answer(); got != "a" {
		t.Errorf("a removed file that is open reads %q", got)
	}
}

func TestUnmountedWhileItWaitsForAnotherHost(t *testing.T) {
	for name, unmount := range map[string]func(tap *Tap) error{
		"unmount": func(tap *Tap) error {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return tap.Unmount(ctx)
		},
		"by another hand": func(tap *Tap) error {
			if err := unix.Unmount(tap.Dir(), unix.MNT_FORCE); err != nil && err != unix.EBUSY {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return tap.Unmount(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			tap := mounted(t, Options{Window: page})
			path, e := farMemory(t, tap, "memory", strings.Repeat("a", 64))
			e.here.SetPrefetch(e.prefetch)
			disk, err := tap.AddDisk("disk", stack(t, farTop(t, e), far(t, slice.Disk, strings.Repeat("a", 64)).here))
			if err != nil {
				t.Fatal(err)
			}
			entered, _ := e.stuck()
			guest, reader, writer := opened(t, path), opened(t, path), opened(t, disk)
			guest.ask("get 0")
			<-entered
			reader.ask("read %d 10", 9*page)
			<-entered
			writer.want("ok", "write %d 10 119", 5*page+7)
			pushed := make(chan struct{})
			go func() { tap.Push(t.Context(), "memory", Trace{{20, 9}}); close(pushed) }()
			<-entered
			within(t, "unmount", func() {
				if err := unmount(tap); err != nil {
					t.Error(err)
				}
			})
			within(t, "push", func() { <-pushed })
			if got := guest.answer(); got != "fault" {
				t.Errorf("guest says %q", got)
			}
			if got := reader.answer(); !strings.HasPrefix(got, "E") {
				t.Errorf("reader says %q", got)
			}
		})
	}
}

// farTop is a writable top for a disk as large as e.
func farTop(t testing.TB, e *elsewhere) *slice.Slice {
	t.Helper()
	top, err := slice.Create(filepath.Join(t.TempDir(), "top"), e.here.Size(), slice.Disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { top.Close() })
	return top
}

// TestDiskOverAnotherHost: writes of parts of blocks bring those, whole ones bring nothing.
func TestDiskOverAnotherHost(t *testing.T) {
	tap := mounted(t, Options{})
	e := far(t, slice.Disk, strings.Repeat("a", 64))
	path, err := tap.AddDisk("disk", stack(t, farTop(t, e), e.here))
	if err != nil {
		t.Fatal(err)
	}
	guest := opened(t, path)
	guest.want("ok", "write %d %d 119", 0, 2*page)
	guest.want("ok", "write %d 10 119", 5*page+7)
	if brings, brought := e.counts(); brings != 1 || brought != 1 {
		t.Errorf("%d blocks were brought", brought)
	}
	guest.want("w 10", "read %d 10", 5*page+7)
	guest.want("a 10", "read %d 10", 5*page+17)
	guest.want("ok", "punch %d %d", 9*page+5, page)
	guest.want("\x00 10", "read %d 10", 9*page+5)
	n := tap.Counters("disk")
	if n.BytesFar != 3*page || n.FarReads != 2 {
		t.Errorf("counters %+v", n)
	}
	entered, _ := e.stuck()
	guest.ask("write %d 10 119", 20*page+7)
	<-entered
	within(t, "the kill", guest.stop)
}
