// Command mpirun-sf clones a virtual machine, runs an MPI program in the
// clones, and joins them.
//
// It is also everything else that a host and a guest need, as subcommands:
// the host daemon, the server of shared folders, and the guest's agent, which
// is this same program as the guest's init.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
	"github.com/mpirun-sf/mpirun-sf/vmfork/sfld"
	"github.com/mpirun-sf/mpirun-sf/vmfork/share"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if os.Getpid() == 1 && os.Args[0] == "/init" {
		agent.Main() // which returns only if it cannot go on
		os.Exit(1)
	}
	os.Exit(run(os.Args))
}

// exitStatus is an error that has been reported, or that needs no report.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func run(args []string) int {
	if args, ok := asSF(args); ok {
		return sfMain(args, os.Stdout, os.Stderr)
	}
	if args, ok := asMpiexec(args); ok {
		return mpiexecMain(args, os.Stdout, os.Stderr)
	}
	app := launcherApp()
	if len(args) > 1 && isCommand(args[1]) {
		app = commandsApp()
		args = normaliseOMPI(normaliseVM(args))
	} else {
		args = normalise(app.Flags, args)
	}
	err := app.RunContext(context.Background(), args)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	default:
		tui.Error(err)
		return 1
	}
}

func isCommand(name string) bool {
	return slices.ContainsFunc(commandsApp().Commands, func(c *cli.Command) bool { return c.HasName(name) })
}

// baseApp is what the launcher and the subcommands have in common.
func baseApp() *cli.App {
	return &cli.App{
		Name:            "mpirun-sf",
		Version:         version,
		HideHelpCommand: true,
		Writer:          os.Stdout,
		ErrWriter:       os.Stderr,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    usageError,
		// A value may hold commas: paths and variables do.
		DisableSliceFlagSeparator: true,
	}
}

func usageError(_ *cli.Context, err error, _ bool) error {
	return fmt.Errorf("%w; mpirun-sf --help shows the options", err)
}

// strict makes errors of subcommands' use errors like all others: one line.
// Those that say nothing of arguments take none.
func strict(commands []*cli.Command) {
	for _, cmd := range commands {
		cmd.OnUsageError = usageError
		cmd.HideHelpCommand = true
		strict(cmd.Subcommands)
		switch action := cmd.Action; {
		case len(cmd.Subcommands) > 0:
			cmd.Action = func(c *cli.Context) error {
				if c.Args().Present() {
					return fmt.Errorf("%s has no command %s; mpirun-sf %s --help shows them", cmd.Name, c.Args().First(), cmd.Name)
				}
				return cli.ShowSubcommandHelp(c)
			}
		case cmd.ArgsUsage == "":
			cmd.Action = func(c *cli.Context) error {
				if c.Args().Present() {
					return fmt.Errorf("%s takes no arguments, and was given %s", cmd.Name, c.Args().First())
				}
				return action(c)
			}
		}
	}
}

func commandsApp() *cli.App {
	app := baseApp()
	app.Commands = []*cli.Command{
		vmCommand(), ompiCommand(), imageCommand(), psCommand(), topCommand(), doctorCommand(), cleanCommand(),
		{Name: "sfld", Hidden: true, Flags: append(serviceFlags(), &cli.BoolFlag{Name: "host"}), Action: func(c *cli.Context) error {
			if done, err := asService(c); done {
				return err
			}
			// A guest's worth of garbage is not worth a collection under a fork.
			debug.SetGCPercent(400)
			if c.Bool("host") {
				return sfld.HostMain(c.Context, version)
			}
			return sfld.Main(c.Context)
		}},
		{Name: "ranks", Hidden: true, Flags: []cli.Flag{&cli.BoolFlag{Name: "stdio"}}, Action: func(c *cli.Context) error { return agent.ServeRanks(c.Bool("stdio")) }},
		{Name: "share", Hidden: true, Action: func(c *cli.Context) error {
			err := share.Main(c.Context, os.Stdin, os.Stdout, zerolog.Nop())
			if errors.Is(err, share.ErrReported) {
				return exitStatus(1)
			}
			return err
		}},
		{Name: "relay", Hidden: true, Action: func(c *cli.Context) error { return share.RelayMain(c.Context) }},
	}
	strict(app.Commands)
	return app
}
