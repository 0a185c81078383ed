package slice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/bits-and-blooms/bitset"
	"golang.org/x/sys/unix"
)

// lender stands for a suspended process: a test ends it, and then nobody may read it.
type lender struct {
	mu      sync.RWMutex // a read holds it
	content []byte
	before  func() error // called by each read
	late    atomic.Int64 // reads after the end
}

func (l *lender) ReadAt(p []byte, off int64) (int, error) {
	if l.before != nil {
		if err := l.before(); err != nil {
			return 0, err
		}
	}
	if !l.mu.TryRLock() {
		l.late.Add(1)
		return 0, errors.New("the process is gone")
	}
	defer l.mu.RUnlock()
	if off >= int64(len(l.content)) {
		return 0, io.EOF
	}
	n := copy(p, l.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// end fails if a read is in flight.
func (l *lender) end(t *testing.T) {
	t.Helper()
	if !l.mu.TryLock() {
		t.Error("the lender is still read")
	}
}

// adopted makes a slice of the blocks of a pattern that are not '0', as raw makes them, lent by what it returns. What the
// slice must not ask for reads as 'x'.
func adopted(t testing.TB, kind Kind, pattern string, extra int) (*Slice, *lender) {
	t.Helper()
	l := &lender{content: bytes.Repeat([]byte("e"), len(pattern)*BlockSize+extra)}
	blocks := bitset.New(uint(len(pattern)) + 1)
	for i, c := range []byte(pattern) {
		block := l.content[i*BlockSize : (i+1)*BlockSize]
		switch c {
		case '0':
			c = 'x'
		case 'z':
			c = 0
			fallthrough
		default:
			blocks.Set(uint(i))
		}
		copy(block, bytes.Repeat([]byte{c}, BlockSize))
	}
	blocks.SetTo(uint(len(pattern)), extra > 0)
	s, err := Adopt(filepath.Join(t.TempDir(), "adopted"), int64(len(l.content)), kind, blocks, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, l
}

// expanded is what a pattern reads as over blocks of 'a'.
func expanded(pattern string, extra int) []byte {
	content := bytes.Repeat([]byte("e"), len(pattern)*BlockSize+extra)
	for i, c := range []byte(strings.NewReplacer("0", "a", "z", "\x00").Replace(pattern)) {
		copy(content[i*BlockSize:], bytes.Repeat([]byte{c}, BlockSize))
	}
	return content
}

func TestAdoptedBlocksAreReadWhereTheyAreAndThenSettled(t *testing.T) {
	for _, c := range []struct {
		name, pattern string
		extra         int
		stored, zero  int64
	}{
		{"one block", "b", 0, 1, 0},
		{"none", "000", 0, 0, 0},
		{"zeros", "zzz", 0, 0, 3},
		{"mixed", "b0z0ccz0", 0, 3, 2},
		{"ends inside a block", "b0", 100, 2, 0},
		{"many pieces", strings.Repeat("bb"+strings.Repeat("0", 300)+"zc", 20) + strings.Repeat("d", 700), 7, 761, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, _ := sealed(t, Memory, strings.Repeat("a", len(c.pattern)), c.extra)
			s, from := adopted(t, Memory, c.pattern, c.extra)
			im := image(t, s, base)
			want := expanded(c.pattern, c.extra)
			same(t, im, want)
			if stored, zero := s.Count(); stored != c.stored+c.zero || zero != 0 || s.Lent() != stored || s.Writable() {
				t.Errorf("adopted: %d stored, %d zero, %d lent", stored, zero, s.Lent())
			}
			mapPath := s.Path() + ".map"
			if err := s.Seal(t.Context(), mapPath); c.stored+c.zero > 0 && (err == nil || !strings.Contains(err.Error(), s.Path())) {
				t.Errorf("sealed while lent: %v", err)
			}
			copied, err := s.Settle(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			from.end(t)
			tail := int64(0)
			if c.extra > 0 {
				tail = int64(c.extra) - BlockSize
			}
			if copied != c.stored*BlockSize+tail {
				t.Errorf("copied %d bytes of %d blocks", copied, c.stored)
			}
			if copied, err := s.Settle(t.Context()); copied != 0 || err != nil {
				t.Errorf("settled again: %d, %v", copied, err)
			}
			same(t, im, want)
			if stored, zero := s.Count(); stored != c.stored || zero != c.zero || s.Lent() != 0 {
				t.Errorf("settled: %d stored, %d zero, %d lent", stored, zero, s.Lent())
			}
			if err := s.Seal(t.Context(), mapPath); err != nil {
				t.Fatal(err)
			}
			reopened, err := Open(s.Path(), mapPath)
			if err != nil {
				t.Fatal(err)
			}
			defer reopened.Close()
			if err := reopened.Verify(t.Context()); err != nil {
				t.Error(err)
			}
			same(t, image(t, reopened, base), want)
			if from.late.Load() != 0 {
				t.Error("the lender was read after Settle")
			}
			var st unix.Stat_t
			if err := unix.Stat(s.Path(), &st); err != nil || st.Blocks*512 > copied+BlockSize || st.Mode&0o777 != 0o600 {
				t.Errorf("the data file takes %d sectors for %d bytes, mode %o (%v)", st.Blocks, copied, st.Mode, err)
			}
		})
	}
}

func TestAdoptRefuses(t *testing.T) {
	taken, _ := raw(t, "a", 0)
	fresh := filepath.Join(t.TempDir(), "fresh")
	for name, adopt := range map[string]func() (*Slice, error){
		"a block beyond the end": func() (*Slice, error) {
			return Adopt(fresh, 3*BlockSize, Memory, bitset.New(9).Set(3), &lender{})
		},
		"a kind that there is not": func() (*Slice, error) { return Adopt(fresh, BlockSize, 7, bitset.New(1), &lender{}) },
		"a file that exists":       func() (*Slice, error) { return Adopt(taken, BlockSize, Memory, bitset.New(1), &lender{}) },
	} {
		if _, err := adopt(); err == nil {
			t.Errorf("%s: was adopted", name)
		}
	}
	if _, err := os.Stat(fresh); err == nil {
		t.Error("a refused Adopt left a file")
	}
}

func TestAFailingLenderIsAnErrorAndNoZeros(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		spoil func(l *lender)
		want  error
	}{
		{"fails", func(l *lender) { l.before = func() error { return broken } }, broken},
		{"ended", func(l *lender) { l.content = nil }, io.ErrUnexpectedEOF},
		{"short", func(l *lender) { l.content = l.content[:BlockSize+100] }, io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, from := adopted(t, Memory, "0b0", 0)
			im := image(t, s)
			whole := from.content
			c.spoil(from)
			for _, p := range [][]byte{make([]byte, 10), make([]byte, BlockSize), make([]byte, 2*BlockSize)} {
				if _, err := im.ReadStat(t.Context(), p, BlockSize); !errors.Is(err, c.want) || !strings.Contains(err.Error(), s.Path()) {
					t.Errorf("read of %d bytes: %v", len(p), err)
				}
			}
			if err := s.Verify(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("verify: %v", err)
			}
			if copied, err := s.Settle(t.Context()); copied != 0 || !errors.Is(err, c.want) || !strings.Contains(err.Error(), s.Path()) {
				t.Errorf("settle: %d, %v", copied, err)
			}
			from.content, from.before = whole, nil
			if copied, err := s.Settle(t.Context()); copied != BlockSize || err != nil {
				t.Errorf("settle when it works again: %d, %v", copied, err)
			}
		})
	}
}

func TestSettleIsCancelledAndResumed(t *testing.T) {
	const blocks = 5*pieceBlocks + 3
	s, from := adopted(t, Disk, strings.Repeat("b", blocks), 0)
	ctx, cancel := context.WithCancel(t.Context())
	reads := 0
	from.before = func() error {
		if reads++; reads == 3 {
			cancel()
		}
		return nil
	}
	first, err := s.Settle(ctx)
	if !errors.Is(err, context.Canceled) || first != 3*pieceBlocks*BlockSize || s.Lent() != blocks-3*pieceBlocks {
		t.Fatalf("cancelled in the third piece: %d bytes copied, %d blocks lent, %v", first, s.Lent(), err)
	}
	if copied, err := s.Settle(ctx); copied != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: %d, %v", copied, err)
	}
	same(t, image(t, s), from.content)
	if second, err := s.Settle(t.Context()); err != nil || first+second != blocks*BlockSize {
		t.Errorf("resumed: %d bytes, %v", second, err)
	}
	from.end(t)
	same(t, image(t, s), from.content)
}

