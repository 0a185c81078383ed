package allocator

import (
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// StartLimit is how many hosts are started on at once: each costs the launcher
// a handshake, and what starts them (a login server, a manager) has limits of
// its own.
const StartLimit = 32

// StartAll starts a program on hosts of an allocation, all or none, with the
// arguments that args says for each. meet, if not nil, is called with each
// process once it has started, and says whether the host can be used; it has to
// return when ctx ends. After an error nothing runs any more, and the error is
// a [*HostErrors] of all hosts that cannot be used, so that they can be set
// right at once. Only if ctx ended is it ctx's error.
//
// The result has a process for each of hosts.
func StartAll(ctx context.Context, a Allocation, hosts []Host, program string, args func(Host) []string, meet func(context.Context, Host, Process) error) ([]Process, error) {
	processes := make([]Process, len(hosts))
	errs := make([]error, len(hosts))
	turn := make(chan struct{}, StartLimit)
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if errs[i] = ctx.Err(); errs[i] != nil {
				return
			}
			p, err := a.Start(ctx, h, program, args(h)...)
			if err == nil && meet != nil {
				err = meetOne(ctx, h, p, meet)
			}
			processes[i], errs[i] = p, err
		})
	}
	wait.Wait()
	err := CollectErrors(hosts, errs)
	if err == nil {
		return processes, nil
	}
	for _, p := range processes {
		if p != nil {
			wait.Go(func() { p.Close() })
		}
	}
	wait.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, err
}

// meetOne finds out why a process ended where all that meet saw was that it
// did.
func meetOne(ctx context.Context, h Host, p Process, meet func(context.Context, Host, Process) error) error {
	err := meet(ctx, h, p)
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) {
		p.Close()
		if ended := p.Wait(); ended != nil {
			return ended
		}
	}
	return err
}
