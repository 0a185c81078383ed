package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/conformance"
	machine "github.com/mpirun-sf/mpirun-sf/vmfork/hypervisor/rig"
	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
	"github.com/mpirun-sf/mpirun-sf/xen/rig"
)

// Places in a rig.
const (
	coverDir = "/root/cover"
	logDir   = "/var/log/xen"
)

// testAll names the variable by which tests take their time.
const testAll = "MPIRUN_SF_TEST_ALL"

// A session is one run of this command.
type session struct {
	options
	begin time.Time
	cache *rig.Cache
	dir   string // its own, in the cache
}

// A place is a rig of a session's.
type place struct {
	*rig.Rig
	*session
	name string // for people
	logs string // folder for its logs
}

func (s *session) tell(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testxen: after %.0f s %s\n", time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...))
}

// boot boots a rig, with the launcher in it or without. Its name is that of its folder as well.
func (s *session) boot(ctx context.Context, name, logs string, withProduct bool, with ...string) (*place, error) {
	dir := filepath.Join(s.dir, name)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.MkdirAll(logs, 0o755)); err != nil {
		return nil, err
	}
	o := rig.Options{Flavour: s.flavour, With: with, CPUs: s.cpus, PVOnly: s.pvOnly, HostTime: s.hostTime || s.cpus > 1}
	var env []string
	if withProduct {
		more, its, err := product(ctx, s.cache, dir)
		if err != nil {
			return nil, err
		}
		o.With, o.Free, env = append(o.With, more...), productFree, its
	}
	r, err := rig.Start(ctx, s.cache, dir, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r.Env = append(r.Env, env...)
	p := &place{r, s, name, logs}
	used, err := metrics.ReadProcess(r.PID())
	if err != nil {
		r.Close()
		return nil, err
	}
	s.tell("%s is up: dom0 of Xen %s (%s), %.0f s of a processor", name, r.Xen.Version, s.flavour, used.CPU.Seconds())
	return p, nil
}

// end gathers a rig's logs, also, and above all, of one whose tests failed, and turns it off.
func (p *place) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), time.Minute, errors.New("the rig had not given its logs after a minute"))
	defer cancel()
	err := p.gather(ctx)
	used, uerr := metrics.ReadProcess(p.PID())
	p.Close()
	p.tell("%s has ended: it had %.0f s of a processor", p.name, used.CPU.Seconds())
	return errors.Join(err, uerr)
}

// runShell runs commands instead of tests.
func (s *session) runShell(ctx context.Context) (err error) {
	p, err := s.boot(ctx, "rig", s.out, s.product)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end(ctx)) }()
	res, err := p.Run(ctx, machine.Command{Args: []string{"sh", "-c", s.shell}, Env: p.Env}, os.Stdout, os.Stderr, s.out)
	if err == nil && res.Status != 0 {
		err = fmt.Errorf("the commands ended with status %d", res.Status)
	}
	return err
}

// test compiles the tests and runs them, each part in a rig of its own.
func (s *session) test(ctx context.Context) error {
	b, err := compile(ctx, s.dir, s.packages, "./xen/...")
	if err != nil {
		return err
	}
	s.tell("the tests are compiled")
	covered, err := os.MkdirTemp("", "mpirun-sf-testxen-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(covered)
	parts := b.parts(s.oneRig)
	errs := make([]error, len(parts)+1)
	var work sync.WaitGroup
	for i, p := range parts {
		logs := s.out
		if len(parts) > 1 {
			logs = filepath.Join(s.out, p.name)
		}
		work.Go(func() { errs[i] = s.testPart(ctx, b, p, logs, filepath.Join(covered, p.name)) })
	}
	work.Wait()
	percent, err := coverage(ctx, covered, filepath.Join(s.out, "cover.out"))
	errs[len(parts)] = err
	fmt.Print(percent)
	return errors.Join(errs...)
}

// testPart runs suites one after the other. Their coverage is left in the folder covered.
func (s *session) testPart(ctx context.Context, b *bundle, part part, logs, covered string) (err error) {
	if err := os.Mkdir(covered, 0o700); err != nil {
		return err
	}
	p, err := s.boot(ctx, part.name, logs, part.product, b.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end(ctx)) }()
	if res, err := p.Run(ctx, machine.Command{Args: []string{"mkdir", "-p", coverDir}}, io.Discard, os.Stderr, logs); err != nil || res.Status != 0 {
		return errors.Join(err, fmt.Errorf("mkdir %s ended with status %d", coverDir, res.Status))
	}
	env := append([]string{conformance.ProgramVariable + "=" + b.guest(), testAll + "=" + os.Getenv(testAll)}, p.Env...)
	var failed []string
	for _, suite := range part.suites {
		ok, err := suite.run(ctx, p, env)
		if err != nil {
			return err
		}
		if !ok {
			failed = append(failed, suite.name)
		}
	}
	if _, err := p.Run(ctx, machine.Command{Args: []string{"true"}, Bring: []string{coverDir}}, io.Discard, os.Stderr, covered); err != nil {
		return fmt.Errorf("bring the coverage: %w", err)
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, " "))
	}
	return nil
}

// run runs one suite in a rig. The error is the rig's.
func (s *suite) run(ctx context.Context, p *place, env []string) (ok bool, err error) {
	log, err := os.Create(filepath.Join(p.out, strings.ReplaceAll(s.name, "/", "-")+".log"))
	if err != nil {
		return false, err
	}
	defer log.Close()
	to := io.Writer(log)
	if p.verbose {
		to = io.MultiWriter(log, os.Stdout)
	}
	spent := func() time.Duration {
		used, _ := metrics.ReadProcess(p.PID()) // or it is gone, which will be told
		return used.CPU
	}
	read, err := read(ctx, to, spent)
	if err != nil {
		return false, err
	}
	args := []string{
		s.binary, "-test.v=test2json", "-test.paniconexit0", "-test.gocoverdir=" + coverDir,
		"-test.timeout=" + p.limit.String(), "-test.run=" + p.run, fmt.Sprintf("-test.short=%v", p.short),
	}
	// The binary's own limit comes first, and tells where it hangs.
	rctx, cancel := context.WithTimeoutCause(ctx, p.limit+30*time.Second, fmt.Errorf("the tests of %s had no end after %v", s.name, p.limit))
	defer cancel()
	before := spent()
	res, err := p.Run(rctx, machine.Command{Args: args, Dir: s.dir, Env: env}, read, read, p.logs)
	report, rerr := read.end()
	if err = errors.Join(err, rerr); err != nil {
		return false, err
	}
	ok, report.took, report.cost = res.Status == 0, res.Took, spent()-before
	fmt.Println(report.line(s.name, ok))
	if !ok && !p.verbose {
		said, err := os.ReadFile(log.Name())
		if err != nil {
			return false, err
		}
		fmt.Printf("%s", said)
	}
	return ok, nil
}

// gather brings what the hypervisor, dom0 and Xen's tools have logged.
func (p *place) gather(ctx context.Context) error {
	err := os.WriteFile(filepath.Join(p.logs, "console.log"), []byte(p.Console()), 0o644)
	for name, args := range map[string][]string{"xl-dmesg.log": {"xl", "dmesg"}, "xl-info.log": {"xl", "info"}, "dmesg.log": {"dmesg"}} {
		f, e := os.Create(filepath.Join(p.logs, name))
		if e != nil {
			return errors.Join(err, e)
		}
		_, e = p.Run(ctx, machine.Command{Args: args, Bring: []string{logDir}}, f, f, p.logs)
		err = errors.Join(err, e, f.Close())
		if e != nil {
			break // the next would wait as long
		}
	}
	return err
}
