package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
)

// The VM fork API for shells. What a verb prints on standard output is made for
// $(...) and read: words with one space between them, no headings, and "-" for
// what there is not. Errors go to standard error, a line each, after "sf: ".

// sfExample is run by a test.
const sfExample = `    #!/bin/sh
    # Render frames 1 to 12 in up to 4 clones, into the shared folder frames.
    t=$(sf request-ticket 4) || exit        # reserve clones
    m=$(sf ticket "$t" | wc -l)             # as many as were granted
    id=$(sf clone "$t") || exit             # returns in the parent and in m clones
    if [ "$id" -gt 0 ]; then                # in clone number $id
        for n in $(seq "$id" "$m" 12); do
            render "$n" > "frames/$n" || sf exit 1
        done
        sf exit                             # the clone ends here
    fi
    sf join "$t" || exit                    # in the parent: until all have exited
    cat frames/*
`

const sfUsage = `sf forks the virtual machine that it is called in: every process in it, this shell
too, is then in the parent and in each clone.

Usage:
    sf request-ticket N [--hierarchical] [--vcpus K]
                          reserve N clones, or with --hierarchical N processors;
                          prints the ticket
    sf ticket TICKET      its clones, a line each: ID NAME IP VCPUS HOST
    sf clone TICKET       fork; prints 0 in the parent, and in a clone its id
    sf exit [STATUS]      in a clone: end it
    sf join [-t SECONDS] TICKET
                          wait until its clones have ended; prints ID STATUS, or
                          ID lost, for each; -t 0 does not wait
    sf kill TICKET [ID]   end its clones, or one, whose status is then 137
    sf checkpoint         keep the machine as it is now; prints CHECKPOINT 0, and
                          CHECKPOINT ID in each clone that is made of it later
    sf create-clones CHECKPOINT TICKET
                          make clones of it, which come out of sf checkpoint
    sf discard CHECKPOINT give it up
    sf whoami             ID NAME IP VCPUS HOST MEMBER TICKET
    sf await-fork         wait for a fork by anybody; in the clone: ID TICKET
    sf list               the job's machines: NAME MEMBER IP PARENT TICKET ID
    sf env                SF_ID SF_TICKET SF_IP SF_NAME SF_MEMBER, for eval "$(sf env)"

    --vm NAME             act on another machine, which this one is an ancestor of;
                          on all verbs but await-fork, list and env

Example:
` + sfExample + `
A checkpoint is used the same way; its one line holds two words:
    set -- $(sf checkpoint) && c=$1 id=$2

Standard output of what was running goes nowhere in a clone, and standard input is
silent; files in shared folders and the exit status are what a clone leaves. A clone
that does not come to sf exit goes on, and keeps sf join waiting.

The exit status is 0; 1 after an error; 2 after a wrong command line; 124 when the
time of join -t is over. That of join is also the first clone's, by id, that did not
exit with 0.
`

// sfVerb is one of sf's commands, with from min to max arguments.
type sfVerb struct {
	min, max int
	vm       bool // takes --vm
	run      func(*sfCall, context.Context) error
}

var sfVerbs = map[string]sfVerb{
	"request-ticket": {1, 1, true, (*sfCall).requestTicket},
	"ticket":         {1, 1, true, (*sfCall).ticket},
	"clone":          {1, 1, true, (*sfCall).clone},
	"checkpoint":     {0, 0, true, (*sfCall).checkpoint},
	"create-clones":  {2, 2, true, (*sfCall).createClones},
	"discard":        {1, 1, true, (*sfCall).discard},
	"exit":           {0, 1, true, (*sfCall).exit},
	"join":           {1, 1, true, (*sfCall).join},
	"kill":           {1, 2, true, (*sfCall).kill},
	"whoami":         {0, 0, true, (*sfCall).whoami},
	"await-fork":     {0, 0, false, (*sfCall).awaitFork},
	"list":           {0, 0, false, (*sfCall).list},
	"env":            {0, 0, false, (*sfCall).env},
}

// errSFUsage marks mistakes of the command line.
var errSFUsage = errors.New("sf --help shows the verbs")

const timeIsOver = 124 // as timeout(1) has it

