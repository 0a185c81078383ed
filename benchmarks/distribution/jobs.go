package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/benchmarks/figures"
	"github.com/mpirun-sf/mpirun-sf/benchmarks/jobs"
	"github.com/mpirun-sf/mpirun-sf/vmfork/testcluster"
)

// farm is a cluster whose hosts have SSH, as users have it.
func (b *bench) farm(ctx context.Context, n int) (*testcluster.Cluster, error) {
	c, err := testcluster.New(ctx, testcluster.Options{Hosts: n, Link: testcluster.Link{Rate: fetchRate}})
	if err != nil {
		return nil, err
	}
	for _, h := range c.Hosts() {
		if err := h.SSHD(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// mpirun runs mpirun-sf on the first host.
func (b *bench) mpirun(ctx context.Context, c *testcluster.Cluster, within time.Duration, args ...string) (jobs.Job, error) {
	return jobs.Run(ctx, within, func(ctx context.Context) *exec.Cmd {
		h := c.Host(0)
		cmd := h.Command(ctx, b.Binary, args...)
		cmd.Dir, cmd.Env = b.Examples, append(h.Environ(), b.environ())
		return cmd
	})
}

// hostList is the argument of --hosts for some hosts with so many slots each.
func hostList(hosts []*testcluster.Host, slots int) string {
	var names []string
	for _, h := range hosts {
		names = append(names, fmt.Sprintf("%s:%d", h.Name, slots))
	}
	return strings.Join(names, ",")
}

// readyLine is what mpirun-sf -v says of each clone.
var readyLine = regexp.MustCompile(`vCPUs running after ([0-9]+) ms, ready after ([0-9]+) ms`)

// clonesReady reads from a launcher's lines when the last clone ran, and when the last was ready, and how many there were.
func clonesReady(said string) (running, ready float64, clones int) {
	for _, m := range readyLine.FindAllStringSubmatch(said, -1) {
		r, _ := strconv.ParseFloat(m[1], 64)
		y, _ := strconv.ParseFloat(m[2], 64)
		running, ready, clones = max(running, r), max(ready, y), clones+1
	}
	return running, ready, clones
}

// wayLine is what mpirun-sf -v says of how hosts get memory.
var wayLine = regexp.MustCompile(`(?:multicast|one other host).*using .*`)

const (
	readyClones = 8 // however many hosts they are on
	readyRounds = 3 // at most, for they take long
)

// readySide are the measurements of one number of hosts.
type readySide struct {
	hosts, slots   int       // slots of each
	ready, running []float64 // ms
	took           []float64 // s, of the whole job
	bytes          []float64 // MB
}

// ready measures clones on one host and on as many hosts as there are clones. The processor time for it is the same, and
// all these hosts have the same cores.
func (b *bench) ready(ctx context.Context) error {
	if err := b.warmUp(ctx, 1); err != nil {
		return err
	}
	c, err := b.farm(ctx, readyClones+1)
	if err != nil {
		return err
	}
	defer c.Close()
	sides := []*readySide{{hosts: 1, slots: readyClones}, {hosts: 2, slots: readyClones / 2}, {hosts: 4, slots: readyClones / 4}, {hosts: 8, slots: readyClones / 8}}
	// The first job copies the program to each host.
	if _, err := b.mpirun(ctx, c, limit, "-q", "-np", fmt.Sprint(readyClones), "--hosts", hostList(c.Hosts()[1:], 1), filepath.Join(b.Examples, "hello")); err != nil {
		return err
	}
	rounds := min(b.rounds, readyRounds)
	for n := range rounds {
		progress("%d clones by mpirun-sf --hosts: round %d of %d", readyClones, n+1, rounds)
		for _, s := range sides {
			before, err := c.Host(0).Traffic()
			if err != nil {
				return err
			}
			j, err := b.mpirun(ctx, c, limit, "-v", "-np", fmt.Sprint(readyClones), "--hosts", hostList(c.Hosts()[1:1+s.hosts], s.slots), filepath.Join(b.Examples, "hello"))
			if err == nil {
				err = j.Ended()
			}
			if err != nil {
				return err
			}
			after, err := c.Host(0).Traffic()
			if err != nil {
				return err
			}
			running, ready, clones := clonesReady(j.Said)
			if clones != readyClones {
				return fmt.Errorf("mpirun-sf -v told of %d clones, not %d", clones, readyClones)
			}
			progress("  on %d hosts: ready after %.0f ms, job of %.1f s, %s", s.hosts, ready, j.Took.Seconds(), wayLine.FindString(j.Said))
			s.ready, s.running, s.took = append(s.ready, ready), append(s.running, running), append(s.took, j.Took.Seconds())
			s.bytes = append(s.bytes, float64(after.SentBytes+after.ReceivedBytes-before.SentBytes-before.ReceivedBytes)/1e6)
		}
	}
	one, eight := sides[0], sides[len(sides)-1]
	b.Record.Add("ready_8_over_1_hosts", figures.Ratio("8 clones from a checkpoint until all have their identity, on 8 hosts over on 1, neither of which has the checkpoint; all hosts share this machine's cores", eight.ready, one.ready))
	b.Record.Add("job_8_over_1_hosts", figures.Ratio("mpirun-sf -np 8 hello on 8 hosts over on 1, logins included", eight.took, one.took))
	b.Record.Add("job_bytes_8_over_1", figures.Ratio("bytes that the link of mpirun-sf's own host carried both ways for mpirun-sf -np 8 hello on 8 other hosts over on 1: memory, disks, shared folders, output", eight.bytes, one.bytes))
	for _, s := range sides {
		at := fmt.Sprintf("_%dhosts", s.hosts)
		b.Record.Add("ready_ms"+at, figures.Median("ms", fmt.Sprintf("8 clones on %d hosts, until all have their identity", s.hosts), s.ready))
		b.Record.Add("running_ms"+at, figures.Median("ms", fmt.Sprintf("8 clones on %d hosts, until all vCPUs run", s.hosts), s.running))
		b.Record.Add("job_s"+at, figures.Median("s", fmt.Sprintf("mpirun-sf -np 8 hello on %d hosts", s.hosts), s.took))
		b.Record.Add("job_mb"+at, figures.Median("MB", fmt.Sprintf("that the link of mpirun-sf's own host carried both ways for mpirun-sf -np 8 hello on %d others, all in all", s.hosts), s.bytes))
	}
	return b.plotReady(sides)
}

// plotReady draws the times over the number of hosts.
func (b *bench) plotReady(sides []*readySide) error {
	p := figures.Plot{Title: "8 clones on one host, or on more, with the same cores", XLabel: "hosts", YLabel: "milliseconds"}
	for _, line := range []struct {
		name   string
		values func(*readySide) []float64
	}{
		{"vCPUs run", func(s *readySide) []float64 { return s.running }},
		{"ready", func(s *readySide) []float64 { return s.ready }},
	} {
		s := figures.Series{Name: line.name}
		for _, side := range sides {
			f := figures.Median("ms", "", line.values(side))
			s.X, s.Y = append(s.X, float64(side.hosts)), append(s.Y, f.Value)
			s.Low, s.High = append(s.Low, f.Spread[0]), append(s.High, f.Spread[1])
		}
		p.Series = append(p.Series, s)
	}
	return p.Save(filepath.Join(b.Out, "distribution-ready.svg"))
}

const (
	hangHosts = 3
	hangRanks = 2 // on each host
)

// hang counts jobs that do not end.
func (b *bench) hang(ctx context.Context) error {
	for _, vcpus := range []int{1, 2} {
		if err := b.warmUp(ctx, vcpus); err != nil {
			return err
		}
	}
	c, err := b.farm(ctx, hangHosts)
	if err != nil {
		return err
	}
	defer c.Close()
	var endings jobs.Endings
	programs := [][]string{{"hello"}, {"ring"}, {"pi", "1000000"}, {"alltoall", "4"}}
	for n := range b.jobs {
		args := []string{"-v", "-np", fmt.Sprint(hangHosts * hangRanks), "--hosts", hostList(c.Hosts(), hangRanks)}
		if n/len(programs)%2 == 1 { // two ranks in one clone, instead of two clones
			args = append(args, "-ppn", fmt.Sprint(hangRanks))
		}
		program := programs[n%len(programs)]
		args = append(append(args, filepath.Join(b.Examples, program[0])), program[1:]...)
		j, err := b.mpirun(ctx, c, jobs.HangLimit, args...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		endings.Add(j, err)
		switch {
		case j.Hung:
			progress("mpirun-sf %s did not end within %v; its last lines:\n%s", strings.Join(args, " "), jobs.HangLimit, j.Said)
		case err != nil:
			progress("%v", err)
		}
		if (n+1)%10 == 0 {
			progress("of %d jobs %v", b.jobs, &endings)
		}
	}
	what := fmt.Sprintf("of MPICH jobs (hello, ring, pi, alltoall) over %d hosts with %d ranks each, half of them with one clone for both,", hangHosts, hangRanks)
	b.Record.Add("hang_rate", endings.HangRate(what, jobs.HangLimit))
	b.Record.Add("failure_rate", endings.FailureRate(what))
	b.Record.Add("hang_job_s", endings.Took())
	return nil
}
