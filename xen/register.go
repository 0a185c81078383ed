package xen

import (
	"context"
	"fmt"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/xen/privcmd"
)

// name is the driver's, and the accelerator's, for there is but one.
const name = "xen"

func init() {
	hypervisor.Register(hypervisor.Kind{
		Name: name,
		Here: func() bool {
			handle, err := privcmd.Open()
			if err != nil {
				return false
			}
			handle.Close()
			return true
		},
		Check: check,
		Probe: func(context.Context) (string, error) { return name, nil },
		Find: func(ctx context.Context, _ string) (hypervisor.Driver, error) {
			d, err := Find(ctx)
			if err != nil {
				return nil, err
			}
			return d, nil
		},
		Modules: []string{"xen_blkfront", "xen_netfront"},
		Sweep:   Sweep,
	})
}

// check is [hypervisor.Kind.Check]: without a driver, and without destroying what others have left.
func check(ctx context.Context) (release string, err error) {
	release = "Xen 4.17 or newer, as domain 0"
	handle, err := privcmd.Open()
	if err != nil {
		return release, err
	}
	defer handle.Close()
	d := &Driver{}
	defer d.Close()
	if err := d.openTools(ctx); err != nil {
		return release, err
	}
	return fmt.Sprintf("Xen %v", handle.Release()), nil
}
