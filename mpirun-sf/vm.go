package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork"
	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/api"
)

const vmUsage = `mpirun-sf vm run starts a virtual machine and runs a command in it; it ends with that.
Inside, sf and mpirun-sf fork it.

Usage:
    mpirun-sf vm run [options] [--] [COMMAND [ARGUMENTS]]
    mpirun-sf vm ls                 the machines that run, and their clones
    mpirun-sf vm exec NAME [COMMAND [ARGUMENTS]]
                                    run one more command in a machine or a clone
    mpirun-sf vm ssh NAME [COMMAND [ARGUMENTS]]
                                    the same through ssh; for scp -O, rsync and others:
                                    ssh -F /run/mpirun-sf/vm/VM/ssh_config NAME
                                    a NAME is a machine's, a clone's, or MACHINE/CLONE
    mpirun-sf vm VERB --vm NAME     a verb of the VM fork API from outside: request-ticket,
                                    ticket, clone, checkpoint, create-clones, discard,
                                    join, kill; as sf VERB inside (mpirun-sf sf --help)

Example:
    $ sudo mpirun-sf vm run --with /usr/bin/make -- sh -c 'make && mpirun-sf -np 4 ./hello'

Without a command it is a login shell.

Options of vm run:
    --name NAME          how others call it (default parent)
    --memory SIZE        RAM, of each clone too (default 1G)
    --cpus N             virtual CPUs (default: this machine's cores)
    --share DIR[:ro]     a folder to share with it and its clones (default: the
                         working directory); may be repeated
    --hosts H[:N],...    hosts that carry its clones; also --hostfile, --slurm, --service,
                         --distribution, as for a job
    --hypervisor NAME, --accel NAME     what its clones and it run on, as for a job
    --nat, --allow DEST, --rate RATE    let it and its clones reach the outside
    --forward PORT:PORT  a port of this machine is the parent's
    --with PATH          a program, file or folder to have in it; may be repeated
    --hook FILE          an executable that runs in each clone before its first process
                         goes on; may be repeated
    --free SIZE          free space on its disk
    --image FILE         a disk image of your own, raw or qcow2, instead of a guest
                         made from this machine
    -wdir DIR            run in DIR instead of the working directory
    -env NAME VALUE      set a variable for the command; may be repeated
    --start-timeout T    how long it may take to start (default 2m)
    --window SIZE, --hypervisor H, --accel kvm|tcg, -q, -v, --log-format json
                         as for mpirun-sf itself

The exit status is the command's, 128+N if signal N killed it.
`

// apiVerbs are those of sf that may be called from the host.
var apiVerbs = []string{"request-ticket", "ticket", "clone", "checkpoint", "create-clones", "discard", "join", "kill"}

func vmCommand() *cli.Command {
	cmd := &cli.Command{
		Name:               "vm",
		Usage:              "a virtual machine with a shell, which can be forked",
		CustomHelpTemplate: vmUsage,
		Subcommands: []*cli.Command{
			{Name: "run", Usage: "start a machine and run a command in it", ArgsUsage: "[COMMAND ...]", CustomHelpTemplate: vmUsage, Flags: vmFlags(), Action: vmRunAction},
			{Name: "ls", Usage: "list the machines that run", CustomHelpTemplate: vmUsage, Action: vmList},
			{Name: "exec", Usage: "run a command in a machine", ArgsUsage: "NAME [COMMAND ...]", CustomHelpTemplate: vmUsage, SkipFlagParsing: true, Action: vmExec},
			{Name: "ssh", Usage: "the same through ssh", ArgsUsage: "NAME [COMMAND ...]", CustomHelpTemplate: vmUsage, SkipFlagParsing: true, Action: vmSSH},
			{Name: "connect", Hidden: true, ArgsUsage: "NAME", Action: vmConnect},
		},
	}
	for _, verb := range apiVerbs {
		cmd.Subcommands = append(cmd.Subcommands, &cli.Command{
			Name: verb, Usage: "as sf " + verb + ", from outside", ArgsUsage: "--vm NAME ...", SkipFlagParsing: true,
			Action: func(c *cli.Context) error { return vmVerb(c.Context, verb, c.Args().Slice()) },
		})
	}
	return cmd
}

func vmFlags() []cli.Flag {
	return append(append(hostFlags(), wayFlags()...), []cli.Flag{
		&cli.StringFlag{Name: "name", Value: "parent"},
		&cli.StringFlag{Name: "memory", Value: "1G"},
		&cli.IntFlag{Name: "cpus", Value: runtime.NumCPU()},
		&cli.StringSliceFlag{Name: "share", KeepSpace: true},
		&cli.StringSliceFlag{Name: "with", KeepSpace: true},
		&cli.StringSliceFlag{Name: "hook", KeepSpace: true},
		&cli.StringFlag{Name: "free", Value: "0"},
		&cli.StringFlag{Name: "image"},
		&cli.StringFlag{Name: "wdir"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"genv"}, KeepSpace: true},
		&cli.DurationFlag{Name: "start-timeout", Value: 2 * time.Minute},
		&cli.StringFlag{Name: "window", Value: "32K"},
		hypervisorFlag(),
		&cli.StringFlag{Name: "accel"},
		&cli.BoolFlag{Name: "q", Aliases: []string{"quiet"}},
		&cli.BoolFlag{Name: "v", Aliases: []string{"verbose"}},
		&cli.StringFlag{Name: "log-format", Value: "text"},
		&cli.StringFlag{Name: "trace"},
	}...)
}

