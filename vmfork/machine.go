package vmfork

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

// DefaultSocket is where the agent of a virtual machine listens, unless the
// environment variable SF_SOCKET names another path.
const DefaultSocket = "/run/mpirun-sf/sf.sock"

// A Machine is the virtual machine that calls act upon. The zero Machine is the
// caller's own; the functions of this package are its methods. With a name the
// calls are the transitive ones (2.3): they act on a machine that the caller
// owns, which is each that descends from the caller's; the host owns all.
//
// For a program on the host, Socket is the machine's socket there,
// /run/mpirun-sf/vm/NAME/sf.sock, and Name "" is the first machine.
type Machine struct {
	Name   string // as [List] has it; "" is the caller's own
	Socket string // "" is $SF_SOCKET, or else [DefaultSocket]
}

// VM is the machine of that name, to call upon from another.
func VM(name string) Machine { return Machine{Name: name} }

// request is a call upon m.
func (m Machine) request(call string, keyValues ...string) api.Request {
	r := api.NewRequest(call, keyValues...)
	if m.Name != "" {
		r = r.With("vm", m.Name)
	}
	return r
}

// do makes one call over a connection of its own, so that calls which wait
// keep no other from being made. The reply is there beside an error too.
func (m Machine) do(ctx context.Context, r api.Request) (api.Reply, error) {
	if err := r.Check(); err != nil {
		return api.Reply{}, err // without a socket it would be wrong as well
	}
	path := m.Socket
	if path == "" {
		path = os.Getenv("SF_SOCKET")
	}
	if path == "" {
		path = DefaultSocket
	}
	conn, err := api.Dial(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.Reply{}, fmt.Errorf("%w (no %s); start one with: mpirun-sf vm run", ErrOutside, path)
	case ctx.Err() != nil:
		return api.Reply{}, context.Cause(ctx)
	case err != nil:
		return api.Reply{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer conn.Close()
	return conn.Do(ctx, r)
}
