package slice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sys/unix"
)

func TestFarBlocksAreBroughtWhenTheyAreRead(t *testing.T) {
	for _, c := range []struct {
		name, pattern string
		extra         int
	}{
		{"one block", "b", 0},
		{"none", "000", 0},
		{"zeros", "zzz", 0},
		{"mixed", "b0z0ccz0", 0},
		{"ends inside a block", "b0", 100},
		{"many words", strings.Repeat("bb"+strings.Repeat("0", 300)+"zc", 20) + strings.Repeat("d", 700), 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, _ := sealed(t, Memory, strings.Repeat("a", len(c.pattern)), c.extra)
			origin, _ := adopted(t, Memory, c.pattern, c.extra)
			for _, settled := range []bool{false, true} {
				if settled {
					if _, err := origin.Settle(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				s, e := far(t, origin)
				stored, zero := origin.Count()
				if got, z := s.Count(); got != stored || z != zero || s.Awaited() != stored || s.ID() != origin.ID() || s.Writable() {
					t.Errorf("far: %d stored, %d zero, %d awaited; want %d and %d", got, z, s.Awaited(), stored, zero)
				}
				im, want := image(t, s, base), expanded(c.pattern, c.extra)
				if !im.Zeros().Equal(image(t, origin, base).Zeros()) {
					t.Error("zeros differ")
				}
				got := make([]byte, len(want))
				stat, err := im.ReadStat(t.Context(), got, 0)
				if err != nil || !bytes.Equal(got, want) || stat.Far != int(stored) {
					t.Errorf("read: %+v, %v; %d blocks are stored", stat, err, stored)
				}
				e.requests()
				if stat, err := im.ReadStat(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) || stat.Far != 0 {
					t.Errorf("read again: %+v, %v", stat, err)
				}
				if asked := e.requests(); asked != "" || s.Awaited() != 0 || s.away.Load() != nil {
					t.Errorf("complete, but %q was asked for, and %d are awaited", asked, s.Awaited())
				}
				<-s.Arrived()
				if a, b := s.Map(), origin.Map(); a.ID != b.ID || a.Kind != b.Kind || a.Size != b.Size || !a.Stored.Equal(b.Stored) || !a.Zero.Equal(b.Zero) {
					t.Error("the map is not the origin's")
				}
				if err := s.Verify(t.Context()); err != nil {
					t.Error(err)
				}
				var st unix.Stat_t
				if err := unix.Stat(s.Path(), &st); err != nil || st.Blocks*512 > (stored+1)*BlockSize || st.Mode&0o777 != 0o600 || st.Size != s.Size() {
					t.Errorf("the data file takes %d sectors for %d blocks, mode %o (%v)", st.Blocks, stored, st.Mode, err)
				}
			}
		})
	}
}

func TestARunIsBroughtAtOnce(t *testing.T) {
	origin, content := sealed(t, Disk, strings.Repeat("a", 62)+"bcdefgh00ij", 9)
	over, _ := sealed(t, Disk, strings.Repeat("0", 66)+"X"+strings.Repeat("0", 6), 9)
	s, e := far(t, origin)
	im := image(t, over, s)
	read := func(first, n int64, want string) {
		t.Helper()
		p := make([]byte, n*BlockSize)
		if _, err := im.ReadStat(t.Context(), p, first*BlockSize); err != nil {
			t.Fatal(err)
		}
		if got := e.requests(); got != want {
			t.Errorf("a read of %d blocks from %d on brought %q, want %q", n, first, got, want)
		}
	}
	if err := s.Arrive(content[64*BlockSize:65*BlockSize], 64); err != nil {
		t.Fatal(err)
	}
	read(60, 8, "60+4 65+1 67+1") // 64 came by itself, and the slice above answers for 66
	read(60, 8, "")
	if got := fmt.Sprint(slices.Collect(s.Awaits(57, 10000))); got != "[57 58 59 66 68 71 72 73]" {
		t.Errorf("awaits %v", got)
	}
	for b := range s.Awaits(-10, 70) {
		if b != 0 {
			t.Errorf("begins with %d", b)
		}
		break
	}
	if err := s.ReadBlocks(make([]byte, 5*BlockSize), 64); err != nil {
		t.Fatal(err)
	}
	if got := e.requests(); got != "66+1 68+1" {
		t.Errorf("a server's read brought %q", got)
	}
	if _, err := im.ReadStat(t.Context(), make([]byte, 20), 71*BlockSize-10); err != nil {
		t.Fatal(err)
	}
	if got := e.requests(); got != "71+1" {
		t.Errorf("a read across an edge brought %q", got)
	}
	read(0, 60, "0+60")
	e.all(t)
	if got, want := make([]byte, BlockSize+9), content[72*BlockSize:]; im.size != int64(len(content)) {
		t.Error("size")
	} else if _, err := im.ReadStat(t.Context(), got, 72*BlockSize); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the end differs (%v)", err)
	}
}