// sfMain runs sf with these arguments, and returns its exit status.
func sfMain(args []string, out, errOut io.Writer) int {
	if slices.ContainsFunc(args, func(a string) bool { return a == "-h" || a == "-help" || a == "--help" }) ||
		len(args) == 1 && args[0] == "help" {
		fmt.Fprint(out, sfUsage)
		return 0
	}
	err := sfRun(context.Background(), args, out)
	if err != nil && !errors.As(err, new(exitStatus)) {
		fmt.Fprintf(errOut, "sf: %s\n", strings.Join(strings.Fields(err.Error()), " "))
	}
	return sfStatus(err)
}

// sfStatus is the exit status of a verb that ended with err.
func sfStatus(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.Is(err, errSFUsage), errors.Is(err, vmfork.ErrInvalid):
		return 2
	case errors.Is(err, context.DeadlineExceeded):
		return timeIsOver
	}
	return 1
}

// sfCall is one call of a verb.
type sfCall struct {
	vm           vmfork.Machine
	args         []string
	out          io.Writer
	hierarchical bool
	vcpus        int
	limit        time.Duration // of join; negative if there is none
}

func sfRun(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no verb; %w", errSFUsage)
	}
	verb, ok := sfVerbs[args[0]]
	if !ok {
		return fmt.Errorf("there is no verb %s; %w", args[0], errSFUsage)
	}
	c := &sfCall{out: out, limit: -1}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	if verb.vm {
		flags.StringVar(&c.vm.Name, "vm", "", "")
	}
	switch args[0] {
	case "request-ticket":
		flags.BoolVar(&c.hierarchical, "hierarchical", false, "")
		flags.IntVar(&c.vcpus, "vcpus", 0, "")
	case "join":
		flags.Func("t", "", func(s string) error {
			seconds, err := strconv.ParseFloat(s, 64)
			if err != nil || !(seconds >= 0 && seconds <= 1e6) {
				return errors.New("seconds from 0 to 1000000 are wanted")
			}
			c.limit = time.Duration(seconds * float64(time.Second))
			return nil
		})
	}
	// Options may stand before, between and after the arguments.
	for rest := args[1:]; ; {
		if err := flags.Parse(rest); err != nil {
			return fmt.Errorf("%s: %w; %w", args[0], err, errSFUsage)
		}
		if flags.NArg() == 0 {
			break
		}
		c.args = append(c.args, flags.Arg(0))
		rest = flags.Args()[1:]
	}
	switch n := len(c.args); {
	case n < verb.min:
		return fmt.Errorf("%s wants %d more argument(s); %w", args[0], verb.min-n, errSFUsage)
	case n > verb.max:
		return fmt.Errorf("%s does not take %s; %w", args[0], c.args[verb.max], errSFUsage)
	}
	return verb.run(c, ctx)
}

