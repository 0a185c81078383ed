package vmfork

import (
	"errors"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// Errors to compare with, by errors.Is. What an error says of itself is longer.
var (
	ErrInvalid     = api.ErrInvalid     // an argument is not what it can be
	ErrUnknown     = api.ErrUnknown     // no such ticket, checkpoint or machine, or no longer
	ErrRefused     = api.ErrRefused     // not yours, or not allowed here: Exit in a machine that is no clone
	ErrState       = api.ErrState       // not now: the ticket has made its clones, or not yet
	ErrResources   = api.ErrResources   // not a single clone can be granted
	ErrFailed      = api.ErrFailed      // the fork failed; the text says where, a hook by name
	ErrLost        = api.ErrLost        // a clone ended without Exit; see [LostError]
	ErrTimeout     = api.ErrTimeout     // not all clones have ended
	ErrKilled      = api.ErrKilled      // the ticket was killed meanwhile
	ErrCloned      = api.ErrCloned      // this copy of the caller is in a clone that somebody else's fork made
	ErrVersion     = api.ErrVersion     // agent and daemon do not fit
	ErrUnavailable = api.ErrUnavailable // the agent or the daemon has gone

	// ErrOutside means that there is no socket: this is no machine that could fork.
	ErrOutside = errors.New("not inside a virtual machine of mpirun-sf")
)

// A LostError is what Join returns if clones have ended without Exit,
// as after a crash. It is an [ErrLost].
type LostError struct {
	Clones   []int       // ids of the lost ones
	Statuses map[int]int // of the others, by id
	err      error
}

func (e *LostError) Error() string { return e.err.Error() }

// Unwrap makes the kind of the error visible to errors.Is.
func (e *LostError) Unwrap() error { return e.err }
