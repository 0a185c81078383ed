// Command testxen runs the tests of this project's Xen driver in the rig (package rig): in dom0 of a Xen that QEMU emulates.
//
//	testxen [-xen stock|paging] [-run REGEXP] [-short] [-v] [PACKAGE]...
//	testxen [-xen stock|paging] [-product] -sh 'COMMANDS'
//
// Without packages it runs all below xen/, and those of mpirun-sf/e2e/xen, which run the launcher. With -product, COMMANDS
// find it and the examples in $MPIRUN_SF_XEN_PRODUCT. With -pv-only the processor has no virtualization. Logs, the console, the hypervisor's messages and the coverage are left in the folder
// of -out. The first run fetches packages, and for -xen paging compiles the hypervisor, which takes minutes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
	machine "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
	"github.com/mpirun-sf/mpirun-sf/xen/rig"
)

// Places in the rig.
const (
	coverDir = "/root/cover"
	logDir   = "/var/log/xen"
)

// testAll names the variable by which tests take their time.
const testAll = "MPIRUN_SF_TEST_ALL"

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
	flag.BoolVar(&o.verbose, "v", false, "print what tests print")
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
	b := &bundle{}
	var with []string
	if o.shell == "" {
		if b, err = compile(ctx, dir, o.packages, "./xen/..."); err != nil {
			return err
		}
		with = append(with, b.dir)
		fmt.Fprintf(os.Stderr, "testxen: compiled after %.0f s\n", time.Since(begin).Seconds())
	}
	ro := rig.Options{Flavour: o.flavour, CPUs: o.cpus, PVOnly: o.pvOnly, HostTime: o.hostTime || o.cpus > 1}
	var env []string
	if o.product || b.needsProduct() {
		var more []string
		if more, env, err = product(ctx, cache, dir); err != nil {
			return err
		}
		with, ro.Free = append(with, more...), productFree
	}
	ro.With = with
	if err := machine.Mendable(); err != nil {
		fmt.Fprintf(os.Stderr, "testxen: guests may stand still: %v\n", err)
	}
	r, err := rig.Start(ctx, cache, dir, ro)
	if err != nil {
		return err
	}
	r.Env = append(r.Env, env...)
	defer r.Close()
	fmt.Fprintf(os.Stderr, "testxen: dom0 of Xen %s (%s) is up after %.0f s\n", r.Xen.Version, o.flavour, time.Since(begin).Seconds())
	if o.shell != "" {
		err = shell(ctx, r, o)
	} else {
		err = test(ctx, r, o, b)
	}
	// Also, and above all, of a rig whose tests failed.
	gctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), time.Minute, errors.New("the rig had not given its logs after a minute"))
	defer cancel()
	err = errors.Join(err, gather(gctx, r, o))
	used, uerr := metrics.ReadProcess(r.PID())
	err = errors.Join(err, uerr, r.Close())
	fmt.Fprintf(os.Stderr, "testxen: %.0f s in all, of which the rig had %.0f s of a processor; logs are in %s\n", time.Since(begin).Seconds(), used.CPU.Seconds(), o.out)
	return err
}

func shell(ctx context.Context, r *rig.Rig, o options) error {
	res, err := r.Run(ctx, machine.Command{Args: []string{"sh", "-c", o.shell}, Env: r.Env}, os.Stdout, os.Stderr, o.out)
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("the commands ended with status %d", res.Status)
	}
	return err
}

// test runs the suites one after the other.
func test(ctx context.Context, r *rig.Rig, o options, b *bundle) error {
	if res, err := r.Run(ctx, machine.Command{Args: []string{"mkdir", "-p", coverDir}}, io.Discard, os.Stderr, o.out); err != nil || res.Status != 0 {
		return errors.Join(err, fmt.Errorf("mkdir %s ended with status %d", coverDir, res.Status))
	}
	var failed []string
	env := append([]string{conformance.ProgramVariable + "=" + b.guest(), testAll + "=" + os.Getenv(testAll)}, r.Env...)
	for _, s := range b.suites {
		ok, err := s.run(ctx, r, o, env)
		if err != nil {
			return err
		}
		if !ok {
			failed = append(failed, s.name)
		}
	}
	folder, err := os.MkdirTemp("", "mpirun-sf-testxen-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	if _, err := r.Run(ctx, machine.Command{Args: []string{"true"}, Bring: []string{coverDir}}, io.Discard, os.Stderr, folder); err != nil {
		return fmt.Errorf("bring the coverage: %w", err)
	}
	percent, err := coverage(ctx, filepath.Join(folder, filepath.Base(coverDir)), filepath.Join(o.out, "cover.out"))
	if err != nil {
		return err
	}
	fmt.Print(percent)
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, " "))
	}
	return nil
}

// run runs one suite in the rig. The error is the rig's.
func (s *suite) run(ctx context.Context, r *rig.Rig, o options, env []string) (ok bool, err error) {
	log, err := os.Create(filepath.Join(o.out, strings.ReplaceAll(s.name, "/", "-")+".log"))
	if err != nil {
		return false, err
	}
	defer log.Close()
	to := io.Writer(log)
	if o.verbose {
		to = io.MultiWriter(log, os.Stdout)
	}
	read, err := read(ctx, to)
	if err != nil {
		return false, err
	}
	args := []string{
		s.binary, "-test.v=test2json", "-test.paniconexit0", "-test.gocoverdir=" + coverDir,
		"-test.timeout=" + o.limit.String(), "-test.run=" + o.run, fmt.Sprintf("-test.short=%v", o.short),
	}
	// The binary's own limit comes first, and tells where it hangs.
	rctx, cancel := context.WithTimeoutCause(ctx, o.limit+30*time.Second, fmt.Errorf("the tests of %s had no end after %v", s.name, o.limit))
	defer cancel()
	before, err := metrics.ReadProcess(r.PID())
	if err != nil {
		return false, err
	}
	res, err := r.Run(rctx, machine.Command{Args: args, Dir: s.dir, Env: env}, read, read, o.out)
	report, rerr := read.end()
	if err = errors.Join(err, rerr); err != nil {
		return false, err
	}
	after, err := metrics.ReadProcess(r.PID())
	if err != nil {
		return false, err
	}
	ok, report.took, report.cost = res.Status == 0, res.Took, after.CPU-before.CPU
	fmt.Println(report.line(s.name, ok))
	if !ok && !o.verbose {
		said, err := os.ReadFile(log.Name())
		if err != nil {
			return false, err
		}
		fmt.Printf("%s", said)
	}
	return ok, nil
}

// gather brings what the hypervisor, dom0 and Xen's tools have logged.
func gather(ctx context.Context, r *rig.Rig, o options) error {
	err := os.WriteFile(filepath.Join(o.out, "console.log"), []byte(r.Console()), 0o644)
	for name, args := range map[string][]string{"xl-dmesg.log": {"xl", "dmesg"}, "xl-info.log": {"xl", "info"}, "dmesg.log": {"dmesg"}} {
		f, e := os.Create(filepath.Join(o.out, name))
		if e != nil {
			return errors.Join(err, e)
		}
		_, e = r.Run(ctx, machine.Command{Args: args, Bring: []string{logDir}}, f, f, o.out)
		err = errors.Join(err, e, f.Close())
		if e != nil {
			break // the next would wait as long
		}
	}
	return err
}
