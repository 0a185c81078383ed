package slice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// layer makes a frozen slice of a pattern: '0' is absent, 'z' hides what is below, anything else is a block of it. Of the
// last block only tail bytes are in the image, if tail is not 0.
func layer(t testing.TB, kind Kind, pattern string, tail int) *Slice {
	t.Helper()
	s := created(t, sized(pattern, tail), kind)
	for b, c := range []byte(pattern) {
		if c == '0' {
			continue
		}
		p := make([]byte, BlockSize)
		if c != 'z' {
			copy(p[:min(BlockSize, s.size-int64(b)*BlockSize)], bytes.Repeat([]byte{c}, BlockSize))
		}
		if err := s.WriteBlocks(p, int64(b)); err != nil {
			t.Fatal(err)
		}
	}
	s.Freeze()
	return s
}

func sized(pattern string, tail int) int64 {
	if tail > 0 {
		return int64((len(pattern)-1)*BlockSize + tail)
	}
	return int64(len(pattern) * BlockSize)
}

func folded(t testing.TB, upper, lower *Slice) *Slice {
	t.Helper()
	s, err := Fold(t.Context(), filepath.Join(t.TempDir(), "folded"), upper, lower)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFoldAnswersAsBothDid(t *testing.T) {
	for _, c := range []struct {
		name, upper, lower, want string
		tail                     int
	}{
		{"one block", "b", "c", "b", 0},
		{"each of each", "000bbbzzz", "0cz0cz0cz", "0czbbbzzz", 0},
		{"nothing", "000", "000", "000", 0},
		{"ends inside a block", "b00", "0ct", "bct", 100},
		{"long runs", strings.Repeat("b", 5000) + strings.Repeat("0", 3000), strings.Repeat("0", 4900) + strings.Repeat("c", 200) + strings.Repeat("z", 2900),
			strings.Repeat("b", 5000) + strings.Repeat("c", 100) + strings.Repeat("z", 2900), 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := layer(t, Disk, strings.Repeat("a", len(c.want)), c.tail)
			upper, lower := layer(t, Disk, c.upper, c.tail), layer(t, Disk, c.lower, c.tail)
			content := expanded(c.want, 0)[:sized(c.want, c.tail)]
			f := folded(t, upper, lower)
			same(t, image(t, upper, lower, base), content)
			same(t, image(t, f, base), content)
			for b, x := range []byte(c.want) {
				if f.Present(int64(b)) != (x != '0') {
					t.Fatalf("block %d: present %v", b, f.Present(int64(b)))
				}
			}
			if f.ID() == upper.ID() || f.ID() == lower.ID() || f.Writable() {
				t.Error("it is no frozen slice with a name of its own")
			}
			stored, zero := f.Count()
			if want := int64(len(c.want) - strings.Count(c.want, "0") - strings.Count(c.want, "z")); stored != want || zero != int64(strings.Count(c.want, "z")) {
				t.Errorf("%d stored, %d zero", stored, zero)
			}
			var st unix.Stat_t
			if err := unix.Stat(f.Path(), &st); err != nil || st.Blocks*512 > (stored+1)*BlockSize || st.Mode&0o777 != 0o600 {
				t.Errorf("the data file takes %d sectors for %d blocks, mode %o (%v)", st.Blocks, stored, st.Mode, err)
			}
			// It lives on without the two.
			upper.Close()
			lower.Close()
			if err := f.Seal(t.Context(), f.Path()+".map"); err != nil {
				t.Fatal(err)
			}
			again, err := Open(f.Path(), f.Path()+".map")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			same(t, image(t, again, base), content)
		})
	}
}

