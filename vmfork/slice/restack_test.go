package slice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bits-and-blooms/bitset"
)

func TestFreezeRefusesWrites(t *testing.T) {
	base, _ := sealed(t, Disk, "aa", 0)
	top := created(t, base.Size(), Disk)
	im := image(t, top, base)
	if _, err := im.WriteAt(bytes.Repeat([]byte("b"), BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	top.Freeze()
	top.Freeze()
	base.Freeze()
	if _, err := im.WriteAt([]byte("c"), 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
	if _, err := im.Discard(t.Context(), 0, BlockSize); !errors.Is(err, ErrReadOnly) {
		t.Errorf("discard: %v", err)
	}
	if im.Writable() || top.Writable() {
		t.Error("it says that it is writable")
	}
	got := make([]byte, 2*BlockSize)
	if stat, err := im.ReadStat(t.Context(), got, 0); err != nil || stat != (Stat{Fetched: 2}) || got[0] != 'b' || got[BlockSize] != 'a' {
		t.Errorf("read: %+v, %v", stat, err)
	}
	if err := top.Seal(t.Context(), top.Path()+".map"); err != nil {
		t.Error(err)
	}
}

func TestRestackAtAFork(t *testing.T) {
	base, _ := sealed(t, Disk, "aaa", 0)
	first, second := created(t, base.Size(), Disk), created(t, base.Size(), Disk)
	im := image(t, first, base)
	write := func(block int64, c string) {
		t.Helper()
		if _, err := im.WriteAt(bytes.Repeat([]byte(c), BlockSize), block*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	write(0, "b")
	write(1, "b")
	first.Freeze()
	if err := im.Restack(second, first, base); err != nil {
		t.Fatal(err)
	}
	if got := im.Layers(); !slices.Equal(got, []*Slice{second, first, base}) {
		t.Errorf("layers %v", got)
	}
	im.Layers()[0] = nil // a copy
	write(1, "c")
	same(t, im, expanded("bca", 0))
	same(t, image(t, first, base), expanded("bba", 0))
	if ids := im.IDs(); len(ids) != 3 || ids[0] != second.ID() {
		t.Errorf("ids %v", ids)
	}
	for name, layers := range map[string][]*Slice{
		"none":           nil,
		"size":           {created(t, 2*BlockSize, Disk)},
		"kind":           {created(t, 3*BlockSize, Memory)},
		"writable below": {created(t, 3*BlockSize, Disk), second, first, base},
		"mixed sizes":    {created(t, 3*BlockSize, Disk), created(t, 2*BlockSize, Disk)},
	} {
		if im.Restack(layers...) == nil {
			t.Errorf("%s: was stacked", name)
		}
	}
	same(t, im, expanded("bca", 0))
}

// TestRestackIsSeenWhole changes between two stacks under readers and writers.
func TestRestackIsSeenWhole(t *testing.T) {
	const blocks = 64
	var stacks [2][]*Slice
	for i, c := range []string{"a", "b"} {
		base, _ := sealed(t, Disk, strings.Repeat(c, blocks), 0)
		stacks[i] = []*Slice{created(t, base.Size(), Disk), base}
	}
	im := image(t, stacks[0]...)
	var wg sync.WaitGroup
	done := make(chan struct{})
	uniform := func(p []byte) bool { return bytes.Equal(p, bytes.Repeat(p[:1], len(p))) }
	for range 2 {
		wg.Go(func() {
			got := make([]byte, im.Size()/2)
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := im.ReadStat(t.Context(), got, 0); err != nil || !uniform(got) {
					t.Errorf("half of one stack and half of the other (%v)", err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 400 {
			// From the middle of a block on, so that a write is several steps.
			p := bytes.Repeat([]byte{byte(i%250 + 1)}, int(im.Size()/2)-100)
			if _, err := im.WriteAt(p, im.Size()/2+50); err != nil {
				t.Error(err)
			}
		}
		close(done)
	})
	wg.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if err := im.Restack(stacks[i%2]...); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	for _, stack := range stacks {
		if got, err := io.ReadAll(io.NewSectionReader(image(t, stack...), im.Size()/2+50, im.Size()/2-100)); err != nil || !uniform(got) {
			t.Errorf("a write is in both stacks (%v)", err)
		}
	}
}

// FuzzForks does what forks do to a disk (write, trim, freeze and restack) and to memory (adopt what is private above the
// former image, settle it in parts), as the input says, and compares with a plain array.
func FuzzForks(f *testing.F) {
	f.Add([]byte{0x00, 3, 9, 0x11, 5, 2, 0x02, 0, 0, 0x03, 1, 30, 0x04, 1, 0, 0x00, 0, 200, 0x04, 0, 0})
	f.Add([]byte{0x03, 0, 255, 0x03, 5, 40, 0x24, 0, 0, 0x02, 0, 0, 0x01, 0, 255, 0x04, 9, 0, 0x04, 9, 9})
	f.Add(bytes.Repeat([]byte{0x00, 7, 77, 0x02, 1, 1, 0x41, 33, 3, 0x03, 200, 90, 0x54, 2, 1, 0x05, 7, 99}, 12))
	f.Fuzz(func(t *testing.T, ops []byte) {
		const blocks, extra = 2*pieceBlocks + 9, 77
		const size = blocks*BlockSize + extra
		dir := t.TempDir()
		count := 0
		path := func() string {
			count++
			return filepath.Join(dir, string(rune('a'+count/26))+string(rune('a'+count%26)))
		}
		var all []*Slice
		defer func() {
			for _, s := range all {
				s.Close()
			}
		}()
		have := func(s *Slice, err error) *Slice {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
			return s
		}
		model := make([]byte, size)
		im := image(t, have(Create(path(), size, Disk)))
		lenders := map[*Slice]*lender{}
		read := func(off, n int) {
			got := make([]byte, n)
			if _, err := im.ReadStat(t.Context(), got, int64(off)); err != nil || !bytes.Equal(got, model[off:off+n]) {
				t.Fatalf("%d bytes at %d differ (%v)", n, off, err)
			}
		}
		for step := 0; len(ops) >= 3 && step < 100; step++ {
			op, a, b := ops[0], int(ops[1]), int(ops[2])
			ops = ops[3:]
			off := (a*BlockSize*2 + int(op>>4)*300) % size
			n := min(b*1000, size-off)
			switch op % 6 {
			case 0:
				p := bytes.Repeat([]byte{byte(step%9 + 1)}, n)
				copy(model[off:], p)
				if _, err := im.WriteAt(p, int64(off)); err != nil {
					t.Fatal(err)
				}
			case 1:
				clear(model[off : off+n])
				if _, err := im.Discard(t.Context(), int64(off), int64(n)); err != nil {
					t.Fatal(err)
				}
			case 2, 3: // a fork; in 3, some of what was frozen is in a suspended process only
				layers := im.Layers()
				layers[0].Freeze()
				if op%6 == 3 {
					from := &lender{content: bytes.Repeat([]byte{0xEE}, size)}
					private := bitset.New(0)
					for i := a; i < min(a+2*b, blocks+1); i += 1 + int(op>>6) {
						private.Set(uint(i))
						block := from.content[i*BlockSize : min((i+1)*BlockSize, size)]
						clear(block)
						if i%3 > 0 {
							copy(block, bytes.Repeat([]byte{byte(i)}, len(block)))
						}
						copy(model[i*BlockSize:], block)
					}
					s := have(Adopt(path(), size, Disk, private, from))
					lenders[s] = from
					layers = append([]*Slice{s}, layers...)
				}
				layers = append([]*Slice{have(Create(path(), size, Disk))}, layers...)
				if err := im.Restack(layers...); err != nil {
					t.Fatal(err)
				}
			case 4: // settle a slice, or begin to
				for s, from := range lenders {
					ctx, cancel := context.WithCancel(t.Context())
					pieces := 0
					from.before = func() error {
						if pieces++; pieces > a%4 {
							cancel()
						}
						return nil
					}
					_, err := s.Settle(ctx)
					cancel()
					from.before = nil
					if err == nil {
						from.end(t)
						clear(from.content)
						delete(lenders, s)
					} else if !errors.Is(err, context.Canceled) {
						t.Fatal(err)
					}
					break
				}
			case 5:
				read(off, n)
			}
		}
		read(0, size)
		for s, from := range lenders {
			if _, err := s.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			from.end(t)
		}
		same(t, im, model)
		for _, s := range all {
			if err := s.Verify(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
}
