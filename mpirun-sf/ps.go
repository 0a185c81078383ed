package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

func psCommand() *cli.Command {
	return &cli.Command{
		Name:        "ps",
		Usage:       "list the jobs of this machine, and their machines on all hosts",
		Description: "The processor time and the faults are those since a machine's beginning; mpirun-sf top shows those of the moment.",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "as JSON, with all that is known"}},
		Action: func(c *cli.Context) error {
			states, err := readJobs(c.Context)
			if err != nil && len(states) == 0 {
				return err
			}
			if err != nil {
				tui.Notice("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
			}
			if c.Bool("json") {
				return psJSON(os.Stdout, states)
			}
			_, err = io.WriteString(os.Stdout, psText(states))
			return err
		},
	}
}

// readJobs asks each job that was launched on this machine.
func readJobs(ctx context.Context) ([]metrics.State, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("only root may ask jobs what they do: use sudo")
	}
	return metrics.Jobs(ctx, jobsFolder)
}

func psJSON(w io.Writer, states []metrics.State) error {
	if states == nil {
		states = []metrics.State{}
	}
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(states)
}

// psText is each job, with its machines below it.
func psText(states []metrics.State) string {
	jobs := table{head: []column{{"JOB", false}, {"USER", false}, {"RANKS", true}, {"AGE", true}, {"HOSTS", false}, {"COMMAND", false}}}
	for _, s := range states {
		ranks := "-"
		if s.Ranks > 0 {
			ranks = fmt.Sprint(s.Ranks)
		}
		var hosts []string
		for _, h := range s.Hosts {
			hosts = append(hosts, plain(h.Name))
		}
		jobs.add(plain(s.Job), plain(s.User), ranks, age(s.Taken.Sub(s.Began)), strings.Join(hosts, ","), plain(strings.Join(s.Command, " ")))
	}
	lines := jobs.lines(0)
	var b strings.Builder
	b.WriteString(lines[0] + "\n")
	for i, s := range states {
		b.WriteString(lines[i+1] + "\n")
		machines := table{indent: "  ", head: machineColumns}
		rates := s.Rates(metrics.State{})
		for _, m := range s.Machines {
			machines.add(machineCells(m, rates[m.Member])...)
		}
		if len(s.Machines) > 0 {
			b.WriteString(strings.Join(machines.lines(0), "\n") + "\n")
		}
		for _, line := range silentHosts(s) {
			b.WriteString("  " + line + "\n")
		}
	}
	return b.String()
}