func TestFoldRefuses(t *testing.T) {
	a, b := layer(t, Memory, "ab", 0), layer(t, Memory, "cd", 0)
	lent, _ := adopted(t, Memory, "ab", 0)
	away, _ := far(t, a)
	gone := layer(t, Memory, "ef", 0)
	gone.Close()
	called, cancel := context.WithCancel(t.Context())
	cancel()
	taken, _ := raw(t, "a", 0)
	fresh := filepath.Join(t.TempDir(), "fresh")
	for name, c := range map[string]struct {
		ctx          context.Context
		path         string
		upper, lower *Slice
		want         string
	}{
		"size":       {t.Context(), fresh, a, layer(t, Memory, "abc", 0), "bytes"},
		"kind":       {t.Context(), fresh, a, layer(t, Disk, "ab", 0), "disk"},
		"writable":   {t.Context(), fresh, created(t, a.Size(), Memory), b, "freeze"},
		"lent":       {t.Context(), fresh, lent, b, "settle"},
		"far":        {t.Context(), fresh, a, away, "another host"},
		"closed":     {t.Context(), fresh, gone, a, "closed"},
		"called off": {called, fresh, a, b, "cancel"},
		"taken":      {t.Context(), taken, a, b, "exists"},
	} {
		if _, err := Fold(c.ctx, c.path, c.upper, c.lower); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(fresh); err == nil {
		t.Error("a refused Fold left a file")
	}
	if _, err := os.Stat(taken); err != nil {
		t.Error("a refused Fold took a file away")
	}
}

// TestFoldKeepsDamageVisible: a block that is damaged before is found to be after.
func TestFoldKeepsDamageVisible(t *testing.T) {
	upper, lower := layer(t, Disk, "0b0", 0), layer(t, Disk, "c0c", 0)
	f, err := os.OpenFile(upper.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), BlockSize+7); err != nil {
		t.Fatal(err)
	}
	if err := folded(t, upper, lower).Verify(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("verify: %v", err)
	}
}

// TestFoldBetweenFileSystems, where the kernel may not copy, and where space ends.
func TestFoldBetweenFileSystems(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		t.Fatalf("this test needs root, to mount a small tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	upper, lower := layer(t, Disk, strings.Repeat("b0", 300), 0), layer(t, Disk, strings.Repeat("0c", 300), 0)
	path := filepath.Join(dir, "folded")
	if _, err := Fold(t.Context(), path, upper, lower); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a failed Fold left a file")
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	f, err := Fold(t.Context(), path, upper, lower)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same(t, image(t, f), expanded(strings.Repeat("bc", 300), 0))
	// Also where it never does.
	plain := copier{to: f.file, plain: true}
	if err := plain.copy(upper.file, 0, f.size); err != nil {
		t.Fatal(err)
	}
	if _, err := image(t, f).ReadStat(t.Context(), make([]byte, BlockSize), BlockSize); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another block was copied there, but a read says %v", err)
	}
}

