package conformance

import (
	"io"
	"os"
	"testing"

	"github.com/bits-and-blooms/bitset"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

// forkAgain: a clone is suspended in its turn, and goes on in a successor with
// the same port, and so does a clone of the clone.
func (s *suite) forkAgain(t *testing.T) {
	step := steps(t)
	first := s.prepare(t, "first-life")
	step("prepared")
	if err := first.Restore(limit(t, soon), s.state); err != nil {
		t.Fatal(err)
	}
	last := first.next(t, soon)
	step("restored and heard")
	goesOn := func(who string, e *ear) {
		t.Helper()
		for range 5 {
			next := e.next(t, soon)
			if next.who != last.who || next.n != last.n+1 || !next.whole {
				t.Fatalf("%s said %v after %v", who, next, last)
			}
			last = next
		}
	}
	goesOn("the clone", first.ear)
	step("counted")
	// Suspended in vain.
	if _, err := first.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	if err := first.Resume(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	goesOn("resumed, the clone", first.ear)
	step("suspended, resumed and counted")

	state, err := first.Suspend(limit(t, soon))
	if err != nil {
		t.Fatal(err)
	}
	last = first.drain(last)
	step("suspended")
	pages, ram, err := first.Dirtied(limit(t, soon))
	if err != nil {
		t.Fatal(err)
	}
	all := uint(s.g.Shape.Memory / 4096)
	if n := pages.Count(); n == 0 || n > all/2 || pages.Len() != all {
		t.Fatalf("a clone that has counted a little has written %d of %d pages, want some of %d", n, pages.Len(), all)
	}
	t.Logf("%d dirtied pages", pages.Count())
	memory := s.forked(t, "second-life", pages, ram)
	clone := memory
	if !s.g.Shared {
		clone = s.forked(t, "grandchild", pages, ram)
	}
	step("copied")
	first.Kill()
	if _, err := ram.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Error("the RAM of a machine that is gone can be read")
	}
	cfg := first.cfg
	cfg.Name, cfg.MemoryPath = "second-life", memory
	second, err := s.d.Prepare(limit(t, soon), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Kill)
	other, channel := s.config(t, "grandchild", clone)
	grandchild, err := s.d.Prepare(limit(t, soon), other)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(grandchild.Kill)
	for _, vm := range []hypervisor.VM{second, grandchild} {
		if err := vm.Restore(limit(t, soon), state); err != nil {
			t.Fatal(err)
		}
	}
	step("two restored")
	at := last
	goesOn("in its second life, the clone", first.ear)
	e := listen(channel)
	opening := e.next(t, soon)
	if opening.who != at.who || opening.n != at.n+1 || !opening.whole {
		t.Errorf("the clone's clone began with %v after the clone's %v", opening, at)
	}
	last = opening
	goesOn("the clone's clone", e)
	step("counted")
}

// forked makes a RAM file of the guest's and of the pages that a clone has written, for the time of a test.
func (s *suite) forked(t *testing.T, name string, pages *bitset.BitSet, ram io.ReaderAt) (path string) {
	t.Helper()
	path = s.copyMemory(t, name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for i := range pages.EachSet() {
		if _, err := ram.ReadAt(page, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(page, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
	}
	return path
}
