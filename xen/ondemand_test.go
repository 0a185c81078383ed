package xen

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/xen/paging"
)

// onDemand is about clones whose memory comes as they touch it: how much that is, and what becomes of one that runs when a page
// does not come.
func (f *frozen) onDemand(t *testing.T) {
	if err := f.d.OnDemand(); err != nil {
		t.Skip(err)
	}
	t.Run("touched", f.touched)
	t.Run("lost", f.lostLater)
	t.Run("killed while it waits", f.killedLater)
	t.Run("its pager is killed", f.pagerKilled)
}

// elsewhere is a file of memtap's whose memory another host has, which sends it as gate lets it.
type elsewhere struct {
	path  string
	asked chan struct{} // somebody wants what gate holds back

	mu   sync.Mutex
	gate func(ctx context.Context) error // nil: all comes
}

func (f *frozen) elsewhere(t *testing.T) *elsewhere {
	t.Helper()
	e := &elsewhere{asked: make(chan struct{}, 1)}
	e.path = f.far(t, mount(t), func(ctx context.Context) error {
		e.mu.Lock()
		gate := e.gate
		e.mu.Unlock()
		if gate == nil {
			return nil
		}
		select {
		case e.asked <- struct{}{}:
		default:
		}
		return gate(ctx)
	})
	return e
}

// shut holds back what is wanted from now on.
func (e *elsewhere) shut(gate func(ctx context.Context) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gate = gate
}

// running restores a clone and hears it.
func (f *frozen) running(t *testing.T, memory string) (*vm, net.Conn) {
	t.Helper()
	machine, channel := f.prepare(t, memory)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	begin := time.Now()
	if err := machine.Restore(ctx, f.state); err != nil {
		t.Fatal(err)
	}
	channel.SetReadDeadline(time.Now().Add(soon))
	restored := time.Since(begin)
	if _, err := channel.Read(make([]byte, 1)); err != nil {
		t.Fatalf("hear the clone: %v", err)
	}
	t.Logf("restored in %v, heard after %v", restored.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	go io.Copy(io.Discard, channel) // or it would wait for its port
	channel.SetReadDeadline(time.Time{})
	return machine.(*vm), channel
}

// counters are its pager's.
func (f *frozen) counters(t *testing.T, v *vm) paging.Counters {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	answer, err := v.pager.ask(ctx, pagerOrder{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Counters
}

// coldPages are those that the guest has not touched since it was booted, and touches when it is told to.
const coldPages = 8 << 20 / pageSize

func (f *frozen) touched(t *testing.T) {
	v, channel := f.running(t, f.near(t))
	all := uint64(f.shape.Memory / pageSize)
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
	if _, err := channel.Write([]byte("c")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(soon); f.counters(t, v).Touched < before.Touched+coldPages*9/10; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for a clone to touch %d pages", soon, coldPages)
		}
	}
	tell("when it had read 8 MB")
}

// gone waits for a clone to end by itself, with a reason.
func (f *frozen) gone(t *testing.T, v *vm) {
	t.Helper()
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

// waitFor makes a clone touch what does not come.
func (e *elsewhere) waitFor(t *testing.T, channel net.Conn) {
	t.Helper()
	if _, err := channel.Write([]byte("c")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-e.asked:
	case <-time.After(soon):
		t.Fatalf("waited %v for a clone to touch what it had not touched", soon)
	}
}

func (f *frozen) lostLater(t *testing.T) {
	e := f.elsewhere(t)
	v, channel := f.running(t, e.path)
	e.shut(func(context.Context) error { return errors.New("no such host") })
	e.waitFor(t, channel)
	f.gone(t, v)
}

func (f *frozen) killedLater(t *testing.T) {
	e := f.elsewhere(t)
	v, channel := f.running(t, e.path)
	over := make(chan struct{})
	defer close(over)
	e.shut(func(ctx context.Context) error {
		select {
		case <-ctx.Done():
		case <-over:
		}
		return errors.New("it never came")
	})
	e.waitFor(t, channel)
	begin := time.Now()
	v.Kill()
	t.Logf("gone in %v", time.Since(begin).Round(time.Millisecond))
	if v.Err() != nil {
		t.Errorf("a killed clone ended with %v", v.Err())
	}
}

func (f *frozen) pagerKilled(t *testing.T) {
	v, _ := f.running(t, f.near(t))
	if err := v.pager.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.gone(t, v)
}