func TestFoldable(t *testing.T) {
	const size = 700
	with := func(n int) *Slice { return layer(t, Memory, strings.Repeat("a", n)+strings.Repeat("0", size-n), 0) }
	lent, _ := adopted(t, Memory, strings.Repeat("a", 2)+strings.Repeat("0", size-2), 0)
	top := created(t, lent.Size(), Memory)
	far, _ := far(t, with(2))
	for name, c := range map[string]struct {
		layers []*Slice
		keep   int
		want   int
	}{
		"two of one size":           {[]*Slice{with(5), with(5), with(600)}, 1, 0},
		"a lower twice as large":    {[]*Slice{with(5), with(10), with(600)}, 1, 0},
		"a lower that is too large": {[]*Slice{with(5), with(11), with(600)}, 1, -1},
		"the bottom":                {[]*Slice{with(600), with(5)}, 1, -1},
		"the bottom, not kept":      {[]*Slice{with(600), with(5)}, 0, 0},
		"the least of several":      {[]*Slice{with(9), with(9), with(40), with(3), with(3), with(600)}, 1, 3},
		"written":                   {[]*Slice{top, with(0), with(600)}, 1, -1},
		"lent in between":           {[]*Slice{with(2), lent, with(2), with(600)}, 1, -1},
		"on another host":           {[]*Slice{far, with(2), with(600)}, 1, -1},
		"empty ones":                {[]*Slice{with(0), with(0), with(600)}, 1, 0},
		"one":                       {[]*Slice{with(5)}, 0, -1},
		"more kept than there are":  {[]*Slice{with(5), with(5)}, 7, -1},
	} {
		if got := Foldable(c.layers, c.keep); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestChainsOfForksStayShort folds after each of many forks, as a daemon does, and counts what it copies.
func TestChainsOfForksStayShort(t *testing.T) {
	const blocks, forks = 4096, 200
	random := rand.New(rand.NewPCG(1, 2))
	for name, write := range map[string]func(fork int) []int64{
		"the same again": func(int) []int64 { return []int64{1, 2, 3, 4, 5, 6, 7, 8} },
		"always something else": func(fork int) []int64 {
			b := int64(fork) * 8
			return []int64{b, b + 1, b + 2, b + 3, b + 4, b + 5, b + 6, b + 7}
		},
		"a little and much": func(fork int) (w []int64) {
			n := 1
			if fork%16 == 0 {
				n = 60
			}
			for range n {
				w = append(w, random.Int64N(blocks))
			}
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			base, _ := sealed(t, Disk, strings.Repeat("a", blocks), 0)
			model := bytes.Repeat([]byte("a"), blocks)
			im := image(t, base)
			var written, copied int64
			deepest := 0
			for fork := range forks {
				top := created(t, base.Size(), Disk)
				c := byte('b' + fork%20)
				for _, b := range write(fork) {
					if err := top.WriteBlocks(bytes.Repeat([]byte{c}, BlockSize), b); err != nil {
						t.Fatal(err)
					}
					model[b] = c
				}
				top.Freeze()
				n, _ := top.Count()
				written += n
				if err := im.Restack(append([]*Slice{top}, im.Layers()...)...); err != nil {
					t.Fatal(err)
				}
				for {
					layers := im.Layers()
					i := Foldable(layers, 1)
					if i < 0 {
						break
					}
					f := folded(t, layers[i], layers[i+1])
					n, _ := f.Count()
					copied += n
					if err := im.Replace(layers[i], layers[i+1], f); err != nil {
						t.Fatal(err)
					}
					layers[i].Close()
					layers[i+1].Close()
				}
				deepest = max(deepest, len(im.Layers()))
			}
			got := make([]byte, BlockSize)
			for b, want := range model {
				if _, err := im.ReadStat(t.Context(), got, int64(b)*BlockSize); err != nil || got[0] != want {
					t.Fatalf("block %d is %q, want %q (%v)", b, got[0], want, err)
				}
			}
			t.Logf("%d forks: at most %d layers; %d blocks written, %d copied", forks, deepest, written, copied)
			if deepest > 13 || copied > 12*written {
				t.Errorf("at most %d layers, %d blocks copied for %d", deepest, copied, written)
			}
		})
	}
}

func TestReplace(t *testing.T) {
	base, _ := sealed(t, Disk, "aaa", 0)
	lower, upper, top := layer(t, Disk, "0cc", 0), layer(t, Disk, "00b", 0), created(t, base.Size(), Disk)
	im := image(t, upper, lower, base)
	f := folded(t, upper, lower)
	if err := im.Restack(top, upper, lower, base); err != nil { // a fork meanwhile
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"not adjacent": im.Replace(upper, base, f),
		"upside down":  im.Replace(lower, upper, f),
		"at the end":   im.Replace(base, lower, f),
		"not there":    im.Replace(f, lower, f),
		"of a size":    im.Replace(upper, lower, layer(t, Disk, "a", 0)),
	} {
		if err == nil {
			t.Errorf("%s: was replaced", name)
		}
	}
	if err := im.Replace(upper, lower, f); err != nil {
		t.Fatal(err)
	}
	if got := im.Layers(); !slices.Equal(got, []*Slice{top, f, base}) {
		t.Errorf("layers %v", got)
	}
	if _, err := im.WriteAt([]byte("w"), 0); err != nil {
		t.Error(err)
	}
	same(t, image(t, f, base), expanded("acb", 0))
}

// TestFoldsUnderReaders: nobody notices that layers are folded, replaced and closed.
func TestFoldsUnderReaders(t *testing.T) {
	const blocks, depth = 128, 12
	base, _ := sealed(t, Memory, strings.Repeat("a", blocks), 0)
	layers := []*Slice{base}
	want := bytes.Repeat([]byte("a"), blocks)
	for i := range depth {
		pattern := bytes.Repeat([]byte("0"), blocks)
		for b := i; b < blocks; b += depth - i/2 {
			pattern[b], want[b] = byte('b'+i), byte('b'+i)
		}
		layers = append([]*Slice{layer(t, Memory, string(pattern), 0)}, layers...)
	}
	im := image(t, layers...)
	content := expanded(string(want), 0)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			got := make([]byte, 20*BlockSize)
			for i := int64(r); ; i++ {
				select {
				case <-done:
					return
				default:
				}
				off := i * 7919 % (im.Size() - int64(len(got)))
				if _, err := im.ReadStat(t.Context(), got, off); err != nil || !bytes.Equal(got, content[off:off+int64(len(got))]) {
					t.Errorf("read at %d: wrong, %v", off, err)
					return
				}
			}
		})
	}
	for i := Foldable(im.Layers(), 1); i >= 0; i = Foldable(im.Layers(), 1) {
		layers := im.Layers()
		if err := im.Replace(layers[i], layers[i+1], folded(t, layers[i], layers[i+1])); err != nil {
			t.Error(err)
			break
		}
		layers[i].Close()
		layers[i+1].Close()
	}
	close(done)
	wg.Wait()
	same(t, im, content)
	if n := len(im.Layers()); n > 4 {
		t.Errorf("%d layers are left", n)
	}
}

