package evtchn

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

func TestPair(t *testing.T) {
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 3 {
		if err := errors.Join(a.Notify(), b.Wait(ctx), b.Notify(), a.Wait(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := a.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited in vain: %v", err)
	}
	if err := errors.Join(b.Notify(), a.Wait(ctx)); err != nil {
		t.Errorf("after a wait in vain: %v", err)
	}
	time.AfterFunc(10*time.Millisecond, func() { a.Close() })
	if err := a.Wait(ctx); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a channel that was closed: %v", err)
	}
	b.Close()
}

func TestBind(t *testing.T) {
	c, err := Bind(32000, 1)
	if errors.Is(err, hypervisor.ErrNotSupported) {
		t.Skip(err)
	}
	if err == nil {
		c.Close()
		t.Fatal("a channel of a domain that is not there was bound")
	}
	t.Log(err)
}
