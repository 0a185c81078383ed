package step

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// errClosed is why nothing starts any more.
var errClosed = errors.New("the allocation has been closed")

// Allocation starts programs on the hosts of a job by such commands. Its fields
// are not changed once it is used.
type Allocation struct {
	List []allocator.Host
	// Command is one whose far end runs [Shell] or [ShellLine] on h.
	Command func(h allocator.Host) *exec.Cmd
	// Explain is as explain of [Start].
	Explain func(*allocator.ExitError) error

	mu      sync.Mutex
	closed  bool
	running map[*started]struct{}
}

// started is what Close has to end: a start, and then its process.
type started struct {
	stop context.CancelCauseFunc
	done chan struct{}     // the start is over
	p    allocator.Process // nil if it failed; once done
}

var _ allocator.Allocation = (*Allocation)(nil)

// Hosts are those of List.
func (a *Allocation) Hosts() []allocator.Host { return slices.Clone(a.List) }

// Start runs program on h: see [allocator.Allocation].
func (a *Allocation) Start(ctx context.Context, h allocator.Host, program string, args ...string) (allocator.Process, error) {
	fail := func(err error) (allocator.Process, error) {
		return nil, &allocator.HostError{Host: h.Name, Err: err}
	}
	// By its name alone: the rest is what was told about it.
	if !slices.ContainsFunc(a.List, func(one allocator.Host) bool { return one.Name == h.Name }) {
		return fail(errors.New("it is not a host of this job"))
	}
	// The start keeps the caller's deadline; the cause is why it is given up.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s := &started{stop: stop, done: make(chan struct{})}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return fail(errClosed)
	}
	if a.running == nil {
		a.running = map[*started]struct{}{}
	}
	a.running[s] = struct{}{}
	a.mu.Unlock()
	forget := func() {
		a.mu.Lock()
		delete(a.running, s)
		a.mu.Unlock()
	}
	p, err := Start(ctx, h.Name, a.Command(h), program, args, a.Explain)
	s.p = p
	close(s.done)
	if err != nil {
		forget()
		return nil, err
	}
	go func() {
		p.Wait()
		forget()
	}()
	return p, nil
}

// Close ends all of them at once.
func (a *Allocation) Close() error {
	a.mu.Lock()
	a.closed = true
	var wait sync.WaitGroup
	for s := range a.running {
		wait.Go(func() {
			s.stop(errClosed)
			<-s.done
			if s.p != nil {
				s.p.Close()
			}
		})
	}
	a.mu.Unlock()
	wait.Wait()
	return nil
}
