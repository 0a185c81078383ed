package slice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAReadIsCalledOff(t *testing.T) {
	origin, _ := sealed(t, Disk, "ab", 0)
	s, e := far(t, origin)
	im := image(t, created(t, s.Size(), Disk), s)
	entered, free := e.stuck()
	for name, f := range map[string]func(ctx context.Context) error{
		"read":    func(ctx context.Context) error { _, err := im.ReadStat(ctx, make([]byte, 10), 0); return err },
		"write":   func(ctx context.Context) error { _, err := im.WriteStat(ctx, make([]byte, 10), 0); return err },
		"discard": func(ctx context.Context) error { _, err := im.Discard(ctx, 0, 10); return err },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := async(func() error { return f(ctx) })
		<-entered
		cancel()
		if err := within(t, name, done); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	close(free)
	if _, err := im.ReadStat(t.Context(), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// TestNobodyWaitsForASlowHost but those who want its blocks: not Restack, not who reads or writes something else.
func TestNobodyWaitsForASlowHost(t *testing.T) {
	origin, _ := sealed(t, Disk, strings.Repeat("a", 100), 0)
	s, e := far(t, origin)
	if err := s.Arrive(bytes.Repeat([]byte("a"), BlockSize), 50); err != nil {
		t.Fatal(err)
	}
	first, second := created(t, s.Size(), Disk), created(t, s.Size(), Disk)
	im := image(t, first, s)
	entered, free := e.stuck()
	read := make([]byte, 2*BlockSize)
	reader := async(func() error { _, err := im.ReadStat(t.Context(), read, 0); return err })
	writer := async(func() error { _, err := im.WriteAt([]byte("w"), 10*BlockSize+7); return err })
	<-entered
	<-entered
	other := func() error {
		if _, err := im.ReadStat(t.Context(), make([]byte, BlockSize), 50*BlockSize); err != nil {
			return err
		}
		if _, err := im.WriteAt(make([]byte, BlockSize), 60*BlockSize); err != nil {
			return err
		}
		_, err := im.WriteAt([]byte("c"), 50*BlockSize+5) // a part of a block that is here
		return err
	}
	if err := within(t, "another reader and writer", async(other)); err != nil {
		t.Error(err)
	}
	// The block that the reader waits for changes hands in the meantime.
	if _, err := im.WriteAt(bytes.Repeat([]byte("b"), BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	first.Freeze()
	if err := within(t, "restack", async(func() error { return im.Restack(second, first, s) })); err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(bytes.Repeat([]byte("c"), BlockSize), BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "another reader and writer", async(other)); err != nil {
		t.Error(err)
	}
	close(free)
	if err := within(t, "reader", reader); err != nil || read[0] != 'b' || read[BlockSize] != 'c' {
		t.Errorf("the reader has %q and %q, %v", read[0], read[BlockSize], err)
	}
	if err := within(t, "writer", writer); err != nil || !second.Present(10) || first.Present(10) {
		t.Errorf("the write went to the old stack (%v)", err)
	}
}

// TestASliceLeavesTheStackUnderAReader that waits for its blocks.
func TestASliceLeavesTheStackUnderAReader(t *testing.T) {
	origin, content := sealed(t, Memory, "ab", 0)
	s, e := far(t, origin)
	im := image(t, s)
	entered, _ := e.stuck()
	got := make([]byte, len(content))
	done := async(func() error { _, err := im.ReadStat(t.Context(), got, 0); return err })
	<-entered
	if err := im.Restack(origin); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := within(t, "read", done); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read: %v", err)
	}
}

func TestWritesBringTheBlocksThatTheyWriteAPartOf(t *testing.T) {
	origin, content := sealed(t, Disk, "abcdefgh", 100)
	s, e := far(t, origin)
	im := image(t, created(t, s.Size(), Disk), s)
	write := func(off, n int64, want string, far int) {
		t.Helper()
		p := bytes.Repeat([]byte("w"), int(n))
		copy(content[off:], p)
		if stat, err := im.WriteStat(t.Context(), p, off); err != nil || stat.Far != far {
			t.Errorf("write: %+v, %v", stat, err)
		}
		if got := e.requests(); got != want {
			t.Errorf("a write of %d bytes at %d brought %q, want %q", n, off, got, want)
		}
	}
	write(0, BlockSize, "", 0)
	write(BlockSize, BlockSize+10, "2+1", 1)
	write(3*BlockSize-10, 20, "3+1", 1)
	write(5*BlockSize+1, BlockSize, "5+1 6+1", 2)
	write(8*BlockSize, 100, "", 0)
	clear(content[7*BlockSize : 8*BlockSize-5])
	if stat, err := im.Discard(t.Context(), 7*BlockSize, BlockSize-5); err != nil || stat.Far != 1 {
		t.Errorf("discard: %+v, %v", stat, err)
	}
	same(t, im, content)
}

func TestPrefetch(t *testing.T) {
	lower, content := sealed(t, Memory, strings.Repeat("a", 600), 0)
	upper, over := sealed(t, Memory, "0b"+strings.Repeat("0", 598), 0)
	l, el := far(t, lower)
	u, eu := far(t, upper)
	im := image(t, u, l)
	if err := l.Arrive(content[:BlockSize], 3); err != nil {
		t.Fatal(err)
	}
	wanted := slices.Values([]int64{5, 4, 3, 2, 1, 0, 90, 91, 92, -1, 600, 599})
	var order []int64
	l.SetPrefetch(func(ctx context.Context, blocks iter.Seq[int64]) error {
		for b := range blocks {
			order = append(order, b)
			if err := el.bring(ctx, b, 1); err != nil {
				return err
			}
			if b == 5 { // somebody pushes another
				if err := l.Arrive(content[:BlockSize], 4); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if n, err := im.Prefetch(t.Context(), wanted); n != 9 || err != nil {
		t.Errorf("prefetched %d, %v", n, err)
	}
	if fmt.Sprint(order) != "[5 2 0 90 91 92 599]" || eu.requests() != "1+1" {
		t.Errorf("brought %v, and %v", order, eu.requests())
	}
	el.requests()
	copy(content[BlockSize:], over[BlockSize:2*BlockSize])
	got := make([]byte, 6*BlockSize)
	if stat, err := im.ReadStat(t.Context(), got, 0); err != nil || stat.Far != 0 || !bytes.Equal(got, content[:len(got)]) {
		t.Errorf("read: %+v, %v", stat, err)
	}
	// Without a function for it, in runs that are not endless.
	plain, e := far(t, lower)
	if _, err := image(t, plain).Prefetch(t.Context(), plain.Awaits(10, 500)); err != nil {
		t.Fatal(err)
	}
	if got := e.requests(); got != "10+256 266+244" {
		t.Errorf("brought %v", got)
	}
	e.before = func(context.Context) error { return unix.EHOSTDOWN }
	if _, err := image(t, plain).Prefetch(t.Context(), plain.Awaits(0, 600)); !errors.Is(err, unix.EHOSTDOWN) {
		t.Errorf("prefetch from a host that is down: %v", err)
	}
	if n, err := image(t, lower).Prefetch(t.Context(), wanted); n != 0 || err != nil {
		t.Errorf("prefetch of what is here: %d, %v", n, err)
	}
}

// FuzzFar pushes, reads, prefetches and writes above two far slices as the input says, and compares with the same stack of
// slices that are here.
func FuzzFar(f *testing.F) {
	f.Add([]byte("b0zc"), []byte("zc0b"), []byte{0, 1, 3, 1, 2, 9, 2, 0, 70, 3, 5, 20, 1, 0, 255})
	f.Add(bytes.Repeat([]byte("bb0"), 40), bytes.Repeat([]byte("zccccc0"), 20), bytes.Repeat([]byte{1, 60, 9, 0, 63, 2, 3, 61, 7, 2, 50, 99, 4, 0, 0}, 6))
	f.Fuzz(func(t *testing.T, up, low, ops []byte) {
		const blocks, tail = 140, 77
		cut := func(pattern []byte) string {
			return string(append(bytes.Clone(pattern), bytes.Repeat([]byte("0"), blocks)...)[:blocks])
		}
		base := layer(t, Disk, strings.Repeat("a", blocks), tail)
		origins := []*Slice{layer(t, Disk, cut(up), tail), layer(t, Disk, cut(low), tail)}
		near := image(t, created(t, base.Size(), Disk), origins[0], origins[1], base)
		u, _ := far(t, origins[0])
		l, _ := far(t, origins[1])
		away := image(t, created(t, base.Size(), Disk), u, l, base)
		for step := 0; len(ops) >= 3 && step < 60; step++ {
			op, a, b := ops[0], int64(ops[1])%blocks, int64(ops[2])
			ops = ops[3:]
			off := min(a*BlockSize+b*13%BlockSize, base.Size())
			n := min(b*700, base.Size()-off)
			switch op % 5 {
			case 0: // a push, whatever the map says
				s, origin := []*Slice{u, l}[b%2], origins[b%2]
				run := min(1+b/8, blocks-a)
				p := make([]byte, run*BlockSize)
				have, has := origin.run(a, run)
				if has == stored && have == run {
					if err := origin.ReadBlocks(p, a); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Arrive(p, a); (err == nil) != (has == stored && have == run) {
					t.Fatalf("a push of %d blocks from %d on, of which the map has %d in state %v: %v", run, a, have, has, err)
				}
			case 1:
				want, got := make([]byte, n), make([]byte, n)
				if _, err := near.ReadStat(t.Context(), want, off); err != nil {
					t.Fatal(err)
				}
				if _, err := away.ReadStat(t.Context(), got, off); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes at %d differ (%v)", n, off, err)
				}
			case 2:
				if _, err := away.Prefetch(t.Context(), func(yield func(int64) bool) {
					for i := a; i < a+b && yield(i); i += 1 + b%3 {
					}
				}); err != nil {
					t.Fatal(err)
				}
			case 3:
				p := bytes.Repeat([]byte{byte(step)}, int(n))
				if _, err := near.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				if _, err := away.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
			case 4:
				if _, err := near.Discard(t.Context(), off, n); err != nil {
					t.Fatal(err)
				}
				if _, err := away.Discard(t.Context(), off, n); err != nil {
					t.Fatal(err)
				}
			}
		}
		want := make([]byte, base.Size())
		if _, err := near.ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		same(t, away, want)
	})
}
