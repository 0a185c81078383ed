package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/mpirun-sf/mpirun-sf/vmfork/agent"
)

// command is what to run in a virtual machine, as somebody at its console does.
type command struct {
	argv []string // empty: a login shell
	name string   // for errors
	dir  string   // empty: the home folder
	env  []string // added to that of a console
	vm   string
}

// consolePath is where commands are found: those of this product first.
const consolePath = "/run/mpirun-sf/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A command is found, and a folder entered, by the machine's own shell; what
// that cannot do it says itself.
const (
	consoleScript = `cd "$1" || exit 1; shift; exec "$@"`
	shellScript   = `cd "$1" || exit 1; command -v bash >/dev/null && exec bash -l; exec sh -l`
)

func (c command) agentCommand() agent.Command {
	a := agent.Command{ID: rand.IntN(1 << 30), Dir: "/"}
	dir := c.dir
	if dir == "" {
		dir = "/root"
	}
	if len(c.argv) == 0 {
		a.Argv = []string{"/bin/sh", "-c", shellScript, "sh", dir}
	} else {
		a.Argv = append([]string{"/bin/sh", "-c", consoleScript, "sh", dir}, c.argv...)
	}
	a.Env = []string{"PATH=" + consolePath, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh"}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "LANG=") || strings.HasPrefix(e, "LC_") {
			a.Env = append(a.Env, e)
		}
	}
	a.Env = append(a.Env, c.env...)
	return a
}

// forwarded are the signals that a command gets.
var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2}

// atConsole runs a command with this process's standard streams: at a terminal
// of its own if this process has one as its input and output, and at pipes
// otherwise. The error is its exit status.
func atConsole(ctx context.Context, s *agent.Session, c command) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	return runCommand(ctx, s, c, signals, nil)
}

// startCommandLimit is how long the agent may take to start a command.
const startCommandLimit = time.Minute

// runCommand is atConsole with the caller's signals. lost delivers why the
// machine is gone.
func runCommand(ctx context.Context, s *agent.Session, c command, signals <-chan os.Signal, lost <-chan string) error {
	a := c.agentCommand()
	in := int(os.Stdin.Fd())
	tty := term.IsTerminal(in) && term.IsTerminal(int(os.Stdout.Fd()))
	fds := []int{0, 1, 2}
	if tty {
		cols, rows, _ := term.GetSize(in)
		a.TTY = &agent.TTY{Rows: uint16(rows), Cols: uint16(cols), Term: os.Getenv("TERM")}
		fds = fds[:1]
	}
	limit, cancel := context.WithTimeout(ctx, startCommandLimit)
	defer cancel()
	var streams [3]io.ReadWriteCloser
	for _, fd := range fds {
		var err error
		if streams[fd], err = s.Stdio(limit, a.ID, fd); err != nil {
			return fmt.Errorf("%s: %w", c.vm, err)
		}
	}
	p, err := s.Start(limit, a)
	if err != nil {
		return fmt.Errorf("%s: %w", c.vm, err)
	}
	var output sync.WaitGroup
	resized := make(chan os.Signal, 1)
	if tty {
		before, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("take the terminal: %w", err)
		}
		defer term.Restore(in, before)
		signal.Notify(resized, syscall.SIGWINCH)
		defer signal.Stop(resized)
		go io.Copy(streams[0], os.Stdin)
		output.Go(func() { io.Copy(os.Stdout, streams[0]) })
	} else {
		go func() { io.Copy(streams[0], os.Stdin); streams[0].Close() }()
		output.Go(func() { io.Copy(os.Stdout, streams[1]) })
		output.Go(func() { io.Copy(os.Stderr, streams[2]) })
	}
	for {
		select {
		case e := <-p.Exit():
			awaitOutput(&output)
			return exitOf(c, e, lost)
		case sig := <-signals:
			p.Signal(int(sig.(syscall.Signal)))
		case <-resized:
			if cols, rows, err := term.GetSize(in); err == nil {
				p.Resize(agent.Size{Rows: uint16(rows), Cols: uint16(cols)})
			}
		case reason := <-lost:
			return fmt.Errorf("the virtual machine was lost: %s", reason)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// outputLimit is how long what a command left behind may hold its output.
const outputLimit = 2 * time.Second

func awaitOutput(output *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { output.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(outputLimit):
	}
}

// exitOf is how a command ended, as an exit status.
func exitOf(c command, e agent.Exit, lost <-chan string) error {
	switch {
	case e.Error != "":
		// The daemon knows better why the machine is gone, a moment later.
		select {
		case reason := <-lost:
			e.Error = reason
		case <-time.After(outputLimit / 4):
		}
		return errors.New("the virtual machine was lost: " + e.Error)
	case e.Signal != 0:
		return exitStatus(128 + e.Signal)
	case e.Status != 0:
		return exitStatus(e.Status)
	}
	return nil
}
