package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mpirun-sf/mpirun-sf/vmfork/metrics"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name:        "top",
		Usage:       "show what the machines of all jobs do, again and again",
		Description: "q ends it. Without a terminal, or with -n, one picture comes after the other. The first shows what was since a machine's beginning.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "d", Value: 2 * time.Second, Usage: "the `TIME` between two pictures"},
			&cli.IntFlag{Name: "n", Usage: "end after `COUNT` pictures"},
		},
		Action: func(c *cli.Context) error {
			if c.Duration("d") < 100*time.Millisecond {
				return fmt.Errorf("-d %v: it is a time from 100ms", c.Duration("d"))
			}
			if c.IsSet("n") && c.Int("n") < 1 {
				return fmt.Errorf("-n %d: it is from 1 on", c.Int("n"))
			}
			// What cannot be asked is told before the terminal is taken.
			if _, err := readJobs(c.Context); err != nil && os.Geteuid() != 0 {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			v := &view{read: readJobs, interval: c.Duration("d"), count: c.Int("n"), out: os.Stdout}
			if term.IsTerminal(int(os.Stdout.Fd())) && !c.IsSet("n") {
				return v.onTerminal(ctx)
			}
			return v.run(ctx, nil)
		},
	}
}

// view shows the state of jobs, again and again.
type view struct {
	read     func(context.Context) ([]metrics.State, error)
	interval time.Duration
	count    int // 0 for no end
	out      io.Writer

	size   func() (width, height int) // nil: not a terminal
	before map[string]metrics.State   // by job
}

// run draws until ctx ends, a key tells so, or count is reached.
func (v *view) run(ctx context.Context, keys <-chan byte) error {
	tick := time.NewTicker(v.interval)
	defer tick.Stop()
	for i := 1; ; i++ {
		states, err := v.read(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := v.draw(states, err); err != nil {
			return err
		}
		if i == v.count {
			return nil
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				wait = false
			case key, ok := <-keys:
				switch {
				case !ok:
					keys = nil // nothing more can be typed
				case strings.IndexByte("qQ\x03\x04", key) >= 0:
					return nil
				case key == ' ' || key == '\r':
					wait = false
				}
			}
		}
	}
}

func (v *view) draw(states []metrics.State, failed error) error {
	width, height := 0, 0
	if v.size != nil {
		width, height = v.size()
	}
	lines := topLines(time.Now(), v.before, states, failed, width)
	v.before = map[string]metrics.State{}
	for _, s := range states {
		v.before[s.Job] = s
	}
	if v.size == nil {
		_, err := fmt.Fprintln(v.out, strings.Join(lines, "\n")+"\n")
		return err
	}
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	_, err := io.WriteString(v.out, "\033[H"+strings.Join(lines, "\033[K\r\n")+"\033[K\033[J")
	return err
}

// topLines is one picture: all machines, the busiest first.
func topLines(now time.Time, before map[string]metrics.State, states []metrics.State, failed error, width int) []string {
	type one struct {
		job string
		m   metrics.Machine
		r   metrics.Rate
	}
	var all []one
	var notes []string
	hosts := map[string]bool{}
	var sum metrics.Rate
	for _, s := range states {
		rates := s.Rates(before[s.Job])
		for _, m := range s.Machines {
			r := rates[m.Member]
			all = append(all, one{s.Job, m, r})
			sum.CPU += r.CPU
			sum.Faults += r.Faults
		}
		for _, h := range s.Hosts {
			hosts[h.Name] = true
		}
		notes = append(notes, silentHosts(s)...)
	}
	if failed != nil {
		notes = append(notes, strings.Split(failed.Error(), "\n")...)
	}
	slices.SortStableFunc(all, func(a, b one) int {
		return cmp.Or(cmp.Compare(b.r.CPU, a.r.CPU), strings.Compare(a.job, b.job), cmp.Compare(a.m.Member, b.m.Member))
	})
	lines := []string{fmt.Sprintf("mpirun-sf top - %s  %s, %s on %s, %.1f processors, %.0f faults/s",
		now.Format(time.TimeOnly), plural(len(states), "job"), plural(len(all), "machine"), plural(len(hosts), "host"), sum.CPU, sum.Faults)}
	for _, n := range notes {
		lines = append(lines, plain(n))
	}
	t := table{head: append([]column{{"JOB", false}}, machineColumns...)}
	for _, o := range all {
		t.add(append([]string{plain(o.job)}, machineCells(o.m, o.r)...)...)
	}
	lines = append(append(lines, ""), t.lines(0)...)
	for i := range lines {
		lines[i] = cut(lines[i], width)
	}
	return lines
}

// onTerminal runs on a screen of its own, and gives the terminal back as it was.
func (v *view) onTerminal(ctx context.Context) error {
	screen := int(os.Stdout.Fd())
	v.size = func() (int, int) {
		w, h, err := term.GetSize(screen)
		if err != nil || w < 1 || h < 1 {
			return 80, 24
		}
		return w, h
	}
	var keys chan byte
	if keyboard := int(os.Stdin.Fd()); term.IsTerminal(keyboard) {
		as, err := term.MakeRaw(keyboard)
		if err != nil {
			return fmt.Errorf("take the terminal: %w", err)
		}
		defer term.Restore(keyboard, as)
		keys = make(chan byte)
		go readKeys(os.Stdin, keys)
	}
	io.WriteString(v.out, "\033[?1049h\033[?25l")
	defer io.WriteString(v.out, "\033[?25h\033[?1049l")
	if err := v.run(ctx, keys); err != nil && !errors.Is(err, syscall.EIO) { // EIO: the terminal is gone
		return err
	}
	return nil
}

// readKeys passes on what is typed, to the end.
func readKeys(from io.Reader, keys chan<- byte) {
	defer close(keys)
	for b := make([]byte, 1); ; {
		if n, err := from.Read(b); n > 0 {
			keys <- b[0]
		} else if err != nil {
			return
		}
	}
}
