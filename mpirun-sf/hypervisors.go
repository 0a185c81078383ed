package main

import (
	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"

	// The hypervisors that there are.
	_ "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/qemu"
	_ "github.com/mpirun-sf/mpirun-sf/xen"
)

const hypervisorUsage = `    --hypervisor H       qemu, xen, xen-pv, or auto: in domain 0 of a Xen xen, or
                         xen-pv on a processor without virtualization, else qemu
                         (default: MPIRUN_SF_HYPERVISOR, or auto)
`

// hypervisorFlag chooses one of them.
func hypervisorFlag() cli.Flag {
	return &cli.StringFlag{Name: "hypervisor", Value: hypervisor.Auto, EnvVars: []string{"MPIRUN_SF_HYPERVISOR"}}
}
