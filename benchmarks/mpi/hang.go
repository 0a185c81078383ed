package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/jobs"
)

const hangRanks = 4

// hangPrograms are examples that send in different ways, and their arguments.
var hangPrograms = [][]string{{"hello"}, {"ring"}, {"pi", "1000000"}, {"alltoall", "4"}}

// hang counts jobs that do not end, of both families. Half of them have two clones with two ranks each, half have four.
func (b *bench) hang(ctx context.Context) error {
	var names []string
	for _, p := range hangPrograms {
		names = append(names, p[0])
	}
	openmpi, err := b.openMPI(ctx, names...)
	if err != nil {
		return err
	}
	families := []*struct {
		name, title, dir string
		endings          jobs.Endings
	}{{name: "mpich", title: "MPICH", dir: b.Examples}, {name: "openmpi", title: "Open MPI", dir: openmpi}}
	shapes := [][]string{nil, {"-ppn", "2"}}
	args := func(dir string, n int) []string {
		program := hangPrograms[n%len(hangPrograms)]
		a := append([]string{"-v", "-np", fmt.Sprint(hangRanks)}, shapes[n/len(hangPrograms)%len(shapes)]...)
		return append(append(a, filepath.Join(dir, program[0])), program[1:]...)
	}
	for _, f := range families {
		for shape := range shapes {
			if err := b.warmUp(ctx, f.dir, args(f.dir, shape*len(hangPrograms))...); err != nil {
				return err
			}
		}
	}
	for n := range b.jobs {
		for _, f := range families {
			a := args(f.dir, n)
			j, err := b.mpirun(ctx, jobs.HangLimit, f.dir, a...)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f.endings.Add(j, err)
			switch {
			case j.Hung:
				progress("mpirun-sf %s did not end within %v; its last lines:\n%s", strings.Join(a, " "), jobs.HangLimit, j.Said)
			case err != nil:
				progress("%v", err)
			}
		}
		if (n+1)%10 == 0 {
			progress("of %d jobs of each family MPICH %v, Open MPI %v", b.jobs, &families[0].endings, &families[1].endings)
		}
	}
	var all jobs.Endings
	for _, f := range families {
		what := fmt.Sprintf("of jobs of %s (%s) with %d ranks on two or four clones", f.title, strings.Join(names, ", "), hangRanks)
		b.Record.Add("hang_rate_"+f.name, f.endings.HangRate(what, jobs.HangLimit))
		b.Record.Add("failure_rate_"+f.name, f.endings.FailureRate(what))
		b.Record.Add("hang_job_s_"+f.name, f.endings.Took())
		all.Join(f.endings)
	}
	b.Record.Add("hang_rate", all.HangRate("of these jobs of both families", jobs.HangLimit))
	return nil
}