func TestArriveRefuses(t *testing.T) {
	origin, content := sealed(t, Disk, "ab0cz", 9)
	s, e := far(t, origin)
	two := make([]byte, 2*BlockSize)
	tail := append(bytes.Clone(content[5*BlockSize:]), make([]byte, BlockSize-9)...)
	for name, err := range map[string]error{
		"absent":       s.Arrive(two, 1),
		"zero":         s.Arrive(two[BlockSize:], 4),
		"nothing":      s.Arrive(nil, 0),
		"outside":      s.Arrive(two, 5),
		"negative":     s.Arrive(two, -1),
		"far outside":  s.Arrive(two, 1<<63-1),
		"a part":       s.Arrive(two[:100], 0),
		"long tail":    s.Arrive(append(tail[:BlockSize-1:BlockSize-1], 1), 5),
		"not from Far": origin.Arrive(two, 0),
	} {
		if err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	if s.Awaited() != 4 {
		t.Errorf("%d awaited", s.Awaited())
	}
	if err := s.Arrive(tail, 5); err != nil {
		t.Error(err)
	}
	same(t, image(t, s), content)
	if err := s.Arrive(two[BlockSize:], 0); err != nil {
		t.Errorf("a block that is here: %v", err)
	}
	if err := s.Arrive(two, 1); err == nil {
		t.Error("an absent block was taken by a complete slice")
	}
	same(t, image(t, s), content) // and was dropped
	e.requests()
	bad := origin.Map()
	for name, spoil := range map[string]func(m *Map){
		"size":    func(m *Map) { m.Size = 0 },
		"huge":    func(m *Map) { m.Size = MaxImageSize + 1 },
		"kind":    func(m *Map) { m.Kind = 7 },
		"beyond":  func(m *Map) { m.Zero = bitset.New(7).Set(6) },
		"far off": func(m *Map) { m.Stored = bitset.New(700).Set(640) },
		"both":    func(m *Map) { m.Zero = m.Stored },
		"nil":     func(m *Map) { m.Zero = nil },
	} {
		m := bad
		spoil(&m)
		path := filepath.Join(t.TempDir(), "far")
		if _, err := Far(path, m, e.bring); err == nil {
			t.Errorf("%s: was opened", name)
		}
		if _, err := m.MarshalBinary(); err == nil {
			t.Errorf("%s: was packed", name)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: left a file", name)
		}
	}
}

func TestBringsErrorsGoToTheReader(t *testing.T) {
	origin, content := sealed(t, Memory, strings.Repeat("a", 100), 0)
	s, e := far(t, origin)
	im := image(t, s)
	broken := errors.New("the host is gone")
	e.before = func(context.Context) error { return broken }
	p := make([]byte, 2*BlockSize)
	for name, err := range map[string]error{
		"read":          func() error { _, err := im.ReadStat(t.Context(), p, 100); return err }(),
		"server's read": s.ReadBlocks(p, 7),
	} {
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), s.ID().String()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e.before = nil
	lazy, _ := far(t, origin)
	lazy.away.Load().bring = func(ctx context.Context, first, n int64) error {
		return lazy.Arrive(content[first*BlockSize:][:(n-1)*BlockSize], first)
	}
	if _, err := image(t, lazy).ReadStat(t.Context(), p, 40*BlockSize); err == nil || !strings.Contains(err.Error(), "1 of them, from block 41 on, were said to have come") {
		t.Errorf("a bring that says too much: %v", err)
	}
	// Blocks that come in another way are as good.
	e.before = func(context.Context) error { return errors.Join(s.Arrive(content, 0), broken) }
	same(t, im, content)
	called, cancel := context.WithCancel(t.Context())
	cancel()
	again, _ := far(t, origin)
	if _, err := image(t, again).ReadStat(called, p, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("called off before: %v", err)
	}
}

func TestADamagedFarBlockIsNoticed(t *testing.T) {
	origin, _ := sealed(t, Memory, "ab", 0)
	s, e := far(t, origin)
	e.all(t)
	f, err := os.OpenFile(s.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), BlockSize+7); err != nil {
		t.Fatal(err)
	}
	if _, err := image(t, s).ReadStat(t.Context(), make([]byte, 2*BlockSize), 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read: %v", err)
	}
}

