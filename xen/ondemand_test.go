package xen

import (
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
	"github.com/mpirun-sf/mpirun-sf/xen/paging"
)

// soon is how long anything but a boot may take on an emulated machine.
const soon = 2 * time.Minute

// onDemand is about the pager of clones whose memory comes as they touch it: how much that is, and what becomes of one without a
// pager.
func (f *frozen) onDemand(t *testing.T) {
	if err := f.d.OnDemand(); err != nil {
		t.Skip(err)
	}
	t.Run("touched", f.touched)
	t.Run("its pager is killed", f.pagerKilled)
}

// running is a clone that was heard.
func (f *frozen) running(t *testing.T) (*conformance.Machine, *vm) {
	t.Helper()
	_, path := f.Near(t)
	begin := time.Now()
	m := f.Clone(t, "clone-1", path)
	t.Logf("heard after %v", time.Since(begin).Round(time.Millisecond))
	return m, m.VM.(*vm)
}

// counters are its pager's.
func (f *frozen) counters(t *testing.T, v *vm) paging.Counters {
	t.Helper()
	answer, err := v.pager.ask(t.Context(), pagerOrder{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Counters
}

// coldPages are those that the guest has not touched since it was booted, and touches when it is told to.
const coldPages = 8 << 20 / pageSize

func (f *frozen) touched(t *testing.T) {
	m, v := f.running(t)
	all := uint64(f.Shape().Memory / pageSize)
	tell := func(when string) paging.Counters {
		t.Helper()
		c := f.counters(t, v)
		info, err := f.d.xen.Info(v.id)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d pages were there at once, %d of %d came as they were touched, by %d requests, of which %d were for one that was there and %d to give one up; Xen has given it %d",
			when, c.Eager, c.Touched, all, c.Requests, c.Again, c.Dropped, info.Pages)
		if c.Eager == 0 || c.Touched == 0 || c.Eager+c.Touched > all/2 {
			t.Errorf("of %d pages, %d were there and %d came", all, c.Eager, c.Touched)
		}
		if more := info.Pages - c.Eager - c.Touched; info.Pages < c.Eager+c.Touched || more > 256 {
			t.Errorf("Xen has given it %d pages, and %d were brought", info.Pages, c.Eager+c.Touched)
		}
		return c
	}
	before := tell("when it was heard")
	m.Order(t, "c")
	for end := time.Now().Add(soon); f.counters(t, v).Touched < before.Touched+coldPages*9/10; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for a clone to touch %d pages", soon, coldPages)
		}
	}
	tell("when it had read 8 MB")
}

func (f *frozen) pagerKilled(t *testing.T) {
	_, v := f.running(t)
	if err := v.pager.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-v.Done():
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to be gone", soon)
	}
	if v.Err() == nil {
		t.Fatal("it is gone without a reason")
	}
	t.Log(v.Err())
}
