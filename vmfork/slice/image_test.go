package slice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func created(t testing.TB, size int64, kind Kind) *Slice {
	t.Helper()
	s, err := Create(filepath.Join(t.TempDir(), "top"), size, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestTopmostSliceAnswers(t *testing.T) {
	low, _ := sealed(t, Disk, "aaaa0", 0)
	mid, _ := sealed(t, Disk, "0b0bb", 0)
	top, _ := sealed(t, Disk, "00cc0", 0)
	im := image(t, top, mid, low)
	got := make([]byte, im.Size())
	if _, err := im.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte("abccb") {
		if block := got[i*BlockSize : (i+1)*BlockSize]; !bytes.Equal(block, bytes.Repeat([]byte{want}, BlockSize)) {
			t.Errorf("block %d begins with %q, want %q", i, block[0], want)
		}
	}
	if ids := im.IDs(); len(ids) != 3 || ids[0] != top.ID() || ids[2] != low.ID() {
		t.Errorf("ids %v", ids)
	}
	if n, err := im.ReadAt(got[:100], im.Size()-10); n != 10 || err != io.EOF {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if _, err := im.WriteAt([]byte{1}, 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("write to a sealed stack: %v", err)
	}
}

func TestStackRefusesWhatDoesNotFit(t *testing.T) {
	a, _ := sealed(t, Disk, "ab", 0)
	for name, layers := range map[string][]*Slice{
		"none":           nil,
		"size":           {created(t, 3*BlockSize, Disk), a},
		"kind":           {created(t, 2*BlockSize, Memory), a},
		"writable below": {a, created(t, 2*BlockSize, Disk)},
	} {
		if _, err := NewImage(layers...); err == nil {
			t.Errorf("%s: was stacked", name)
		}
	}
}

// TestWriteFetchesOnlyWhatItMust is section 3.6: a whole block that is written is not fetched.
func TestWriteFetchesOnlyWhatItMust(t *testing.T) {
	base, _ := sealed(t, Disk, "aaaa0a", 10)
	im := image(t, created(t, base.Size(), Disk), base)
	for _, c := range []struct {
		name   string
		off, n int64
		want   Stat
	}{
		{"whole blocks", 0, 2 * BlockSize, Stat{}},
		{"part of a block below", 3 * BlockSize, 512, Stat{Fetched: 1}},
		{"the same again", 3*BlockSize + 512, 512, Stat{Local: 1}},
		{"part of a hole", 4*BlockSize + 5, 5, Stat{Zero: 1}},
		{"end of one, start of another", 2*BlockSize + 4000, BlockSize, Stat{Fetched: 1, Local: 1}},
		{"all of the last, short block", 6 * BlockSize, 10, Stat{}},
		{"part of the last, short block", 6*BlockSize + 3, 2, Stat{Local: 1}},
	} {
		stat, err := im.WriteStat(t.Context(), bytes.Repeat([]byte("w"), int(c.n)), c.off)
		if err != nil || stat != c.want {
			t.Errorf("%s: %+v (%v), want %+v", c.name, stat, err, c.want)
		}
	}
	if stat, err := im.Discard(t.Context(), 5*BlockSize, im.Size()-5*BlockSize); err != nil || stat != (Stat{}) {
		t.Errorf("discard up to the end: %+v (%v)", stat, err)
	}
	for _, bad := range []error{
		func() error { _, err := im.WriteAt(make([]byte, 2), im.Size()-1); return err }(),
		func() error { _, err := im.WriteAt(make([]byte, 2), -1); return err }(),
		func() error { _, err := im.ReadStat(t.Context(), make([]byte, 2), im.Size()-1); return err }(),
		func() error { _, err := im.Discard(t.Context(), im.Size()-1, 2); return err }(),
	} {
		if bad == nil {
			t.Error("a range outside the image was taken")
		}
	}
}

// TestGenerations runs random writes and trims against a plain array over several generations of freezing and forking.
func TestGenerations(t *testing.T) {
	for _, extra := range []int{0, 1234} {
		t.Run(fmt.Sprintf("extra %d", extra), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(7, uint64(extra)))
			base, model := sealed(t, Disk, strings.Repeat("ab0z", 16), extra)
			layers := []*Slice{base}
			for generation := range 4 {
				path := filepath.Join(t.TempDir(), "top")
				top, err := Create(path, base.Size(), Disk)
				if err != nil {
					t.Fatal(err)
				}
				im := image(t, append([]*Slice{top}, layers...)...)
				for range 300 {
					off := rng.Int64N(im.Size())
					n := min(im.Size()-off, rng.Int64N(5*BlockSize))
					if rng.IntN(2) == 0 {
						off, n = off/BlockSize*BlockSize, n/BlockSize*BlockSize
					}
					want := model[off : off+n]
					switch rng.IntN(4) {
					case 0:
						clear(want)
						_, err = im.Discard(t.Context(), off, n)
					case 1:
						clear(want)
						_, err = im.WriteAt(want, off)
					case 2:
						copy(want, bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n)))
						_, err = im.WriteAt(want, off)
					case 3:
						got := make([]byte, n)
						if _, err = im.ReadStat(t.Context(), got, off); !bytes.Equal(got, want) {
							t.Fatalf("generation %d: %d bytes at %d differ", generation, n, off)
						}
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				if err := top.Seal(context.Background(), path+".map"); err != nil {
					t.Fatal(err)
				}
				if _, err := im.WriteAt([]byte{1}, 0); !errors.Is(err, ErrReadOnly) {
					t.Fatalf("write after the freeze: %v", err)
				}
				same(t, im, model)
				top.Close()
				reopened, err := Open(path, path+".map")
				if err != nil {
					t.Fatal(err)
				}
				defer reopened.Close()
				if reopened.ID() != top.ID() {
					t.Errorf("the slice changed its id")
				}
				layers = append([]*Slice{reopened}, layers...)
				same(t, image(t, layers...), model)
			}
		})
	}
}

// same compares an image with an array, and its zero bitmap with what its reads say.
func same(t *testing.T, im *Image, model []byte) {
	t.Helper()
	got := make([]byte, len(model))
	if _, err := im.ReadStat(t.Context(), got, 0); err != nil || !bytes.Equal(got, model) {
		t.Fatalf("image differs (%v)", err)
	}
	all := im.Zeros()
	for b := range blocksOf(im.Size()) {
		stat, err := im.ReadStat(t.Context(), got[:1], b*BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		if zero := stat.Zero == 1; zero != im.Zero(b) || zero != all.Test(uint(b)) {
			t.Fatalf("block %d: read says zero=%v, Zero %v, Zeros %v", b, zero, im.Zero(b), all.Test(uint(b)))
		}
	}
}

func TestZerosOverDataStayAndTakeNoSpace(t *testing.T) {
	base, _ := sealed(t, Memory, strings.Repeat("a", 64), 0)
	top := created(t, base.Size(), Memory)
	im := image(t, top, base)
	if _, err := im.WriteAt(bytes.Repeat([]byte("b"), 64*BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(make([]byte, 64*BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	if stored, zero := top.Count(); stored != 0 || zero != 64 || !top.Present(5) {
		t.Errorf("%d stored, %d zero", stored, zero)
	}
	var st unix.Stat_t
	if err := unix.Stat(top.Path(), &st); err != nil || st.Blocks != 0 {
		t.Errorf("zeros take %d sectors (%v)", st.Blocks, err)
	}
	same(t, im, make([]byte, im.Size()))
}

// TestFullDisk: a write that fails half way leaves every block old or new, and nothing unreadable.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatalf("this test needs root, to mount a small tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	base, model := sealed(t, Disk, strings.Repeat("a", 64), 0)
	top, err := Create(filepath.Join(dir, "top"), base.Size(), Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	im := image(t, top, base)
	if _, err := im.WriteAt(bytes.Repeat([]byte("b"), len(model)), 0); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("writing 256 KB to 64 KB: %v", err)
	}
	got := make([]byte, len(model))
	if _, err := im.ReadStat(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	for b := range 64 {
		if block := got[b*BlockSize : (b+1)*BlockSize]; !bytes.Equal(block, bytes.Repeat(block[:1], BlockSize)) {
			t.Errorf("block %d is torn", b)
		}
	}
}

func TestReadersAndWritersAtOnce(t *testing.T) {
	base, _ := sealed(t, Disk, strings.Repeat("a", 32), 0)
	im := image(t, created(t, base.Size(), Disk), base)
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range 200 {
				n := (i%8 + 1) * 512
				if _, err := im.WriteAt(bytes.Repeat([]byte{byte('b' + w)}, n), int64(i*4096+w*512)%(31*BlockSize)); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			got := make([]byte, im.Size())
			for range 100 {
				if _, err := im.ReadStat(t.Context(), got, 0); err != nil {
					t.Error(err) // a checksum seen with other data would be one
				}
			}
		})
	}
	wg.Wait()
}

func TestReadDoesNotAllocate(t *testing.T) {
	base, _ := sealed(t, Memory, strings.Repeat("a0", 32), 0)
	private, _ := adopted(t, Memory, strings.Repeat("b000z", 12)+"0000", 0)
	im := image(t, private, base)
	buf := make([]byte, 32*BlockSize)
	if n := testing.AllocsPerRun(100, func() { im.ReadStat(t.Context(), buf, 0); im.ReadStat(t.Context(), buf[:512], 1024) }); n != 0 {
		t.Errorf("%v allocations per read", n)
	}
}

func BenchmarkRead(b *testing.B) {
	base, _ := sealed(b, Memory, strings.Repeat("a", 4096), 0)
	im := image(b, base)
	for _, size := range []int64{512, 4 << 10, 32 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("%d", size), func(b *testing.B) {
			buf := make([]byte, size)
			b.SetBytes(size)
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				if _, err := im.ReadStat(b.Context(), buf, i*size%im.Size()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	im := image(b, created(b, 16<<20, Disk))
	buf := bytes.Repeat([]byte("w"), 128<<10)
	b.SetBytes(int64(len(buf)))
	for i := int64(0); b.Loop(); i++ {
		if _, err := im.WriteAt(buf, i*int64(len(buf))%im.Size()); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleImage() {
	dir, err := os.MkdirTemp("", "slice")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk")
	os.WriteFile(disk, bytes.Repeat([]byte("parent\n"), 2000), 0o600)
	base, stats, _ := Seal(context.Background(), disk, disk+".map", Disk, SealOptions{})
	own, _ := Create(filepath.Join(dir, "clone-1"), base.Size(), Disk)
	image, _ := NewImage(own, base)
	image.WriteAt([]byte("clone!"), 7)
	line := make([]byte, 21)
	image.ReadAt(line, 0)
	fmt.Printf("%d blocks\n%s", stats.Stored, line)
	// Output:
	// 4 blocks
	// parent
	// clone!
	// parent
}
