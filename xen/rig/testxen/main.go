// Command testxen runs the tests of this project's Xen driver in the rig (package rig): in dom0 of a Xen that QEMU emulates.
//
//	testxen [-xen stock|paging] [-run REGEXP] [-short] [-v] [PACKAGE]...
//	testxen [-xen stock|paging] [-product] -sh 'COMMANDS'
//
// Without packages it runs all below xen/, and those of mpirun-sf/e2e/xen, which run the launcher: these
// in one rig, the others in another, side by side. With -product, COMMANDS find the launcher and the examples in $MPIRUN_SF_XEN_PRODUCT. With -pv-only the processor has no virtualization. Logs, the
// console, the hypervisor's messages and the coverage are left in the folder of -out. The first run fetches packages, and for -xen
// paging compiles the hypervisor, which takes minutes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	machine "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig"
	"github.com/mpirun-sf/mpirun-sf/xen/rig"
)

// options are the command line.
type options struct {
	flavour  rig.Flavour
	run      string
	short    bool
	verbose  bool
	make     bool
	shell    string
	product  bool
	out      string
	cpus     int
	pvOnly   bool
	hostTime bool
	limit    time.Duration
	oneRig   bool
	packages []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	o, err := parseOptions()
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testxen:", err)
		os.Exit(1)
	}
}

func parseOptions() (o options, err error) {
	flavour := flag.String("xen", string(rig.FlavourStock), "which hypervisor: stock, the distribution's; or paging, its source compiled with memory paging")
	flag.StringVar(&o.run, "run", "", "a regular expression for tests, as go test has it")
	flag.BoolVar(&o.short, "short", false, "let tests be short")
	flag.BoolVar(&o.verbose, "v", false, "print what tests print; has -one-rig")
	flag.BoolVar(&o.oneRig, "one-rig", false, "run all tests one after the other in one rig, and not those that run the launcher beside the others")
	flag.BoolVar(&o.make, "make", false, "fetch and compile what the rig is made of, and run nothing")
	flag.StringVar(&o.shell, "sh", "", "run these commands of a shell in dom0 instead of tests")
	flag.BoolVar(&o.product, "product", false, "bring the launcher and the examples, as tests of packages do that need them")
	flag.StringVar(&o.out, "out", "", "folder for logs and coverage; without it bin/xen-stock or bin/xen-paging")
	flag.IntVar(&o.cpus, "cpus", 1, "processors of the machine; more than one has -host-time")
	flag.BoolVar(&o.pvOnly, "pv-only", false, "give the machine a processor without virtualization, so that Xen makes PV guests only")
	flag.BoolVar(&o.hostTime, "host-time", false, "let the machine's clocks go with this one's, and not count its instructions")
	flag.DurationVar(&o.limit, "limit", 20*time.Minute, "how long the tests of one package may take")
	flag.Parse()
	switch o.flavour = rig.Flavour(*flavour); o.flavour {
	case rig.FlavourStock, rig.FlavourPaging:
	default:
		return o, fmt.Errorf("-xen %s: it is stock or paging", *flavour)
	}
	if o.out == "" {
		o.out = filepath.Join("bin", "xen-"+*flavour)
	}
	if o.cpus < 1 {
		return o, errors.New("-cpus is at least 1")
	}
	o.oneRig = o.oneRig || o.verbose
	if o.packages = flag.Args(); len(o.packages) == 0 {
		o.packages = []string{"./xen/...", "./" + ofProduct + "xen"}
	}
	return o, nil
}

func run(ctx context.Context, o options) error {
	begin := time.Now()
	cache, err := rig.DefaultCache(func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "testxen: %s\n", fmt.Sprintf(format, args...))
	})
	if err != nil {
		return err
	}
	if o.make {
		return cache.Make(ctx, o.flavour)
	}
	dir, remove, err := cache.WorkDir()
	if err != nil {
		return err
	}
	defer remove()
	if err := os.RemoveAll(o.out); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if err := machine.Mendable(); err != nil {
		fmt.Fprintf(os.Stderr, "testxen: guests may stand still: %v\n", err)
	}
	s := &session{options: o, begin: begin, cache: cache, dir: dir}
	if o.shell != "" {
		err = s.runShell(ctx)
	} else {
		err = s.test(ctx)
	}
	fmt.Fprintf(os.Stderr, "testxen: %.0f s in all; logs are in %s\n", time.Since(begin).Seconds(), o.out)
	return err
}
