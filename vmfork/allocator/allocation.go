package allocator

import (
	"context"
	"io"
)

// Host is a machine that a resource manager gave to a job, or a user named.
type Host struct {
	Name   string // as the resource manager or the user wrote it; unique in an allocation
	Slots  int    // ranks that may run there, 0: as many as fit
	Memory int64  // bytes that the job may use there, 0: what is free
	CPUs   int    // cores that the job may use there, 0: all that it has
}

// Allocation is what a resource manager gave to one job, and the way to start
// its daemons there. It reserves nothing by itself: what it hands out was given
// before, and is given back by whoever asked for it.
//
// All methods may be called from many goroutines.
type Allocation interface {
	// Hosts are those of the job, in the manager's order, which is the order in
	// which they are filled. It is the same at every call, and the caller's own
	// copy.
	Hosts() []Host

	// Start runs a program on h, which is one of Hosts, as root: by a login as
	// root, or by sudo -n, or because the manager starts it so. program is an
	// executable file of this machine, which is copied there if its content is
	// not there yet. Its working directory is any, its environment that of a
	// login; standard input and output are the Process, without a terminal
	// between; standard error is collected.
	//
	// It returns when the program runs, or is just about to: a program that the
	// far kernel refuses may be known only to Wait. Many may run on one host at
	// once.
	//
	// ctx is for the start alone. When it ends first, nothing is left on the
	// host but perhaps the copied file, and the error wraps ctx's. Once Start has
	// returned it has no meaning any more. Without a deadline in ctx every step
	// has a deadline of the implementation's own.
	//
	// An error is a *[HostError].
	Start(ctx context.Context, h Host, program string, args ...string) (Process, error)

	// Close ends every process that was started, as their Close does, lets go
	// of the connections to the hosts, and makes Start fail. The hosts stay the
	// job's. It may be called more than once.
	Close() error
}

// Process is a program that runs on a host, as a stream: what is written is its
// standard input, what it prints is read. Read, Write, Close and Wait may be
// called at the same time, and Close and Wait from many goroutines and again.
//
// The far process has to end when its input does: that is how a launcher that
// was killed, or a connection that is cut, ends it.
type Process interface {
	// Read returns io.EOF after the last byte that the process printed, also
	// when it has ended long before.
	io.Reader

	// Write blocks while the process does not read, and fails when it has ended.
	io.Writer

	// Close ends the process: its input ends, and if it has not ended by itself
	// after [CloseLimit], it is killed, or where that cannot be done the
	// connection is cut. It returns when that is done. Reads and writes that
	// block return, and what was not read is lost. The error is of the closing
	// only; how the process ended says Wait.
	Close() error

	// Wait returns when the process has ended, and not before, whether its
	// output was read or not: nil if it ended with status 0, and otherwise a
	// *[HostError], around an *[ExitError] if it ended by itself. It wraps
	// [ErrLost] if the connection ended first: then the host may be dead.
	Wait() error
}
