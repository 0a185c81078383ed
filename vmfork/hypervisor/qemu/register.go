package qemu

import (
	"context"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
)

func init() {
	hypervisor.Register(hypervisor.Kind{
		Name: name,
		Check: func(ctx context.Context) (string, error) {
			d, err := Find(ctx, TCG)
			if err != nil {
				return "QEMU 7.2 or newer", err
			}
			return "QEMU " + d.Release, nil
		},
		Probe: func(ctx context.Context) (string, error) {
			accel, reason := Probe(ctx)
			return string(accel), reason
		},
		Accelerators: []string{string(KVM), string(TCG)},
		Anywhere:     string(TCG),
		Find: func(ctx context.Context, accel string) (hypervisor.Driver, error) {
			d, err := Find(ctx, Accel(accel))
			if err != nil {
				return nil, err
			}
			return d, nil
		},
	})
}
