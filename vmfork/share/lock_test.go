package share

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/share/ninep"
)

// A locker is a process in a clone.
type locker struct {
	c   *client
	fid uint32
	pid uint32
}

func (l locker) lock(kind uint8, start, length uint64) uint8 {
	l.c.t.Helper()
	return must[*ninep.Rlock](l.c, &ninep.Tlock{FID: l.fid, Kind: kind, Start: start, Length: length, ProcID: l.pid}).Status
}

func (l locker) wants(want uint8, kind uint8, start, length uint64) {
	l.c.t.Helper()
	if got := l.lock(kind, start, length); got != want {
		l.c.t.Errorf("process %d, kind %d, bytes %d+%d: status %d, want %d", l.pid, kind, start, length, got, want)
	}
}

func TestLockOutlivesAChildThatInheritedTheFile(t *testing.T) {
	s := newService(t, false)
	a, b := s.dial(), s.dial()
	f := a.create("f", ninep.OpenReadWrite)
	parent, child := locker{a, f, 100}, locker{a, f, 101}
	other := locker{b, b.open(ninep.OpenReadWrite, "f"), 100} // a number means nothing in another clone
	parent.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
	child.wants(ninep.LockSuccess, ninep.LockUnlock, 0, 0)
	other.wants(ninep.LockBlocked, ninep.LockRead, 0, 1)
	parent.wants(ninep.LockSuccess, ninep.LockUnlock, 0, 0)
	other.wants(ninep.LockSuccess, ninep.LockRead, 0, 1)
}

func TestReadersInOneCloneUnlockEachTheirOwn(t *testing.T) {
	s := newService(t, false)
	a, b := s.dial(), s.dial()
	first := locker{a, a.create("f", ninep.OpenReadWrite), 1}
	second := locker{a, a.open(ninep.OpenReadOnly, "f"), 2}
	other := locker{b, b.open(ninep.OpenReadWrite, "f"), 3}
	first.wants(ninep.LockSuccess, ninep.LockRead, 0, 10)
	second.wants(ninep.LockSuccess, ninep.LockRead, 5, 10)
	first.wants(ninep.LockSuccess, ninep.LockUnlock, 0, 0)
	other.wants(ninep.LockSuccess, ninep.LockWrite, 0, 5)
	other.wants(ninep.LockBlocked, ninep.LockWrite, 5, 1)
	other.wants(ninep.LockBlocked, ninep.LockWrite, 14, 1)
	other.wants(ninep.LockSuccess, ninep.LockWrite, 15, 0)
	second.wants(ninep.LockSuccess, ninep.LockUnlock, 7, 2)
	other.wants(ninep.LockSuccess, ninep.LockWrite, 7, 2)
	other.wants(ninep.LockBlocked, ninep.LockWrite, 5, 2)

	// A process that closes one of its files unlocks all of them, by itself; a clunk does what came through it.
	a.clunk(first.fid)
	other.wants(ninep.LockBlocked, ninep.LockWrite, 5, 2)
	a.clunk(second.fid)
	other.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
}

// flock(1) in a script: each process that runs it is another one, with the same inherited file.
func TestScriptsLockThroughOneFile(t *testing.T) {
	s := newService(t, false)
	a, b := s.dial(), s.dial()
	f := a.create("f", ninep.OpenReadOnly)
	other := locker{b, b.open(ninep.OpenReadWrite, "f"), 3}
	for pid := range uint32(3) {
		locker{a, f, pid}.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
		locker{a, f, pid}.wants(ninep.LockSuccess, ninep.LockUnlock, 0, 0)
	}
	locker{a, f, 3}.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
	locker{a, f, 4}.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
	other.wants(ninep.LockBlocked, ninep.LockWrite, 0, 0)
	a.clunk(f)
	other.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
}

func TestLockLimit(t *testing.T) {
	s := newService(t, false)
	c := s.dial()
	l := locker{c, c.create("f", ninep.OpenReadWrite), 1}
	for i := range uint64(maxHeld) {
		l.wants(ninep.LockSuccess, ninep.LockWrite, 2*i, 1)
	}
	c.fails(unix.ENOLCK, &ninep.Tlock{FID: l.fid, Kind: ninep.LockWrite, Start: 1 << 20, Length: 1, ProcID: 1})
	l.wants(ninep.LockSuccess, ninep.LockUnlock, 0, 0)
	l.wants(ninep.LockSuccess, ninep.LockWrite, 0, 0)
}

func TestReadOnlyFolderHasReadLocks(t *testing.T) {
	s := newService(t, true)
	write(t, s.path("f"), "")
	c := s.dial()
	l := locker{c, c.open(ninep.OpenReadOnly, "f"), 1}
	l.wants(ninep.LockSuccess, ninep.LockRead, 0, 0)
	c.fails(unix.EBADF, &ninep.Tlock{FID: l.fid, Kind: ninep.LockWrite, ProcID: 1})
}

// The books say of each byte the same as a plain array would.
func TestSpans(t *testing.T) {
	const size, owners = 24, 3
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		file := &lockedFile{}
		var plain [owners][size]bool
		for range 30 {
			owner, first := random.Uint32N(owners), random.Int64N(size)
			where := span{first, first + random.Int64N(size-first)}
			taken := file.take(func(h heldLock) bool { return h.owner == owner }, where)
			for _, b := range spread(t, taken, size) {
				if !plain[owner][b] {
					t.Fatalf("took byte %d, which was not locked", b)
				}
			}
			locks := random.IntN(2) == 0
			if locks {
				file.held = append(file.held, heldLock{owner: owner, span: where})
			}
			for b := where.first; b <= where.last; b++ {
				plain[owner][b] = locks
			}
			for o := range uint32(owners) {
				var spans []span
				for _, h := range file.held {
					if h.owner == o {
						spans = append(spans, h.span)
					}
				}
				var want []int64
				for b := range int64(size) {
					if plain[o][b] {
						want = append(want, b)
					}
				}
				if got := spread(t, spans, size); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("owner %d has %v, want %v", o, got, want)
				}
			}
		}
	}
	if got := (span{0, math.MaxInt64}).without(span{5, math.MaxInt64}); fmt.Sprint(got) != "[{0 4}]" {
		t.Errorf("all but the end: %v", got)
	}
}

// spread lists the bytes of spans, in order. No byte may be in two of them.
func spread(t *testing.T, spans []span, size int64) (all []int64) {
	t.Helper()
	for b := range size {
		n := 0
		for _, s := range spans {
			if s.first <= b && b <= s.last {
				n++
			}
		}
		if n > 1 {
			t.Fatalf("byte %d is in %d spans of %v", b, n, spans)
		}
		if n == 1 {
			all = append(all, b)
		}
	}
	return all
}