// print writes a line of words. A failure is an error, for a ticket that
// nobody has read is lost.
func (c *sfCall) print(words ...any) error {
	for i, w := range words {
		if w == "" {
			words[i] = "-"
		}
	}
	if _, err := fmt.Fprintln(c.out, words...); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// number is an argument that is a number; what a number may be, the call knows.
func (c *sfCall) number(i int) (int, error) {
	n, err := strconv.Atoi(c.args[i])
	if err != nil {
		return 0, fmt.Errorf("%q is no number; %w", c.args[i], errSFUsage)
	}
	return n, nil
}

func (c *sfCall) requestTicket(ctx context.Context) error {
	n, err := c.number(0)
	if err != nil {
		return err
	}
	var options []vmfork.TicketOption
	if c.hierarchical {
		options = append(options, vmfork.Hierarchical())
	}
	if c.vcpus != 0 {
		options = append(options, vmfork.VCPUs(c.vcpus))
	}
	t, err := c.vm.RequestTicket(ctx, n, options...)
	if err != nil {
		return err
	}
	return c.print(t.ID)
}

func (c *sfCall) ticket(ctx context.Context) error {
	t, err := c.vm.LookUpTicket(ctx, c.args[0])
	for _, clone := range t.Clones {
		if err == nil {
			err = c.print(clone.ID, clone.Name, clone.IP, clone.VCPUs, clone.Host)
		}
	}
	return err
}

func (c *sfCall) clone(ctx context.Context) error {
	id, err := c.vm.Clone(ctx, vmfork.Ticket{ID: c.args[0]})
	if err != nil {
		return err
	}
	return c.print(id)
}

func (c *sfCall) checkpoint(ctx context.Context) error {
	checkpoint, id, err := c.vm.CheckpointParent(ctx)
	if err != nil {
		return err
	}
	return c.print(checkpoint, id)
}

func (c *sfCall) createClones(ctx context.Context) error {
	return c.vm.CreateClones(ctx, vmfork.Checkpoint(c.args[0]), vmfork.Ticket{ID: c.args[1]})
}

func (c *sfCall) discard(ctx context.Context) error {
	return c.vm.Discard(ctx, vmfork.Checkpoint(c.args[0]))
}

func (c *sfCall) exit(context.Context) error {
	status := 0
	if len(c.args) > 0 {
		var err error
		if status, err = c.number(0); err != nil {
			return err
		}
	}
	return c.vm.Exit(status)
}

func (c *sfCall) join(ctx context.Context) error {
	t := vmfork.Ticket{ID: c.args[0]}
	join := c.vm.Join
	switch {
	case c.limit == 0:
		join = c.vm.TryJoin
	case c.limit > 0:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.limit)
		defer cancel()
	}
	statuses, joined := join(ctx, t)
	ended := map[int]any{}
	for id, status := range statuses {
		ended[id] = status
	}
	var lost *vmfork.LostError
	if errors.As(joined, &lost) {
		for _, id := range lost.Clones {
			ended[id] = "lost"
		}
	}
	first := 0
	for _, id := range slices.Sorted(maps.Keys(ended)) {
		if err := c.print(id, ended[id]); err != nil {
			return err
		}
		if first == 0 {
			first = statuses[id]
		}
	}
	switch {
	case joined != nil:
		return joined
	case first != 0:
		return exitStatus(first)
	}
	return nil
}

func (c *sfCall) kill(ctx context.Context) error {
	t := vmfork.Ticket{ID: c.args[0]}
	if len(c.args) == 1 {
		return c.vm.Kill(ctx, t)
	}
	id, err := c.number(1)
	if err != nil {
		return err
	}
	return c.vm.KillClone(ctx, t, id)
}

func (c *sfCall) whoami(ctx context.Context) error {
	i, err := c.vm.Whoami(ctx)
	if err != nil {
		return err
	}
	return c.print(i.ID, i.Name, i.IP, i.VCPUs, i.Host, i.Member, i.Ticket)
}

func (c *sfCall) awaitFork(ctx context.Context) error {
	id, ticket, err := vmfork.AwaitFork(ctx)
	if err != nil {
		return err
	}
	return c.print(id, ticket)
}

func (c *sfCall) list(ctx context.Context) error {
	members, err := vmfork.List(ctx)
	for _, m := range members {
		parent := ""
		if m.Parent >= 0 {
			parent = strconv.Itoa(m.Parent)
		}
		if err == nil {
			err = c.print(m.Name, m.Member, m.IP, parent, m.Ticket, m.ID)
		}
	}
	return err
}

// env needs no quotes: names, numbers and addresses are all there is in it.
func (c *sfCall) env(ctx context.Context) error {
	i, err := vmfork.Whoami(ctx)
	if err != nil {
		return err
	}
	return c.print("export", "SF_ID="+strconv.Itoa(i.ID), "SF_TICKET="+i.Ticket, "SF_IP="+i.IP.String(),
		"SF_NAME="+i.Name, "SF_MEMBER="+strconv.Itoa(i.Member))
}

// asSF tells whether the program was started as sf, by that name or as its own
// first argument, and with which arguments.
func asSF(args []string) ([]string, bool) {
	switch {
	case args[0] == "sf" || strings.HasSuffix(args[0], string(os.PathSeparator)+"sf"):
		return args[1:], true
	case len(args) > 1 && args[1] == "sf":
		return args[2:], true
	}
	return nil, false
}
