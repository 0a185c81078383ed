package xen

import (
	"context"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// accelerator is the only one that there is, so there is nothing to choose from.
const accelerator = "xen"

func init() {
	for _, g := range []Guests{PVH, PV} {
		hypervisor.Register(hypervisor.Kind{
			Name:  g.Name(),
			Here:  g.here,
			Check: g.check,
			Probe: func(context.Context) (string, error) { return accelerator, nil },
			Find: func(ctx context.Context, _ string) (hypervisor.Driver, error) {
				d, err := Find(ctx, g)
				if err != nil {
					return nil, err
				}
				return d, nil
			},
			Modules: []string{"xen_blkfront", "xen_netfront"},
			Room:    room,
			Sweep:   Sweep,
		})
	}
}

// here is [hypervisor.Kind.Here].
func (g Guests) here() bool {
	handle, err := privcmd.Open()
	if err != nil {
		return false
	}
	defer handle.Close()
	b, ok := best(handle.Makes())
	return ok && g == b
}

// check is [hypervisor.Kind.Check]: without a driver, and without destroying what others have left.
func (g Guests) check(ctx context.Context) (release string, err error) {
	release = "Xen 4.17 or newer, as domain 0"
	handle, err := privcmd.Open()
	if err != nil {
		return release, err
	}
	defer handle.Close()
	release = fmt.Sprintf("Xen %v", handle.Release())
	if err := g.lacks(handle.Makes()); err != nil {
		return release, err
	}
	d := &Driver{}
	defer d.Close()
	return release, d.openTools(ctx)
}