// normaliseVM is normalise for a command line of vm run, and changes no other.
func normaliseVM(args []string) []string {
	if len(args) < 3 || args[1] != "vm" || args[2] != "run" {
		return args
	}
	return append(args[:2:2], normalise(vmFlags(), args[2:])...)
}

// vmOptions are a command line of vm run.
type vmOptions struct {
	options     // memory is the machine's, ppn its virtual CPUs
	name        string
	with, hooks []string
	free        int64 // bytes
	dirGiven    bool
}

func parseVMOptions(c *cli.Context) (o vmOptions, err error) {
	o = vmOptions{
		options: options{
			np: 1, ppn: c.Int("cpus"), image: c.String("image"), accel: c.String("accel"),
			startLimit: c.Duration("start-timeout"), env: c.StringSlice("env"), argv: c.Args().Slice(),
		},
		name: c.String("name"), dirGiven: c.IsSet("wdir"),
	}
	if err := takeOutputOptions(c); err != nil {
		return o, err
	}
	if err := parseCommon(c, &o.options); err != nil {
		return o, err
	}
	if !api.IsName(o.name) || strings.HasPrefix(o.name, ".") || strings.HasPrefix(o.name, "clone-") {
		return o, fmt.Errorf("--name %s: it is letters, digits and dashes, and does not begin as the clones' names do, with clone-", o.name)
	}
	if o.ppn < 1 || o.ppn > 255 {
		return o, fmt.Errorf("--cpus %d: a machine has from 1 to 255 virtual CPUs", o.ppn)
	}
	if o.free, err = parseSize(c.String("free")); err != nil {
		return o, fmt.Errorf("--free %s: it is a size such as 512M or 2G", c.String("free"))
	}
	if o.with, err = existing("--with", c.StringSlice("with")); err != nil {
		return o, err
	}
	if o.hooks, err = existing("--hook", c.StringSlice("hook")); err != nil {
		return o, err
	}
	for _, h := range o.hooks {
		if st, err := os.Stat(h); err == nil && (!st.Mode().IsRegular() || st.Mode()&0o111 == 0) {
			return o, fmt.Errorf("--hook %s: it is not an executable file", h)
		}
	}
	return o, nil
}

// existing makes paths absolute, and wants something to be there.
func existing(option string, paths []string) (out []string, err error) {
	for _, p := range paths {
		abs, err := filepath.Abs(p)
		if err == nil {
			_, err = os.Stat(abs)
		}
		if err != nil || p == "" {
			return nil, fmt.Errorf("%s %s: there is no such file or folder", option, p)
		}
		out = append(out, abs)
	}
	return out, nil
}

func vmRunAction(c *cli.Context) error {
	o, err := parseVMOptions(c)
	if err != nil {
		return err
	}
	return runVM(c.Context, o)
}

func vmList(c *cli.Context) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "VM\tNAME\tMEMBER\tIP\tCLONE OF\tTICKET\tID")
	for _, vm := range runningVMs() {
		members, err := vm.list(c.Context)
		if errors.Is(err, vmfork.ErrOutside) {
			continue // it is starting
		}
		if err != nil {
			tui.Notice("%s does not answer: %v", vm.name, err)
			continue
		}
		for _, m := range members {
			of := "-"
			if i := slices.IndexFunc(members, func(p api.Machine) bool { return p.Member == m.Parent }); i >= 0 {
				of = members[i].Name
			}
			ticket, id := "-", "-"
			if m.Ticket != "" {
				ticket, id = m.Ticket, fmt.Sprint(m.ID)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", vm.name, m.Name, m.Member, m.IP, of, ticket, id)
		}
	}
	return w.Flush()
}

func vmExec(c *cli.Context) error {
	args := c.Args().Slice()
	if len(args) == 0 {
		return errors.New("vm exec: which machine? mpirun-sf vm ls shows them")
	}
	vm, member, err := findMachine(c.Context, args[0])
	if err != nil {
		return err
	}
	if args = args[1:]; len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	return atConsole(c.Context, agent.Over(vm.attach(member.Member)), command{argv: args, name: args0(args), vm: member.Name})
}

func args0(args []string) string {
	if len(args) == 0 {
		return "the shell"
	}
	return args[0]
}

// vmVerb calls a verb of sf's upon a machine of this host.
func vmVerb(ctx context.Context, verb string, args []string) error {
	name, args := takeVM(args)
	if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		sfMain([]string{"--help"}, os.Stdout, os.Stderr)
		return nil
	}
	vm, member, err := findMachine(ctx, name)
	if err != nil {
		return err
	}
	os.Setenv("SF_SOCKET", vm.socket())
	if member.Member != 0 {
		args = append([]string{"--vm", member.Name}, args...)
	}
	err = sfRun(ctx, append([]string{verb}, args...), os.Stdout)
	if err != nil && !errors.As(err, new(exitStatus)) {
		tui.Error(err)
	}
	if status := sfStatus(err); status != 0 {
		return exitStatus(status)
	}
	return nil
}

// takeVM takes the first --vm NAME out of a verb's arguments.
func takeVM(args []string) (name string, rest []string) {
	for i, a := range args {
		if name, joined := strings.CutPrefix(a, "--vm="); joined {
			return name, slices.Concat(args[:i], args[i+1:])
		}
		if a == "--vm" && i+1 < len(args) {
			return args[i+1], slices.Concat(args[:i], args[i+2:])
		}
	}
	return "parent", args
}
