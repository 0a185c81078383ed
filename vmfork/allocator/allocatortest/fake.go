// Package allocatortest has an allocation for tests, whose hosts are all this
// machine, and a suite that every implementation of [allocator.Allocation] has
// to pass.
package allocatortest

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"sync"

	"github.com/mpirun-sf/mpirun-sf/vmfork/allocator"
)

// Fake starts what it is told to start on a host on this machine, as the user
// that the test is.
type Fake struct {
	Stderr func(host, line string) // called for each line of standard error, if it is there

	hosts []allocator.Host

	mu      sync.Mutex
	closed  bool
	started []allocator.Process
}

var _ allocator.Allocation = (*Fake)(nil)

// New is an allocation of these hosts.
func New(hosts ...allocator.Host) *Fake { return &Fake{hosts: hosts} }

// Hosts are those of New.
func (f *Fake) Hosts() []allocator.Host { return slices.Clone(f.hosts) }

// Start runs the program here.
func (f *Fake) Start(ctx context.Context, h allocator.Host, program string, args ...string) (allocator.Process, error) {
	fail := func(err error) (allocator.Process, error) {
		return nil, &allocator.HostError{Host: h.Name, Err: err}
	}
	if ctx.Err() != nil {
		return fail(context.Cause(ctx))
	}
	if !slices.ContainsFunc(f.hosts, func(one allocator.Host) bool { return one.Name == h.Name }) {
		return fail(errors.New("it is not a host of this job"))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fail(errors.New("the allocation has been closed"))
	}
	var notice func(string)
	if f.Stderr != nil {
		notice = func(line string) { f.Stderr(h.Name, line) }
	}
	p, err := allocator.Command(h.Name, exec.Command(program, args...), allocator.CloseLimit, notice)
	if err == nil {
		f.started = append(f.started, p)
	}
	return p, err
}

// Close ends what was started.
func (f *Fake) Close() error {
	f.mu.Lock()
	started := f.started
	f.closed, f.started = true, nil
	f.mu.Unlock()
	var wait sync.WaitGroup
	for _, p := range started {
		wait.Go(func() { p.Close() })
	}
	wait.Wait()
	return nil
}