func TestCloseEndsWaitsForAnotherHost(t *testing.T) {
	origin, content := sealed(t, Memory, strings.Repeat("a", 100), 0)
	s, e := far(t, origin)
	s.SetPrefetch(func(ctx context.Context, blocks iter.Seq[int64]) error { <-ctx.Done(); return ctx.Err() })
	im := image(t, s)
	entered, _ := e.stuck()
	read := async(func() error { _, err := im.ReadStat(t.Context(), make([]byte, BlockSize), 0); return err })
	serve := async(func() error { return s.ReadBlocks(make([]byte, BlockSize), 50) })
	<-entered
	<-entered
	prefetch := async(func() error { _, err := im.Prefetch(t.Context(), s.Awaits(0, 100)); return err })
	time.Sleep(time.Millisecond)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]<-chan error{"read": read, "server's read": serve, "prefetch": prefetch} {
		if err := within(t, name, c); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := im.ReadStat(t.Context(), make([]byte, BlockSize), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a read of a closed slice: %v", err)
	}
	if err := s.Arrive(content, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("blocks for a closed slice: %v", err)
	}
}

// TestArrivalsRace has readers, bringers and pushers at the same blocks.
func TestArrivalsRace(t *testing.T) {
	pattern := strings.Repeat("b0cz", 120) + "dd"
	base, _ := sealed(t, Memory, strings.Repeat("a", len(pattern)), 50)
	origin, _ := adopted(t, Memory, pattern, 50)
	want := expanded(pattern, 50)
	for range 10 {
		s, e := far(t, origin)
		im := image(t, s, base)
		var wg sync.WaitGroup
		var failed atomic.Bool
		for r := range 4 {
			wg.Go(func() {
				got := make([]byte, 32<<10)
				for i := int64(0); i < 60; i++ {
					off := (i*7919*3 + int64(r)*BlockSize) % (im.Size() - int64(len(got)))
					if _, err := im.ReadStat(t.Context(), got, off); err != nil || !bytes.Equal(got, want[off:off+int64(len(got))]) {
						t.Errorf("read at %d: wrong, %v", off, err)
						failed.Store(true)
						return
					}
				}
			})
		}
		for range 2 {
			wg.Go(func() {
				for b := range s.Awaits(0, s.Blocks()) {
					p := make([]byte, BlockSize)
					if err := errors.Join(origin.ReadBlocks(p, b), s.Arrive(p, b)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if failed.Load() {
			return
		}
		same(t, im, want)
		<-s.Arrived()
		e.requests()
	}
}

// TestACompleteSliceIsSealed: a host keeps what came.
func TestACompleteSliceIsSealed(t *testing.T) {
	origin, content := sealed(t, Memory, "ab0zc", 0)
	s, e := far(t, origin)
	if err := s.Seal(t.Context(), s.Path()+".map"); err == nil || !strings.Contains(err.Error(), "3 of its blocks") {
		t.Errorf("sealed before it was complete: %v", err)
	}
	e.all(t)
	if err := s.Seal(t.Context(), s.Path()+".map"); err != nil {
		t.Fatal(err)
	}
	kept, err := Open(s.Path(), s.Path()+".map")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	same(t, image(t, kept), content)
	if kept.ID() != origin.ID() {
		t.Error("it has another name")
	}
	if err := errors.Join(kept.Verify(t.Context()), s.Verify(t.Context())); err != nil {
		t.Error(err)
	}
}

// TestVerifyBringsNothing and finds what is wrong with that which is here.
func TestVerifyBringsNothing(t *testing.T) {
	origin, content := sealed(t, Memory, strings.Repeat("a", 200), 0)
	s, e := far(t, origin)
	if err := s.Arrive(content[:50*BlockSize], 100); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context()); err != nil || e.requests() != "" {
		t.Errorf("verify: %v", err)
	}
	if err := os.WriteFile(s.Path(), content[:120*BlockSize], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context()); err == nil {
		t.Error("damage was not noticed")
	}
}

// TestArriveOnAFullDisk: the reader is told, and what does not fit has not come.
func TestArriveOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k,mode=0700"); err != nil {
		t.Fatalf("this test needs root, to mount a small tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	origin, content := sealed(t, Memory, strings.Repeat("b", 300), 0)
	e := &elsewhere{origin: origin}
	var err error
	if e.here, err = Far(filepath.Join(dir, "far"), origin.Map(), e.bring); err != nil {
		t.Fatal(err)
	}
	defer e.here.Close()
	im := image(t, e.here)
	if _, err := im.ReadAt(make([]byte, len(content)), 0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("read: %v", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	same(t, im, content)
}
