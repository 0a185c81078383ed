package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/jobs"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

const (
	hydraHosts = 4
	hydraRanks = 2 // on each
)

// hydra measures a launch without clones beside one by MPICH's launcher, on the same hosts and with the same MPICH.
func (b *bench) hydra(ctx context.Context) error {
	build, err := b.nemesis(ctx)
	if err != nil {
		return err
	}
	dir, err := b.compile(ctx, build.Compiler(), "nemesis", "hello")
	if err != nil {
		return err
	}
	hello := filepath.Join(dir, "hello")
	c, err := testcluster.New(ctx, testcluster.Options{Hosts: 1 + hydraHosts})
	if err != nil {
		return err
	}
	defer c.Close()
	var names, slots []string
	for _, h := range c.Hosts() {
		if err := h.SSHD(ctx); err != nil {
			return errors.Join(err, c.Close())
		}
		if h != c.Host(0) {
			names, slots = append(names, h.Name), append(slots, fmt.Sprintf("%s:%d", h.Name, hydraRanks))
		}
	}
	np := fmt.Sprint(hydraHosts * hydraRanks)
	sides := []*struct {
		name  string
		argv  []string
		times []float64
	}{
		{name: "mpirun-sf --no-clone", argv: []string{b.Binary, "--no-clone", "-q", "-np", np, "--hosts", strings.Join(slots, ","), hello}},
		{name: "hydra", argv: []string{build.Hydra(), "-launcher", "ssh", "-hosts", strings.Join(names, ","), "-ppn", fmt.Sprint(hydraRanks), "-n", np, hello}},
	}
	// The first round is not counted: programs are read, host keys are learnt.
	for round := range b.rounds + 1 {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			j, err := jobs.Run(ctx, limit, func(ctx context.Context) *exec.Cmd {
				h := c.Host(0)
				cmd := h.Command(ctx, s.argv[0], s.argv[1:]...)
				cmd.Dir, cmd.Env = dir, h.Environ()
				return cmd
			})
			if err == nil {
				err = j.Ended()
			}
			if err == nil {
				err = saidHello(j.Wrote, hydraHosts*hydraRanks)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if round > 0 {
				progress("round %d of %d: hello by %s took %.2f s", round, b.rounds, s.name, j.Took.Seconds())
				s.times = append(s.times, j.Took.Seconds())
			}
		}
	}
	what := fmt.Sprintf("hello of MPICH %d ranks on %d hosts by SSH, without clones", hydraHosts*hydraRanks, hydraHosts)
	b.Record.Add("launch_over_hydra", figures.Ratio(what+", by mpirun-sf --no-clone over by hydra", sides[0].times, sides[1].times))
	b.Record.Add("launch_s", figures.Median("s", what+", by mpirun-sf --no-clone", sides[0].times))
	b.Record.Add("hydra_s", figures.Median("s", what+", by hydra", sides[1].times))
	return nil
}

// saidHello is an error unless the output is that of hello with so many ranks.
func saidHello(output string, ranks int) error {
	seen := map[int]bool{}
	for line := range strings.Lines(output) {
		var rank, size int
		if n, _ := fmt.Sscanf(line, "hello from rank %d of %d on", &rank, &size); n == 2 && size == ranks {
			seen[rank] = true
		}
	}
	if len(seen) != ranks {
		return fmt.Errorf("%d of %d ranks said hello", len(seen), ranks)
	}
	return nil
}
