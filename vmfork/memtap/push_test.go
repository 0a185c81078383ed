package memtap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/mpirun-sf/mpirun-sf/vmfork/slice"
)

func push(t testing.TB, tap *Tap, name string, trace Trace, want int64) {
	t.Helper()
	if pushed, err := tap.Push(t.Context(), name, trace); pushed != want*page || err != nil {
		t.Fatalf("pushed %d bytes, %v; want %d", pushed, err, want*page)
	}
}

// TestPushedIsNotRead: what was pushed is what is read, without memtap being asked.
func TestPushedIsNotRead(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	path := expect(t, tap, "memory", slice.Memory, 100)
	if _, err := tap.Push(t.Context(), "memory", Trace{{0, 1}}); err == nil || !strings.Contains(err.Error(), "not delivered") {
		t.Errorf("push before there is an image: %v", err)
	}
	guest := opened(t, path)
	if err := tap.Deliver("memory", sparse(t, slice.Memory, 100, 3)); err != nil {
		t.Fatal(err)
	}
	guest.want("a", "get %d", 33*page)
	// Blocks that are read, that are outside, twice the same, and more than one message holds.
	push(t, tap, "memory", Trace{{80, 40}, {200, 5}, {99, 1}, {1<<32 - 2, 1}, {30, 40}}, 59)
	push(t, tap, "memory", Trace{{80, 10}}, 0)
	for _, b := range []int{99, 80, 81, 30, 34, 69} {
		want := ""
		if b%3 == 0 {
			want = "a"
		}
		if got := strings.Trim(guest.do("get %d", b*page+7), "\x00"); got != want {
			t.Errorf("block %d says %q, want %q", b, got, want)
		}
	}
	n := tap.Counters("memory")
	if n.Reads != 1 || n.BytesFetched != page || n.BytesPushed != 20*page {
		t.Errorf("counters %+v", n)
	}
	guest.do("get %d", 1*page)
	if got, want := tap.Trace("memory"), (Trace{{80, 20}, {30, 3}, {34, 36}, {33, 1}, {1, 1}}); !slices.Equal(got, want) {
		t.Errorf("trace %v, want %v", got, want)
	}
}

// TestTraceIsInherited by the next generation, whose own reads follow.
func TestTraceIsInherited(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	var trace Trace
	for generation, b := range []int{5, 9, 5, 2} {
		name := fmt.Sprint("memory-", generation)
		path, _ := memory(t, tap, name, strings.Repeat("a", 16))
		guest := opened(t, path)
		if _, err := tap.Push(t.Context(), name, trace); err != nil {
			t.Fatal(err)
		}
		guest.do("get %d", b*page)
		trace = tap.Trace(name)
	}
	if want := (Trace{{5, 1}, {9, 1}, {2, 1}}); !slices.Equal(trace, want) {
		t.Errorf("trace %v, want %v", trace, want)
	}
}

func TestPushEnds(t *testing.T) {
	tap := mounted(t, Options{Window: page})
	trace := Trace{{0, 2}}
	if n, err := tap.Push(t.Context(), "nothing", trace); n != 0 || err != nil {
		t.Errorf("push into nothing: %d, %v", n, err)
	}
	disk(t, tap, "disk", sealed(t, slice.Disk, filepath.Join(t.TempDir(), "root"), "ab"))
	if _, err := tap.Push(t.Context(), "disk", trace); err == nil {
		t.Error("pushed into a disk")
	}
	memory(t, tap, "memory", "ab")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := tap.Push(canceled, "memory", trace); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("push, called off: %d, %v", n, err)
	}
	// A file that nobody has opened can be pushed into all the same.
	push(t, tap, "memory", trace, 2)
	removed := tap.fs.byName("memory")
	if _, err := tap.Remove("memory"); err != nil {
		t.Fatal(err)
	}
	if n, err := tap.push(t.Context(), removed, trace); n != 0 || err != nil {
		t.Errorf("push into a removed file: %d, %v", n, err)
	}

	path, s := memory(t, tap, "damaged", "abc")
	guest := opened(t, path)
	f, err := os.OpenFile(s.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), page+9); err != nil {
		t.Fatal(err)
	}
	if n, err := tap.Push(t.Context(), "damaged", Trace{{0, 1}, {1, 1}, {2, 1}}); n != page || !errors.Is(err, slice.ErrCorrupt) {
		t.Errorf("push of a damaged block: %d, %v", n, err)
	}
	if err := tap.Err("damaged"); err != nil {
		t.Errorf("nobody has been answered an error, but there is %v", err)
	}
	guest.want("a", "get 9")
	guest.want("fault", "get %d", page+9)

	memory(t, tap, "late", "ab")
	if err := tap.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := tap.Push(t.Context(), "late", trace); n != 0 || err != nil {
		t.Errorf("push when it is unmounted: %d, %v", n, err)
	}
}

