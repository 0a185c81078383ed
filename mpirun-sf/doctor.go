package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/pmi/pmix"
	"github.com/mpirun-sf/mpirun-sf/vmfork/guest"
	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor"
	"github.com/mpirun-sf/mpirun-sf/vmfork/memtap"
	"github.com/mpirun-sf/mpirun-sf/vmfork/network"
)

// checkMachine finds what a job on a kind of hypervisor would miss, as far as that is cheap to know;
// the first thing that is missing is the error.
func checkMachine(name string) error {
	if os.Geteuid() != 0 {
		return errors.New("starting virtual machines needs root here (namespaces, taps, FUSE): run it with sudo")
	}
	for _, dev := range []struct{ path, remedy string }{
		{"/dev/fuse", "load the module (modprobe fuse), or give the container the device"},
		{"/dev/net/tun", "load the module (modprobe tun), or give the container the device"},
	} {
		f, err := os.OpenFile(dev.path, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("%s cannot be opened (%w): %s", dev.path, errors.Unwrap(err), dev.remedy)
		}
		f.Close()
	}
	kind, err := hypervisor.Choose(name)
	if err == nil {
		_, err = kind.Check(context.Background())
	}
	return err
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "check that this machine has what mpirun-sf needs",
		Flags: []cli.Flag{hypervisorFlag()},
		Action: func(c *cli.Context) error {
			bad := 0
			check := func(what string, err error) {
				if err != nil {
					bad++
					fmt.Printf("missing  %s: %v\n", what, err)
					return
				}
				fmt.Printf("ok       %s\n", what)
			}
			var root error
			if os.Geteuid() != 0 {
				root = errors.New("run it with sudo")
			}
			check("root", root)
			kind, err := hypervisor.Choose(c.String("hypervisor"))
			if err != nil {
				return fmt.Errorf("--hypervisor: %w", err)
			}
			name, err := kind.Check(c.Context)
			check(name, err)
			check("FUSE", memtap.Probe())
			check("network namespaces, bridges and taps", network.Probe(c.Context))
			name = "a kernel for guests"
			cache, err := guest.DefaultCache()
			if err == nil {
				var kernel *guest.Kernel
				if kernel, err = cache.FindKernel(c.Context, func(string) {}, kind.Modules...); err == nil {
					name += ": " + kernel.Release
				}
			}
			check(name, err)
			_, err = guest.Progress()
			check("the preload against MPICH's hang in MPI_Finalize", err)
			_, err = pmix.Helper()
			check("PMIx, for programs of Open MPI", err)
			if accel, reason := kind.Probe(c.Context); reason != nil {
				fmt.Printf("slow     %v: clones run under %s\n", reason, strings.ToUpper(accel))
			} else {
				fmt.Println("ok      ", strings.ToUpper(accel))
			}
			if bad > 0 {
				return exitStatus(1)
			}
			return nil
		},
	}
}
