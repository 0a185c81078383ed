package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
)

// pmixRanks are as many clones.
const pmixRanks = 4

// pmix measures a job of Open MPI without orted beside one with it.
func (b *bench) pmix(ctx context.Context) error {
	dir, err := b.openMPI(ctx, "hello")
	if err != nil {
		return err
	}
	hello := filepath.Join(dir, "hello")
	sides := []*struct {
		via   string
		times []float64
	}{{via: "pmix"}, {via: "orted"}}
	argv := func(via string) []string {
		return []string{"-q", "--via", via, "-np", fmt.Sprint(pmixRanks), hello}
	}
	for _, s := range sides {
		if err := b.warmUp(ctx, dir, argv(s.via)...); err != nil {
			return err
		}
	}
	for round := range b.rounds {
		for i := range sides {
			s := sides[(i+round)%len(sides)]
			j, err := b.must(ctx, dir, argv(s.via)...)
			if err == nil {
				err = saidHello(j.Wrote, pmixRanks)
			}
			if err != nil {
				return fmt.Errorf("--via %s: %w", s.via, err)
			}
			progress("round %d of %d: hello of Open MPI via %s took %.2f s", round+1, b.rounds, s.via, j.Took.Seconds())
			s.times = append(s.times, j.Took.Seconds())
		}
	}
	what := fmt.Sprintf("mpirun-sf -np %d hello of Open MPI, fork and join included", pmixRanks)
	b.Record.Add("pmix_over_orterun", figures.Ratio(what+", without orted over by orterun", sides[0].times, sides[1].times))
	b.Record.Add("pmix_s", figures.Median("s", what+", without orted", sides[0].times))
	b.Record.Add("orterun_s", figures.Median("s", what+", by orterun", sides[1].times))
	return nil
}