// TestPushAmongFaults has children that fault on the very blocks that are pushed, from several sides at once, with one
// processor for the server and with all.
func TestPushAmongFaults(t *testing.T) {
	const blocks, children, pushers = 4096, 4, 3
	for _, processors := range []int{1, runtime.NumCPU()} {
		t.Run(fmt.Sprint(processors), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
			tap := mounted(t, Options{})
			im := stack(t, sealed(t, slice.Memory, filepath.Join(t.TempDir(), "ram"), strings.Repeat("a", blocks)))
			for round := range 4 {
				name := fmt.Sprint("memory-", round)
				path, err := tap.Expect(name, blocks*page, slice.Memory)
				if err != nil {
					t.Fatal(err)
				}
				var guests []*child
				for i := range children {
					c := opened(t, path)
					if i%2 == 0 {
						c.ask("walk 0 %d %d", page, blocks)
					} else {
						c.ask("burst %d %d %d", 8*page, 16*page, blocks/16)
					}
					guests = append(guests, c)
				}
				if err := tap.Deliver(name, im); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				var mu sync.Mutex
				var total int64
				for i := range pushers {
					wg.Go(func() {
						var trace Trace
						for b := range uint32(blocks / 8) {
							trace = append(trace, Run{(b*uint32(2*i+1)*8 + uint32(i)) % blocks, 8})
						}
						n, err := tap.Push(t.Context(), name, trace)
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						total += n
						mu.Unlock()
					})
				}
				for i, c := range guests {
					got := c.answer()
					if _, err := time.ParseDuration(got); err != nil && got != strings.Repeat("a", blocks/16) {
						t.Errorf("child %d says %.100q", i, got)
					}
					c.stop()
				}
				wg.Wait()
				n := tap.Counters(name)
				if n.Errors != 0 || tap.Err(name) != nil || n.BytesPushed != total {
					t.Errorf("counters %+v, %v, and pushed %d", n, tap.Err(name), total)
				}
				t.Logf("pushed %d KB, read %d KB in %d reads", total>>10, n.BytesFetched>>10, n.Reads)
				if _, err := tap.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// held is a lender that answers when it may.
type held struct{ asked, may chan struct{} }

func (h held) ReadAt(p []byte, _ int64) (int, error) {
	h.asked <- struct{}{}
	<-h.may
	return copy(p, bytes.Repeat([]byte("a"), len(p))), nil
}

// TestStoreWaitsForAReadAndNobodyForIt: the kernel makes a message wait whose page a read has locked. Others are served
// meanwhile, the read too: the library writes to the device without a lock of its own. Push itself would leave out such
// a block, but for a read that the kernel has locked the page for and not sent yet.
func TestStoreWaitsForAReadAndNobodyForIt(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	tap := mounted(t, Options{Window: page})
	lender := held{make(chan struct{}, 10), make(chan struct{})}
	blocks := bitset.New(4)
	blocks.Set(1)
	s, err := slice.Adopt(filepath.Join(t.TempDir(), "lent"), 4*page, slice.Memory, blocks, lender)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	path, err := tap.AddMemory("memory", stack(t, s))
	if err != nil {
		t.Fatal(err)
	}
	guest := opened(t, path)
	guest.ask("get %d", page)
	<-lender.asked
	push(t, tap, "memory", Trace{{0, 4}}, 3) // not the block that is being read
	stored := make(chan fuse.Status, 1)
	node := tap.fs.byName("memory").node
	go func() { stored <- tap.server.InodeNotifyStoreCache(node, page, bytes.Repeat([]byte("a"), page)) }()
	other, _ := memory(t, tap, "other", strings.Repeat("b", 512))
	reader := opened(t, other)
	if _, err := time.ParseDuration(reader.do("walk 0 %d 256", page)); err != nil {
		t.Error(err)
	}
	push(t, tap, "other", Trace{{256, 256}}, 256)
	if _, err := time.ParseDuration(reader.do("walk 0 %d 512", page)); err != nil {
		t.Error(err)
	}
	select {
	case st := <-stored:
		t.Errorf("the store did not wait: %v", st)
	default:
	}
	close(lender.may)
	if got := guest.answer(); got != "a" {
		t.Errorf("the read says %q", got)
	}
	select {
	case st := <-stored:
		if st != fuse.OK {
			t.Errorf("the store says %v", st)
		}
	case <-time.After(20 * time.Second):
		t.Error("the store still waits")
	}
}

// TestRemoveAndUnmountWhilePushing do not wait for ever, nor does the push.
func TestRemoveAndUnmountWhilePushing(t *testing.T) {
	for _, how := range []string{"remove", "unmount"} {
		t.Run(how, func(t *testing.T) {
			tap := mounted(t, Options{})
			path, _ := memory(t, tap, "memory", strings.Repeat("a", 8192))
			guest := opened(t, path)
			done := make(chan error, 1)
			go func() { _, err := tap.Push(t.Context(), "memory", Trace{{0, 8192}}); done <- err }()
			for tap.Counters("memory").BytesPushed == 0 {
				time.Sleep(100 * time.Microsecond)
			}
			guest.ask("walk 0 %d 8192", page)
			if how == "remove" {
				if _, err := tap.Remove("memory"); err != nil {
					t.Error(err)
				}
				if _, err := time.ParseDuration(guest.answer()); err != nil {
					t.Error(err)
				}
			} else if err := tap.Unmount(t.Context()); err != nil {
				t.Error(err)
			}
			select {
			case err := <-done:
				if err != nil && how == "remove" {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the push still goes on")
			}
			if how == "unmount" {
				guest.answer()
			}
		})
	}
}
