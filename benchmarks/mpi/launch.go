package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/jobs"
)

// launchPlan says what two launchers are measured with.
type launchPlan struct {
	Hosts, Ranks, Rounds      int    // hosts; ranks on each; measurements of each side
	Hello, Hydra, Proxy, SSHD string // programs
}

// launchTimes is what comes of it: seconds by round.
type launchTimes struct{ Ours, Hydra []float64 }

// launch launches on hosts, by mpirun-sf and by hydra in turns. command prepares a program where both are to run.
func (p launchPlan) launch(ctx context.Context, mpirun string, hosts []string, command func(ctx context.Context, argv ...string) *exec.Cmd) (took launchTimes, err error) {
	np := p.Hosts * p.Ranks
	var slots []string
	for _, h := range hosts {
		slots = append(slots, fmt.Sprintf("%s:%d", h, p.Ranks))
	}
	sides := []struct {
		name  string
		argv  []string
		times *[]float64
	}{
		{"mpirun-sf --no-clone", []string{mpirun, "--no-clone", "-q", "-np", fmt.Sprint(np), "--hosts", strings.Join(slots, ","), p.Hello}, &took.Ours},
		{"hydra", []string{p.Hydra, "-launcher", "ssh", "-hosts", strings.Join(hosts, ","), "-ppn", fmt.Sprint(p.Ranks), "-n", fmt.Sprint(np), p.Hello}, &took.Hydra},
	}
	// The first round is not counted: programs are sent and read, host keys are learnt.
	for round := range p.Rounds + 1 {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			j, err := jobs.Run(ctx, limit, func(ctx context.Context) *exec.Cmd { return command(ctx, s.argv...) })
			if err == nil {
				err = j.Ended()
			}
			if err == nil {
				err = saidHello(j.Wrote, np)
			}
			if err != nil {
				return took, fmt.Errorf("%s: %w: %s", s.name, err, j.Said)
			}
			progress("round %d of %d: hello by %s took %.3f s", round, p.Rounds, s.name, j.Took.Seconds())
			if round > 0 {
				*s.times = append(*s.times, j.Took.Seconds())
			}
		}
	}
	return took, nil
}

// recordLaunch adds the figures of launches, whose names end with suffix.
func (b *bench) recordLaunch(suffix, where string, took launchTimes) {
	what := fmt.Sprintf("hello of MPICH with %d ranks on %d %s by SSH, without clones", hydraHosts*hydraRanks, hydraHosts, where)
	b.Record.Add("launch_over_hydra"+suffix, figures.Ratio(what+", by mpirun-sf --no-clone over by hydra", took.Ours, took.Hydra))
	b.Record.Add("launch_s"+suffix, figures.Median("s", what+", by mpirun-sf --no-clone", took.Ours))
	b.Record.Add("hydra_s"+suffix, figures.Median("s", what+", by hydra", took.Hydra))
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
