package xen

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakePart notes what it is told.
type fakePart struct {
	mu   sync.Mutex // guards all below
	told []string
	err  error
}

func (p *fakePart) tell(what string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, what)
	return p.err
}

func (p *fakePart) Drain(context.Context) error { return p.tell("drain") }
func (p *fakePart) Resume()                     { p.tell("resume") }
func (p *fakePart) Close(context.Context) error { return p.tell("close") }

func (p *fakePart) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// The process of a disk does what it is told, says what is wrong, and ends with who tells it, or with the disk.
func TestServeDisk(t *testing.T) {
	p := &fakePart{}
	in, orders := io.Pipe()
	answers, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serveDisk(p, in, out) }()
	d := &disk{orders: json.NewEncoder(orders), answers: json.NewDecoder(answers), done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := d.await(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Drain(ctx); err != nil {
		t.Error(err)
	}
	d.Resume()
	if err := d.Drain(ctx); err != nil {
		t.Error(err)
	}
	if want := []string{"drain", "resume", "drain"}; !reflect.DeepEqual(p.told, want) {
		t.Errorf("it was told to %v, want %v", p.told, want)
	}
	p.mu.Lock()
	p.err = errors.New("the guest's ring is bad")
	p.mu.Unlock()
	if err := d.Drain(ctx); err == nil || err.Error() != "the guest's ring is bad" {
		t.Errorf("a disk that failed drains with %v", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, p.err) {
			t.Errorf("it ended with %v", err)
		}
	case <-ctx.Done():
		t.Error("a disk that failed goes on")
	}
	late, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if err := d.await(late); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits too long hears %v", err)
	}
	for said, want := range map[string]string{"": "", `"burn"`: `told to "burn"`} {
		err := serveDisk(&fakePart{}, strings.NewReader(said), io.Discard)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("told %q, it ends with %v, want %q", said, err, want)
		}
	}
}

// A process that cannot serve says why. Here it has no domain to serve.
func TestDiskOfNoDomain(t *testing.T) {
	if _, err := os.Stat(self); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	v := &vm{d: &Driver{}, ctx: ctx}
	v.id = 32000 // the first that Xen does not give
	v.cfg.DiskPath = "/nowhere"
	if _, err := v.startDisk(ctx); err == nil || !strings.Contains(err.Error(), "/nowhere") && !strings.Contains(err.Error(), "XenStore") {
		t.Errorf("it says %v", err)
	}
}