// TestInherit: what a host has of two slices it has of the one that they were folded into on their host.
func TestInherit(t *testing.T) {
	pattern := strings.Repeat("0", pieceBlocks-3)
	upper, lower := layer(t, Memory, "0bbz0z"+pattern+"bb", 0), layer(t, Memory, "ccccc0"+pattern+"0c", 0)
	origin := folded(t, upper, lower)
	u, eu := far(t, upper)
	l, el := far(t, lower)
	read := func(s *Slice, e *elsewhere, blocks ...int64) {
		t.Helper()
		for _, b := range blocks {
			if err := e.bring(t.Context(), b, 1); err != nil {
				t.Fatal(err)
			}
		}
		e.requests()
	}
	last := origin.Blocks() - 1
	read(u, eu, 1, last-1, last)
	read(l, el, 0, 2, 3, 4)
	f, ef := far(t, origin)
	if n, err := f.Inherit(t.Context(), u, l); n != 5 || err != nil {
		t.Errorf("inherited %d, %v", n, err)
	}
	if eu.requests()+el.requests()+ef.requests() != "" {
		t.Error("blocks were brought")
	}
	if got := fmt.Sprint(slices.Collect(f.Awaits(0, f.Blocks()))); got != "[2]" {
		t.Errorf("awaits %v", got)
	}
	want := make([]byte, origin.Size())
	if _, err := image(t, origin).ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	same(t, image(t, f), want)
	called, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Inherit(called, u, l); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	if _, err := f.Inherit(t.Context(), created(t, f.Size(), Memory)); err == nil {
		t.Error("inherited from a slice that is written")
	}
}

// FuzzFold compares a folded stack with one that is not.
func FuzzFold(f *testing.F) {
	f.Add([]byte("0bz0bz"), []byte("00cc"), uint16(0))
	f.Add(bytes.Repeat([]byte("b0z"), 50), bytes.Repeat([]byte("0zc0"), 40), uint16(77))
	f.Fuzz(func(t *testing.T, up, low []byte, extra uint16) {
		const blocks = 130
		tail := int(extra) % BlockSize
		cut := func(pattern []byte) string {
			return string(append(bytes.Clone(pattern), bytes.Repeat([]byte("0"), blocks)...)[:blocks])
		}
		base := layer(t, Memory, strings.Repeat("a", blocks), tail)
		upper, lower := layer(t, Memory, cut(up), tail), layer(t, Memory, cut(low), tail)
		one := folded(t, upper, lower)
		want := bytes.Repeat([]byte("x"), int(base.Size()))
		if _, err := image(t, upper, lower, base).ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		same(t, image(t, one, base), want)
	})
}
