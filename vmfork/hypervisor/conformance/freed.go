package conformance

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance/counter"
)

// most is so much of what a guest has freed as must be reported: of the rest the
// kernel keeps some for whoever wants memory next.
const most = counter.Taken * 3 / 4

// used is how much the guest's RAM file has of its file system, in bytes.
func (p *Parent) used(t *testing.T) int64 {
	t.Helper()
	var is unix.Stat_t
	if err := unix.Stat(p.memory, &is); err != nil {
		t.Fatal(err)
	}
	return is.Blocks * 512
}

// reports: what a guest takes is in its RAM file, and what it frees is not any more.
func (p *Parent) reports(t *testing.T, m *Machine) {
	t.Helper()
	// What the boot has freed is reported first.
	before := p.settled(t, p.used)
	m.Order(t, "t")
	m.obeyed(t, 1, soon)
	taken := p.used(t) // some was there: what is free in small pieces is not reported
	if taken < before+most {
		t.Errorf("the RAM file has %d KB, and %d when the guest has taken %d", before>>10, taken>>10, counter.Taken>>10)
	}
	begin := time.Now()
	m.Order(t, "f")
	if p.last = m.obeyed(t, 2, soon); !p.last.whole {
		t.Errorf("after it freed some, the guest's memory is %v", p.last)
	}
	p.falls(t, taken, p.used)
	t.Logf("of %d KB that were %d before, %d are left after %v", taken>>10, before>>10, p.used(t)>>10, time.Since(begin).Round(time.Millisecond))
}

// freed: what a guest had freed is not fetched when its clone takes it, and what the
// clone frees is not its own any more.
func (p *Parent) freed(t *testing.T) {
	tap, path := p.Near(t)
	m := p.Clone(t, "clone-1", path)
	own := func(t *testing.T) int64 { return p.traits.Own(t, m.VM) }
	before, fetched := own(t), tap.Counters(file).BytesFetched
	m.Order(t, "t")
	m.obeyed(t, p.last.obeyed+1, soon)
	taken := own(t)
	if taken < before+most {
		t.Errorf("a clone that has taken %d KB has %d of its own, and had %d", counter.Taken>>10, taken>>10, before>>10)
	}
	if more := tap.Counters(file).BytesFetched - fetched; more > counter.Taken/2 {
		t.Errorf("%d KB were fetched for what nobody had", more>>10)
	} else {
		t.Logf("%d KB were fetched for %d", more>>10, counter.Taken>>10)
	}
	m.Order(t, "f")
	m.obeyed(t, p.last.obeyed+2, soon)
	p.falls(t, taken, own)
	m.Order(t, "c")
	if c := m.obeyed(t, p.last.obeyed+3, soon); !c.whole {
		t.Errorf("after it freed some, a clone's memory is %v", c)
	}
	if _, err := m.Suspend(limit(t, soon)); err != nil {
		t.Fatal(err)
	}
	pages, _, err := m.Dirtied(limit(t, soon))
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(pages.Count()) * 4096; n > counter.Taken-most {
		t.Errorf("%d KB are a clone's own that has freed %d", n>>10, counter.Taken>>10)
	} else {
		t.Logf("%d KB are its own", n>>10)
	}
	c := tap.Counters(file)
	if c.Punches == 0 || c.Errors != 0 {
		t.Errorf("memtap has heard of %d holes, %d errors (%v)", c.Punches, c.Errors, tap.Err(file))
	}
}

// falls waits until of what was taken most is gone.
func (p *Parent) falls(t *testing.T, taken int64, now func(*testing.T) int64) {
	t.Helper()
	for end := time.Now().Add(soon); now(t) > taken-most; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for the guest to report what it freed: of %d KB, %d are left", soon, taken>>10, now(t)>>10)
		}
	}
}

// settled waits until what is measured has not changed for as long as Linux takes to
// report.
func (p *Parent) settled(t *testing.T, now func(*testing.T) int64) int64 {
	t.Helper()
	is, since := now(t), time.Now()
	for end := time.Now().Add(soon); time.Since(since) < 2500*time.Millisecond; time.Sleep(50 * time.Millisecond) {
		if next := now(t); next != is {
			is, since = next, time.Now()
		}
		if time.Now().After(end) {
			break // it does something; what it takes shows all the same
		}
	}
	return is
}