// TestNoReadOfTheLenderOutlivesSettle has readers race with the end of Settle, again and again.
func TestNoReadOfTheLenderOutlivesSettle(t *testing.T) {
	pattern := strings.Repeat("b0cz", 2*pieceBlocks/4) + "dd"
	base, _ := sealed(t, Memory, strings.Repeat("a", len(pattern)), 50)
	want := expanded(pattern, 50)
	for range 10 {
		s, from := adopted(t, Memory, pattern, 50)
		im := image(t, s, base)
		var wg sync.WaitGroup
		done := make(chan struct{})
		for r := range 4 {
			wg.Go(func() {
				got := make([]byte, 32<<10)
				for i := int64(0); ; i++ {
					select {
					case <-done:
						return
					default:
					}
					off := (i*7919 + int64(r)*BlockSize) % (im.Size() - int64(len(got)))
					if _, err := im.ReadStat(t.Context(), got, off); err != nil || !bytes.Equal(got, want[off:off+int64(len(got))]) {
						t.Errorf("read at %d: wrong, %v", off, err)
						return
					}
				}
			})
		}
		for range 2 { // two at once
			wg.Go(func() {
				if _, err := s.Settle(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		if _, err := s.Settle(t.Context()); err != nil {
			t.Error(err)
		}
		from.end(t)
		clear(from.content)
		same(t, im, want)
		close(done)
		wg.Wait()
		if n := from.late.Load(); n != 0 {
			t.Fatalf("%d reads after Settle", n)
		}
	}
}

// TestReadersGoOnWhileALenderIsSlow: a stuck read of Settle does not keep anybody from what is not in its piece.
func TestReadersGoOnWhileALenderIsSlow(t *testing.T) {
	s, from := adopted(t, Memory, strings.Repeat("b", 10)+strings.Repeat("0", pieceBlocks)+"c", 0)
	stuck, free := make(chan struct{}), make(chan struct{})
	var reads atomic.Int64
	from.before = func() error {
		if reads.Add(1) == 1 {
			close(stuck)
			<-free
		}
		return nil
	}
	settled := make(chan error)
	go func() { _, err := s.Settle(t.Context()); settled <- err }()
	<-stuck
	read := make(chan error)
	go func() {
		_, err := image(t, s).ReadStat(t.Context(), make([]byte, BlockSize), (pieceBlocks+10)*BlockSize)
		read <- err
	}()
	select {
	case err := <-read:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a reader waits for Settle's read")
	}
	close(free)
	if err := <-settled; err != nil {
		t.Error(err)
	}
}

// TestSettleOnAFullDisk: what does not fit stays where it is, and readable.
func TestSettleOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1536k,mode=0700"); err != nil {
		t.Fatalf("this test needs root, to mount a small tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	const blocks = 3 * pieceBlocks
	from := &lender{content: bytes.Repeat([]byte("b"), blocks*BlockSize)}
	s, err := Adopt(filepath.Join(dir, "ram"), blocks*BlockSize, Memory, bitset.New(blocks).FlipRange(0, blocks), from)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	copied, err := s.Settle(t.Context())
	if !errors.Is(err, unix.ENOSPC) || copied != pieceBlocks*BlockSize || s.Lent() != 2*pieceBlocks {
		t.Errorf("%d bytes copied, %d blocks lent, %v", copied, s.Lent(), err)
	}
	same(t, image(t, s), from.content)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if copied, err = s.Settle(t.Context()); err != nil || copied != 2*pieceBlocks*BlockSize {
		t.Errorf("with more space: %d bytes, %v", copied, err)
	}
	from.end(t)
	same(t, image(t, s), from.content)
}

func TestCloseEndsTheLending(t *testing.T) {
	s, from := adopted(t, Memory, "bb", 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	from.end(t)
	if _, err := image(t, s).ReadStat(t.Context(), make([]byte, BlockSize), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := s.Settle(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("settle: %v", err)
	}
	if from.late.Load() != 0 {
		t.Error("the lender was read after Close")
	}
}

// ownMemory lends memory of this process, as a hypervisor's is lent: through /proc.
func ownMemory(t testing.TB, size int) (area []byte, from io.ReaderAt) {
	t.Helper()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	area, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	return area, io.NewSectionReader(mem, int64(uintptr(unsafe.Pointer(&area[0]))), int64(size))
}

func TestMemoryThatIsGoneIsAnError(t *testing.T) {
	area, from := ownMemory(t, 4*BlockSize)
	copy(area[BlockSize:], bytes.Repeat([]byte("b"), BlockSize))
	s, err := Adopt(filepath.Join(t.TempDir(), "ram"), 4*BlockSize, Memory, bitset.New(4).Set(1).Set(2), from)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	same(t, image(t, s), area)
	if err := unix.Munmap(area); err != nil {
		t.Fatal(err)
	}
	if _, err := image(t, s).ReadStat(t.Context(), make([]byte, BlockSize), BlockSize); !errors.Is(err, unix.EIO) {
		t.Errorf("memory that is gone: %v", err)
	}
}
